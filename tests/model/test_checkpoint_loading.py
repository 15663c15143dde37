"""From weights to a model: its architecture, class names, layers and queries."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from checkpoint_states import State, r18_state, save_variant  # noqa: E402
from rtdetr_deploy.errors import CheckpointError, OptionError  # noqa: E402
from rtdetr_deploy.model import RTDETR, VARIANTS, load_checkpoint  # noqa: E402


def test_digest_identifies_the_file(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "model.pth"
    torch.save(r18_state(), path)
    assert load_checkpoint(path).digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("stored", [["a", "b"], {0: "a", 1: "b"}, {"1": "b", "0": "a"}, {"b": 1, "a": 0}])
def test_class_names_of_the_file_are_used_and_can_be_replaced(stored: Any, tmp_path: Path) -> None:
    path = tmp_path / "named.pth"
    save_variant(path, "r18", {"class_names": stored}, classes=2)
    assert load_checkpoint(path).class_names == ("a", "b")
    assert load_checkpoint(path, class_names=["x", "y"]).class_names == ("x", "y")
    with pytest.raises(OptionError, match="`class_names` names 3 classes, but the model has 2"):
        load_checkpoint(path, class_names=["x", "y", "z"])


def test_a_stored_number_of_classes_is_not_a_list_of_names(tmp_path: Path) -> None:
    path = tmp_path / "counted.pth"
    save_variant(path, "r18", {"classes": 2}, classes=2)
    assert load_checkpoint(path).class_names == ("class 0", "class 1")


def test_class_names_that_are_not_a_list_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "named.pth"
    save_variant(path, "r18", {"names": "a b"}, classes=2)
    with pytest.raises(CheckpointError, match="class names that are not a list: str; give `class_names`"):
        load_checkpoint(path)


BAD_FILES: dict[str, tuple[Callable[[Path, State], Any], str]] = {
    "a width that eight heads can't share": (
        lambda path, state: torch.save({**state, "encoder.input_proj.0.conv.weight": torch.zeros(3, 128, 1, 1)}, path),
        "nearest is r18: 1 of another shape",
    ),
    "missing keys": (
        lambda path, state: torch.save({k: v for k, v in state.items() if "layers.1.linear" not in k}, path),
        r"nearest is r18: 4 missing \(decoder.decoder.layers.1.linear1.weight, .*\.\.\.\)",
    ),
    "unexpected keys": (
        lambda path, state: torch.save({**state, "decoder.extra.weight": torch.zeros(2)}, path),
        r"1 unexpected \(decoder.extra.weight\)",
    ),
    "another shape": (
        lambda path, state: torch.save({**state, "decoder.enc_output.proj.weight": torch.zeros(9, 9)}, path),
        r"1 of another shape \(decoder.enc_output.proj.weight \(9, 9\) instead of \(256, 256\)\)",
    ),
    "points that fit no three levels": (
        lambda path, state: torch.save(
            {**state, "decoder.decoder.layers.0.cross_attn.num_points_scale": torch.full((12,), 0.1)}, path
        ),
        "nearest is r18: its sampling points fit no three levels",
    ),
    "another width": (
        lambda path, state: torch.save({**state, "encoder.input_proj.0.conv.weight": torch.zeros(96, 128, 1, 1)}, path),
        "nearest is r18: 1 of another shape",
    ),
    "no width": (
        lambda path, state: torch.save({**state, "encoder.input_proj.0.conv.weight": torch.zeros(0, 128, 1, 1)}, path),
        "nearest is r18: 1 of another shape",
    ),
    "NaN": (
        lambda path, state: torch.save({**state, "decoder.enc_output.norm.bias": torch.full((256,), torch.nan)}, path),
        "holds NaN or infinity in decoder.enc_output.norm.bias",
    ),
    "another backbone": (
        lambda path, state: torch.save({k.replace("res_layers", "dla"): v for k, v in state.items()}, path),
        r"nearest is r18: \d+ missing",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_other_models_are_told_by_their_difference_to_the_nearest(case: str, tmp_path: Path) -> None:
    write, message = BAD_FILES[case]
    path = tmp_path / "bad.pth"
    write(path, r18_state())
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["decoder.decoder.layers.1000000000.x", "backbone.res_layers.0.blocks.300000000.x", "decoder.decoder.layers.200.x"],
)
def test_a_huge_index_in_a_name_is_refused_at_once(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    torch.save({**r18_state(), name: torch.zeros(1)}, path)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=rf"nearest is r18: 1 unexpected \({name}\)"):
        load_checkpoint(path)
    assert time.monotonic() - start < 10


def test_differences_are_told_for_the_number_of_classes_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "five.pth"
    model = RTDETR(replace(VARIANTS["r18"], classes=5)).state_dict()
    del model["encoder.encoder.0.layers.0.linear1.weight"]
    torch.save(model, path)
    with pytest.raises(CheckpointError, match=r"nearest is r18: 1 missing \([\w.]+linear1.weight\)$"):
        load_checkpoint(path)


def test_a_missing_file_is_named_before_torch_is_imported(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from rtdetr_export.cli import main; sys.exit(main(sys.argv[1:]))"
    for name, message in (("nope.pth", "does not exist"), ("", "is a folder without model.safetensors")):
        command = [sys.executable, "-c", code, "--weights", str(tmp_path / name)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr


def test_a_variant_that_the_file_is_not_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(r18_state(), path)
    with pytest.raises(CheckpointError, match="holds r18, not r50; leave `variant` out"):
        load_checkpoint(path, variant="r50")


@pytest.mark.parametrize("queries", [0, 301])
def test_impossible_numbers_of_queries_are_refused(queries: int, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(r18_state(), path)
    with pytest.raises(OptionError, match=f"`queries` is {queries}, but the model selects 300: choose 1 to 300"):
        load_checkpoint(path, queries=queries)
