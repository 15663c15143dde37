"""What is refused before any work is done, and the command line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from rtdetr_deploy.cli.arguments import options_of  # noqa: E402
from rtdetr_deploy.errors import OptionError, OutputError  # noqa: E402
from rtdetr_train.cli import build_parser, main  # noqa: E402
from rtdetr_train.options import TrainOptions, check_paths  # noqa: E402

BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "size": ({"size": (100, 96)}, "`size` is 100x96, expected multiples of 32 from 64 to 8192; try 96x96"),
    "one side": ({"size": 640}, r"`size` is 640, expected \(height, width\), multiples of 32"),
    "huge size": (
        {"size": (64, 99999999999999968)},
        "`size` is 64x99999999999999968, expected multiples of 32 from 64",
    ),
    "epochs": ({"epochs": 0}, "`epochs` is 0, expected a whole number from 1"),
    "half an epoch": ({"epochs": 1.5}, "`epochs` is 1.5, expected a whole number"),
    "multiscale steps": (
        {"size": (960, 96), "multiscale_steps": 2},
        "`multiscale_steps` is 2, expected a whole number from 0 to 1",
    ),
    "rate": ({"lr": 0.0}, "`lr` is 0.0, expected a number above 0"),
    "NaN rate": ({"lr": float("nan")}, "`lr` is nan, expected a number above 0"),
    "infinite norm": ({"clip_max_norm": float("inf")}, "`clip_max_norm` is inf, expected a number above 0"),
    "too many queries": (
        {"queries": 9999, "size": (64, 128), "multiscale_steps": 0},
        "`queries` is 9999, but an input of 64x128 pixels has 168 cells",
    ),
    "ignored factor": (
        {"weights": Path("w.pth"), "freeze": "backbone", "backbone_lr_factor": 0.7},
        '`backbone_lr_factor` has no effect with `freeze="backbone"`',
    ),
    "average": ({"ema_decay": 1.0}, "`ema_decay` is 1.0, expected a number from 0 to below 1"),
    "negative average": ({"ema_decay": -0.1}, "`ema_decay` is -0.1, expected a number from 0 to 1"),
    "zoom out": ({"max_zoom_out": 0.5}, "`max_zoom_out` is 0.5, expected a number from 1 to 16"),
    "NaN zoom out": ({"max_zoom_out": float("nan")}, "`max_zoom_out` is nan, expected a number from 1 to 16"),
    "huge zoom out": ({"max_zoom_out": 1000.0}, "`max_zoom_out` is 1000.0, expected a number from 1 to 16"),
    "backbone factor": ({"backbone_lr_factor": -5.0}, "`backbone_lr_factor` is -5.0, expected a number from 0 up"),
    "NaN backbone factor": ({"backbone_lr_factor": float("nan")}, "`backbone_lr_factor` is nan"),
    "weight decay": ({"weight_decay": float("nan")}, "`weight_decay` is nan, expected a number from 0 up"),
    "seed": ({"seed": 99999999999999}, "`seed` is 99999999999999, expected a whole number from 0 to 4294967295"),
    "freeze": ({"freeze": "all"}, "`freeze` is 'all', expected backbone or norms"),
    "freeze from scratch": ({"freeze": "norms"}, '`freeze="norms"` would keep random weights; give the `weights`'),
    "val_images": ({"val_images": Path()}, "`val_images` is given without `val_annotations`"),
    "evaluate_every": ({"evaluate_every": 3}, "`evaluate_every` is given without `val_annotations`"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_values_outside_their_range_are_refused(case: str) -> None:
    changes, message = BAD_OPTIONS[case]
    with pytest.raises(OptionError, match=message):
        TrainOptions(Path(), Path(), Path(), **changes)


@pytest.mark.parametrize("name", ["--weights", "--annotations", "--val-annotations"])
def test_a_missing_file_is_named_before_torch_is_imported(
    name: str, squares: tuple[Path, Path], tmp_path: Path, r18_checkpoint: Path
) -> None:
    files = {"--annotations": squares[0], "--val-annotations": squares[0], "--weights": r18_checkpoint}
    command = [text for option, path in {**files, name: tmp_path / "nope"}.items() for text in (option, str(path))]
    code = "import sys; sys.modules['torch'] = None; from rtdetr_train.cli import main; sys.exit(main(sys.argv[1:]))"
    command += ["--images", str(squares[1]), "--output", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *command], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"rtdetr-train: {tmp_path / 'nope'} does not exist\n")


def test_a_run_does_not_overwrite_the_weights_that_it_starts_from(
    train_options: TrainOptions, r18_checkpoint: Path, tmp_path: Path
) -> None:
    best = tmp_path / "best.pth"
    best.write_bytes(r18_checkpoint.read_bytes())
    with pytest.raises(OutputError, match="best.pth in `output` would overwrite"):
        check_paths(replace(train_options, weights=best, output=tmp_path))


def _parse(*typed: str) -> TrainOptions:
    return TrainOptions(**options_of(TrainOptions, build_parser().parse_args(typed)))


def test_old_spellings_mean_the_same_and_each_gives_one_warning() -> None:
    spellings = {
        "--data": ("--annotations", "a.json"),
        "--val": ("--val-annotations", "v.json"),
        "--rate": ("--lr", "1e-3"),
        "--backbone-rate": ("--backbone-lr-factor", "0.5"),
        "--average": ("--ema-decay", "0.9"),
        "--clip": ("--clip-max-norm", "1"),
        "--scales": ("--multiscale-steps", "1"),
        "--plain-epochs": ("--no-aug-epochs", "3"),
        "--expand": ("--max-zoom-out", "2"),
    }
    common = ["--images", "folder", "--output", "run"]
    with pytest.warns(FutureWarning) as warned:
        old = _parse(*common, *(text for name, (_, value) in spellings.items() for text in (name, value)))
    assert [str(one.message) for one in warned] == [
        f"{name} is called {new} now" for name, (new, _) in spellings.items()
    ]
    new = _parse(*common, *(text for pair in spellings.values() for text in pair))
    assert old == new
    assert (new.annotations, new.lr, new.backbone_lr_factor) == (Path("a.json"), 1e-3, 0.5)


def test_the_defaults_of_the_command_are_those_of_the_library() -> None:
    required = ("--annotations", "a.json", "--images", "folder", "--output", "run")
    assert _parse(*required) == TrainOptions(Path("a.json"), Path("folder"), Path("run"))
    typed = _parse(*required, "--size", "256x320", "--no-bf16", "--any-orientation", "--no-encoder-iou-targets")
    assert typed.size == (256, 320)
    assert (typed.bf16, typed.any_orientation, typed.encoder_iou_targets) == (False, True, False)


def test_the_command_names_its_options_in_errors(capsys: pytest.CaptureFixture[str]) -> None:
    required = ["--annotations", "a.json", "--images", "folder", "--output", "run"]
    assert main([*required, "--clip-max-norm", "0"]) == 2
    assert main([*required, "--freeze", "backbone"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "rtdetr-train: --clip-max-norm is 0.0, expected a number above 0",
        "rtdetr-train: --freeze backbone would keep random weights; give the --weights to start from",
    ]
    with pytest.raises(SystemExit):
        main(required[2:])
    assert "the following arguments are required: --annotations" in capsys.readouterr().err


def test_the_command_trains_and_says_where_the_checkpoint_is(
    tiny_options: TrainOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations, output = str(tiny_options.annotations), tiny_options.output
    command = ["--annotations", annotations, "--images", str(tiny_options.images), "--val-annotations", annotations]
    command += ["--output", str(output)]
    small = ["--size", "64x96", "--multiscale-steps", "0", "--epochs", "1", "--batch", "4", "--workers", "0", "--bf16"]
    assert main([*command, *small, "--variant", "tiny", "--layers", "1"]) == 0
    text = capsys.readouterr().out
    assert "epoch 1/1  total " in text
    assert "AP50" in text
    assert f"checkpoint: {output / 'best.pth'}" in text
    assert torch.load(output / "best.pth", weights_only=True)["input_size"] == [64, 96]
    assert main([*command, "--variant", "r99"]) == 2
    assert "--variant is 'r99', expected one of r18" in capsys.readouterr().err
