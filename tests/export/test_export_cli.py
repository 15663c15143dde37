"""rtdetr-export."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

import rtdetr_deploy
import rtdetr_export
from rtdetr_deploy.cli.arguments import parse_given
from rtdetr_export import ExportOptions, Step, export
from rtdetr_export.cli import build_parser, main


def test_the_clients_command_writes_beside_the_weights(
    r18_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "r18.pth"
    shutil.copy(r18_checkpoint, weights)
    assert main(["--weights", str(weights), "--layers", "2"]) == 0
    text = capsys.readouterr().out
    written = tmp_path / "r18-l2-640x640-fp32.onnx"
    assert written.exists()
    assert f"wrote {written}" in text
    assert "r18, 2 decoder layers, 640x640, batch 1, fp32, 3 classes" in text
    assert "parity with torch" in text


@pytest.mark.slow
def test_variants_are_printed_beside_the_published_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--variants"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 8
    assert "a multiply-add is two operations" in lines[0]
    assert lines[5].split() == ["r50", "6", "of", "6", "42.92", "42", "135.7", "136"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "none.pth"], "none.pth does not exist"),
        (["--weights", "{weights}", "--layers", "9"], "--layers is 9, but r18 has 3 decoder layers: choose 1 to 3"),
        (["--weights", "{weights}", "--size", "600"], "--size is 600x600, expected multiples of 32"),
        (["--weights", "{weights}", "--variant", "r20"], "--variant is 'r20', expected one of r18"),
        (["--weights", "{weights}", "--class-names", "{weights}.txt"], "can't read class names"),
        (["--weights", "{weights}", "--queries", "400"], "choose 1 to 300"),
        (["--weights", "{weights}", "--opset", "20"], "opset 20 is refused"),
        (["--weights", "{weights}", "--sampler", "discrete"], "--sampler discrete changes what r18 detects"),
        (["--weights", "{weights}", "--batch", "99999999999999"], "not enough memory for batch 99999999999999 of"),
        (["--lint", "{weights}", "--precision", "fp16"], "--precision does not go with --lint; leave it out"),
        (["--variants", "--layers", "3"], "--layers does not go with --variants; leave it out"),
        (["--variants", "--no-verify"], "--no-verify does not go with --variants"),
        (["--variants", "--batch", "1"], "--batch does not go with --variants"),
        (
            ["--weights", "x.onnx", "--non-int8-precision", "fp16", "--output", "x.engine"],
            "--non-int8-precision is decided in x.onnx already",
        ),
        (["--weights", "{weights}", "--max-batch", "8"], "--max-batch is for engines; add --output NAME.engine"),
        (["--weights", "x.onnx", "--no-verify", "--output", "x.plan"], "--no-verify is decided in x.onnx already"),
        (["--weights", "x.onnx", "--batch", "1", "--output", "x.engine"], "--batch is decided in x.onnx already"),
        (["--weights", "x.onnx"], "x.onnx does not exist"),
    ],
)
def test_wrong_input_gives_one_line_and_status_2(
    arguments: list[str], message: str, r18_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(r18_checkpoint.parent.iterdir())
    assert main([item.format(weights=r18_checkpoint) for item in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rtdetr-export: ")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(r18_checkpoint.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "none.pth"], "none.pth does not exist"),
        (["--weights", "{weights}", "--output", "{weights}/x.onnx"], "can't write {weights}/x.onnx"),
        (["--weights", "{weights}", "--output", "{folder}/model.onnx"], "--output would overwrite"),
        (["--weights", "{weights}", "--precision", "int8", "--calibration", "none"], "none does not exist"),
        (["--weights", "{weights}", "--precision", "fp16", "--keep-fp32", "["], "is not a regular expression"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_before_torch_is_loaded(
    arguments: list[str],
    message: str,
    r18_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = tmp_path / "cells.pth"
    shutil.copy(r18_checkpoint, weights)
    (tmp_path / "model.onnx").symlink_to(weights)
    monkeypatch.setattr("rtdetr_export.targets.require", lambda *_: pytest.fail("torch would be loaded"))
    before = weights.read_bytes()
    assert main([item.format(weights=weights, folder=tmp_path) for item in arguments]) == 2
    assert message.format(weights=weights) in capsys.readouterr().err
    assert weights.read_bytes() == before


def test_a_terminal_sees_the_running_step_and_the_trials_of_int8(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    Image.new("RGB", (80, 60), (90, 160, 40)).save(tmp_path / "photo.png")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    command = [
        "--weights",
        str(small_checkpoint),
        "--output",
        str(tmp_path / "m.onnx"),
        "--size",
        "64",
        "--layers",
        "1",
    ]
    command += ["--keep-fp32", "^(?!/model/encoder/fpn)"]  # two blocks are left to try
    assert main([*command, "--precision", "int8", "--calibration", str(tmp_path), "--no-verify"]) == 0
    text = capsys.readouterr().err
    assert text.index("choose INT8 blocks on 1 image: 1 of ") < text.index("choose INT8 blocks on 1 image  ")
    assert "load cells.pth" in text


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--size", "abc", "size 'abc' is not understood; write 640 or HEIGHTxWIDTH"),
        ("--size", "", "size '' is not understood"),
        ("--batch", "many", "batch 'many' is not understood; write a number or dynamic"),
        ("--sampler", "nearest", "invalid choice: 'nearest'"),
    ],
)
def test_values_that_cannot_be_parsed_give_one_line_and_status_2(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--weights", "w.pth", option, value])
    error = capsys.readouterr().err
    assert error.startswith(f"rtdetr-export: argument {option}: {message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("old", "new", "name", "value"),
    [
        ("--classes", "--class-names", "class_names", "n.txt"),
        ("--rest", "--non-int8-precision", "non_int8_precision", "fp16"),
        ("--largest-batch", "--max-batch", "max_batch", "4"),
        ("--best-batch", "--opt-batch", "opt_batch", "2"),
    ],
)
def test_spellings_of_0_1_work_with_one_line_of_warning(old: str, new: str, name: str, value: str) -> None:
    with pytest.warns(FutureWarning, match=f"{old} is called {new} now") as warned:
        arguments, given = parse_given(build_parser(), ["--weights", "w.pth", old, value])
    assert len(warned) == 1
    assert str(getattr(arguments, name)) == value
    assert name in given


def test_one_call_does_what_the_command_does(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, one, other = tmp_path / "names.txt", tmp_path / "one.onnx", tmp_path / "other.onnx"
    names.write_text("a\nb\nc\n")
    command = ["--weights", str(small_checkpoint), "--class-names", str(names), "--output", str(one), "--size", "64"]
    assert main([*command, "--layers", "1", "--batch", "dynamic"]) == 0
    steps: list[Step] = []
    options = ExportOptions(small_checkpoint, other, class_names=names, size=(64, 64), layers=1, batch=None)
    result = export(options, steps.append)
    assert one.read_bytes() == other.read_bytes()
    assert result.info.class_names == ("a", "b", "c")
    assert result.report is not None
    assert result.report.passed
    assert str(result.report) in capsys.readouterr().out
    assert [step.name for step in steps if step.seconds is not None][:3] == [
        "load cells.pth", "fold batch normalization and RepVGG branches", "trace",
    ]  # fmt: skip


@pytest.mark.parametrize("option", ["--weights", "--output", "--calibration"])
def test_an_empty_name_does_not_mean_the_current_folder(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        build_parser().parse_args(["--weights", "w.pth", option, ""])
    assert "the name is empty; is a shell variable not set?" in capsys.readouterr().err


def test_class_names_from_a_file_go_into_the_model(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rtdetr_deploy import Predictor

    names, output = tmp_path / "names.txt", tmp_path / "m.onnx"
    names.write_text("a\nb\nc\n")
    command = ["--weights", str(small_checkpoint), "--class-names", str(names), "--output", str(output), "--size", "64"]
    assert main([*command, "--no-verify"]) == 0
    assert Predictor(output).class_names == ("a", "b", "c")
    assert "not verified (--no-verify)" in capsys.readouterr().out


def test_missing_torch_is_named(
    r18_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["--weights", str(r18_checkpoint)]) == 2
    error = capsys.readouterr().err
    assert "exporting needs onnxscript, which is not installed: pip install '" in error
    assert "'rtdetr" not in error


def test_what_the_command_does_is_offered_to_python() -> None:
    assert all(getattr(rtdetr_export, name) is not None for name in rtdetr_export.__all__)
    with pytest.raises(AttributeError, match="module 'rtdetr_export' has no attribute 'exports'"):
        rtdetr_export.exports  # noqa: B018


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"rtdetr-export {rtdetr_deploy.__version__}\n"


def test_help_shows_defaults() -> None:
    text = " ".join(build_parser().format_help().split())
    assert "what the checkpoint names, else" in text
    assert "(default: 300)" in text


@pytest.mark.parametrize(("option", "name"), [("--output", "link.engine"), ("--timing-cache", "cells.pth")])
def test_what_is_read_is_not_overwritten(
    option: str, name: str, r18_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "cells.pth"
    weights.write_bytes(r18_checkpoint.read_bytes())
    (tmp_path / "link.engine").symlink_to(weights)
    assert main(["--weights", str(weights), "--output", str(tmp_path / "x.engine"), option, str(tmp_path / name)]) == 2
    assert f"{option} would overwrite the input {weights}; choose another file" in capsys.readouterr().err
    assert weights.read_bytes() == r18_checkpoint.read_bytes()
