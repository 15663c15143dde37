"""What is read of files: pickles and safetensors; what is said of damaged, dangerous and strange ones."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from checkpoint_states import State, r18_state  # noqa: E402
from rtdetr_deploy.errors import CheckpointError  # noqa: E402
from rtdetr_deploy.model import VARIANTS, load_checkpoint  # noqa: E402
from rtdetr_deploy.model.checkpoints.read import read_content  # noqa: E402


def test_safetensors_load_with_their_class_names(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    names = [f"thing {index}" for index in range(80)]
    save_file(r18_state(), path, metadata={"class_names": json.dumps(names)})
    assert load_checkpoint(path).class_names == tuple(names)


METADATA: dict[str, tuple[dict[str, str], Any, tuple[int, int] | None]] = {
    "names between commas": ({"names": "red,white"}, ["red", "white"], None),
    "a number of classes": ({"classes": "2"}, None, None),
    "a map and a size": (
        {"names": '{"1": "b", "0": "a"}', "input_size": "[320, 480]"},
        {"1": "b", "0": "a"},
        (320, 480),
    ),
    "something else": ({"format": "pt", "input_size": "large"}, None, None),
}


@pytest.mark.parametrize("case", METADATA)
def test_metadata_of_safetensors_are_read_as_json_or_text(case: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    metadata, names, size = METADATA[case]
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors", metadata=metadata)
    content = read_content(tmp_path / "model.safetensors")
    assert (content.class_names, content.input_size) == (names, size)


def test_safetensors_are_known_by_their_content(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for name in ("model.pth", "model.SAFETENSORS", "model.bin"):
        save_file(r18_state(), tmp_path / name)
        assert load_checkpoint(tmp_path / name).variant == VARIANTS["r18"]


class _Dangerous:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("executed",)


class _Shell:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("exit 1",)


def test_a_pickle_that_wants_code_is_not_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"model": {}, "extra": _Dangerous()}, path)
    with pytest.raises(CheckpointError, match=r"print.*is not opened, because unpickling it could run code"):
        load_checkpoint(path)
    for protocol in (0, 2, 4):
        path.write_bytes(pickle.dumps(_Dangerous(), protocol))
        with pytest.raises(CheckpointError, match=r"is a pickle that asks for .*print and is not opened"):
            load_checkpoint(path)
    torch.save({"model": _Shell()}, path)
    with pytest.raises(
        CheckpointError, match=r"asks for \w+\.system and is not opened, because unpickling it could run"
    ):
        load_checkpoint(path)
    assert "executed" not in capsys.readouterr().out


def _truncate(path: Path, state: State) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BIAS, WEIGHT = "decoder.enc_output.norm.bias", "decoder.enc_output.proj.weight"


BAD_FILES: dict[str, tuple[Callable[[Path, State], Any], str]] = {
    "text": (lambda path, _: path.write_text("weights: none\n"), "is not a "),
    "empty": (lambda path, _: path.write_bytes(b""), "is not a readable checkpoint|is not a checkpoint"),
    "truncated": (_truncate, "damaged or incomplete"),
    "folder": (lambda path, _: path.mkdir(), "is a folder"),
    "missing": (lambda path, _: None, "does not exist"),
    "a number": (lambda path, _: torch.save(3.0, path), r"holds no weights \(it is float\)"),
    "no tensors": (
        lambda path, _: torch.save({"model": {"epoch": 3}}, path),
        "holds no weights .*its keys are 'model'",
    ),
    "two models": (
        lambda path, state: torch.save({"teacher": state, "student": {**state}}, path),
        r"holds several models \(teacher, student\); save the one to use alone",
    ),
    "meta": (
        lambda path, state: torch.save({**state, BIAS: torch.zeros(256, device="meta")}, path),
        f"holds {BIAS} without values",
    ),
    "sparse": (
        lambda path, state: torch.save({**state, WEIGHT: torch.eye(256).to_sparse()}, path),
        f"holds {WEIGHT} in a sparse, quantized or nested form",
    ),
    "quantized": (
        lambda path, state: torch.save(
            {**state, BIAS: torch.quantize_per_tensor(state[BIAS], 1, 0, torch.qint8)}, path
        ),
        f"holds {BIAS} in a sparse, quantized",
    ),
    "integers": (
        lambda path, state: torch.save({**state, BIAS: torch.zeros(256, dtype=torch.int32)}, path),
        f"holds {BIAS} as int32; expected plain floating-point numbers",
    ),
    "complex": (
        lambda path, state: torch.save({**state, BIAS: torch.zeros(256, dtype=torch.complex64)}, path),
        f"holds {BIAS} as complex64",
    ),
    "expanded": (
        lambda path, state: torch.save({**state, WEIGHT: torch.zeros(1).expand(10**6, 10**6)}, path),
        f"holds {WEIGHT} as an expanded tensor",
    ),
    "a backbone": (
        lambda path, state: torch.save({k: v for k, v in state.items() if k.startswith("backbone")}, path),
        "has no detection head .* there are 'backbone.*keys",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_wrong_files_get_one_clear_line(case: str, tmp_path: Path) -> None:
    write, message = BAD_FILES[case]
    path = tmp_path / "bad.pth"
    write(path, r18_state())
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_damaged_safetensors_and_exported_files_get_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"\x10\x00nonsense")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_checkpoint(path)
    for name in ("model.onnx", "MODEL.ONNX", "model.engine"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(CheckpointError, match="exported model already"):
            load_checkpoint(tmp_path / name)


def test_an_input_size_beyond_reason_is_passed_over(tmp_path: Path) -> None:
    torch.save({"model": r18_state(), "input_size": [320000, 320000]}, tmp_path / "model.pth")
    assert load_checkpoint(tmp_path / "model.pth").input_size is None
