"""Loading of trained weights, and what is said of other files."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rtdetr_deploy.artifacts.class_names import COCO_NAMES  # noqa: E402
from rtdetr_deploy.errors import CheckpointError, OptionError  # noqa: E402
from rtdetr_deploy.model import RTDETR, VARIANTS, load_checkpoint  # noqa: E402
from rtdetr_deploy.model.random_weights import fill_randomly  # noqa: E402

State = dict[str, Any]


@pytest.fixture(scope="module")
def state() -> State:
    model = RTDETR(VARIANTS["r18"])
    fill_randomly(model, seed=1)
    return dict(model.state_dict())


def _v1_names(state: State) -> State:
    """Return `state` under the names of RT-DETR's first release."""
    renamed = {}
    for key, value in state.items():
        name = key.replace("enc_output.proj.", "enc_output.0.").replace("enc_output.norm.", "enc_output.1.")
        if name.startswith("encoder.input_proj."):
            name = name.replace(".conv.", ".0.").replace(".norm.", ".1.")
        renamed[name] = value
    return renamed


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "ema and model": lambda state: {"ema": {"module": state, "updates": 3}, "model": {"other": torch.zeros(1)}},
    "model": lambda state: {"model": state, "last_epoch": 71},
    "bare": lambda state: state,
    "data parallel": lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
    "v1 names": lambda state: {"ema": {"module": _v1_names(state)}},
    "without batch counters": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    "with derived buffers": lambda state: {**state, "decoder.anchors": torch.zeros(1, 8400, 4)},
    "half precision": lambda state: {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
    "state_dict": lambda state: {"state_dict": state, "meta": {"epoch": 3}},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
    "net": lambda state: {"net": state},
    "any key": lambda state: {"my_detector": {"weights": state}},
    "flat average": lambda state: {"ema": state, "model": {k: v + 1 for k, v in state.items()}},
    "average's state dict": lambda state: {"model": {k: v + 1 for k, v in state.items()}, "ema_state_dict": state},
    "lightning": lambda state: {
        "state_dict": {**{f"model.{k}": v for k, v in state.items()}, "criterion.weight": torch.ones(3)},
        "pytorch-lightning_version": "2.4",
    },
    "lightning with an average": lambda state: {
        "state_dict": {
            **{f"model.{k}": v + 1 for k, v in state.items()},
            **{f"ema.module.{k}": v for k, v in state.items()},
        }
    },
    "compiled": lambda state: {"model": {f"module._orig_mod.{key}": value for key, value in state.items()}},
    "without denoising": lambda state: {k: v for k, v in state.items() if "denoising" not in k},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_the_same_weights(layout: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(LAYOUTS[layout](state), path)
    checkpoint = load_checkpoint(path)
    assert checkpoint.variant == VARIANTS["r18"]
    assert checkpoint.class_names == COCO_NAMES
    assert not checkpoint.model.training
    loaded = checkpoint.model.state_dict()
    for key, value in state.items():
        if value.is_floating_point() and "denoising" not in key:
            expected = value.half().float() if layout == "half precision" else value
            assert torch.equal(loaded[key], expected), key


def test_safetensors_load_with_their_class_names(state: State, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    names = [f"thing {index}" for index in range(80)]
    save_file(state, path, metadata={"class_names": json.dumps(names)})
    assert load_checkpoint(path).class_names == tuple(names)


def test_digest_identifies_the_file(state: State, tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "model.pth"
    torch.save(state, path)
    assert load_checkpoint(path).digest == hashlib.sha256(path.read_bytes()).hexdigest()


def _save_variant(path: Path, name: str, extra: dict[str, Any] | None = None, **changes: Any) -> None:
    model = RTDETR(replace(VARIANTS[name], **changes), changes.get("max_layers", VARIANTS[name].max_layers))
    torch.save({"model": model.state_dict(), **(extra or {})}, path)


def test_fine_tuned_classes_points_and_layers_are_read_off_the_shapes(tmp_path: Path) -> None:
    path = tmp_path / "tuned.pth"
    _save_variant(path, "r34", classes=7, points=(1, 1, 1), max_layers=2, layers=2)
    checkpoint = load_checkpoint(path)
    assert checkpoint.variant == replace(VARIANTS["r34"], classes=7, points=(1, 1, 1), max_layers=2, layers=2)
    assert checkpoint.class_names == ("class 0", "class 1", "class 2", "class 3", "class 4", "class 5", "class 6")


def test_unequal_points_per_level_are_read_off_the_scale_buffer(tmp_path: Path) -> None:
    path = tmp_path / "points.pth"
    variant = replace(VARIANTS["r18"], points=(3, 6, 3))
    scale = torch.tensor([1 / 3] * 3 + [1 / 6] * 6 + [1 / 3] * 3)
    buffers = {f"decoder.decoder.layers.{i}.cross_attn.num_points_scale": scale for i in range(3)}
    torch.save({"model": {**RTDETR(variant).state_dict(), **buffers}}, path)
    assert load_checkpoint(path).variant.points == (3, 6, 3)


def test_r50_m_runs_three_layers_and_keeps_three(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    _save_variant(path, "r50-m")
    assert load_checkpoint(path).model.layers == 3
    assert load_checkpoint(path, layers=5).model.layers == 5
    assert load_checkpoint(path, variant="r50-m-dsp").variant.sampling == "discrete"


@pytest.mark.parametrize("stored", [["a", "b"], {0: "a", 1: "b"}, {"1": "b", "0": "a"}, {"b": 1, "a": 0}])
def test_class_names_of_the_file_are_used_and_can_be_replaced(stored: Any, tmp_path: Path) -> None:
    path = tmp_path / "named.pth"
    _save_variant(path, "r18", {"class_names": stored}, classes=2)
    assert load_checkpoint(path).class_names == ("a", "b")
    assert load_checkpoint(path, class_names=["x", "y"]).class_names == ("x", "y")
    with pytest.raises(OptionError, match="names 3 classes, but the model has 2"):
        load_checkpoint(path, class_names=["x", "y", "z"])


def test_a_stored_number_of_classes_is_no_list_of_names(tmp_path: Path) -> None:
    path = tmp_path / "counted.pth"
    _save_variant(path, "r18", {"classes": 2}, classes=2)
    assert load_checkpoint(path).class_names == ("class 0", "class 1")


def test_class_names_that_are_not_a_list_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "named.pth"
    _save_variant(path, "r18", {"names": "a b"}, classes=2)
    with pytest.raises(CheckpointError, match="class names that are not a list"):
        load_checkpoint(path)


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


def test_files_of_ultralytics_are_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rtdetr-l.pt"
    module = ModuleType("ultralytics.nn.tasks")
    module.RTDETRDetectionModel = type("RTDETRDetectionModel", (), {"__module__": module.__name__})  # type: ignore[attr-defined]
    for name in ("ultralytics", "ultralytics.nn", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    torch.save({"model": module.RTDETRDetectionModel()}, path)
    with pytest.raises(CheckpointError, match=r"was written by Ultralytics \(ultralytics.nn.tasks.*Export it there"):
        load_checkpoint(path)
    torch.save({"model.0.stem1.conv.weight": torch.zeros(2), "model.28.decoder.layers.0.x": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"was written by Ultralytics \(its weights are called model.0.stem1"):
        load_checkpoint(path)


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
    "a width that eight heads can't share": (
        lambda path, state: torch.save({**state, "encoder.input_proj.0.conv.weight": torch.zeros(3, 128, 1, 1)}, path),
        "nearest is r18: 1 of another shape",
    ),
    "a backbone": (
        lambda path, state: torch.save({k: v for k, v in state.items() if k.startswith("backbone")}, path),
        "has no detection head .* there are 'backbone.*keys",
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
def test_wrong_files_get_one_clear_line(case: str, state: State, tmp_path: Path) -> None:
    write, message = BAD_FILES[case]
    path = tmp_path / "bad.pth"
    write(path, state)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["decoder.decoder.layers.1000000000.x", "backbone.res_layers.0.blocks.300000000.x", "decoder.decoder.layers.200.x"],
)
def test_a_huge_index_in_a_name_is_refused_at_once(name: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    torch.save({**state, name: torch.zeros(1)}, path)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=rf"nearest is r18: 1 unexpected \({name}\)"):
        load_checkpoint(path)
    assert time.monotonic() - start < 10


def test_a_file_that_holds_itself_is_read_once(state: State, tmp_path: Path) -> None:
    content: dict[str, Any] = {"model": state}
    content.update({f"self {index}": content for index in range(1000)})
    torch.save(content, tmp_path / "ring.pth")
    assert load_checkpoint(tmp_path / "ring.pth").variant == VARIANTS["r18"]


def test_differences_are_told_for_the_number_of_classes_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "five.pth"
    model = RTDETR(replace(VARIANTS["r18"], classes=5)).state_dict()
    del model["encoder.encoder.0.layers.0.linear1.weight"]
    torch.save(model, path)
    with pytest.raises(CheckpointError, match=r"nearest is r18: 1 missing \([\w.]+linear1.weight\)$"):
        load_checkpoint(path)


def test_safetensors_are_known_by_their_content(state: State, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for name in ("model.pth", "model.SAFETENSORS", "model.bin"):
        save_file(state, tmp_path / name)
        assert load_checkpoint(tmp_path / name).variant == VARIANTS["r18"]


def test_a_missing_file_is_named_before_torch_is_imported(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from rtdetr_export.cli import main; sys.exit(main(sys.argv[1:]))"
    for name, message in (("nope.pth", "does not exist"), ("", "is a folder without model.safetensors")):
        command = [sys.executable, "-c", code, "--weights", str(tmp_path / name)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr


def test_an_input_size_beyond_reason_is_passed_over(state: State, tmp_path: Path) -> None:
    torch.save({"model": state, "input_size": [320000, 320000]}, tmp_path / "model.pth")
    assert load_checkpoint(tmp_path / "model.pth").input_size is None


def test_damaged_safetensors_and_exported_files_get_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"\x10\x00nonsense")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_checkpoint(path)
    for name in ("model.onnx", "MODEL.ONNX", "model.engine"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(CheckpointError, match="exported model already"):
            load_checkpoint(tmp_path / name)


def test_a_variant_that_the_file_is_not_is_refused(state: State, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="holds r18, not r50"):
        load_checkpoint(path, variant="r50")


@pytest.mark.parametrize("queries", [0, 301])
def test_impossible_numbers_of_queries_are_refused(queries: int, state: State, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(state, path)
    with pytest.raises(OptionError, match="choose 1 to 300"):
        load_checkpoint(path, queries=queries)
