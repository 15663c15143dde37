"""The released layouts, and the others that keep their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from checkpoint_states import State, r18_state, save_variant  # noqa: E402
from rtdetr_deploy.artifacts.class_names import COCO_NAMES  # noqa: E402
from rtdetr_deploy.model import RTDETR, VARIANTS, load_checkpoint  # noqa: E402


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
def test_every_layout_loads_the_same_weights(layout: str, tmp_path: Path) -> None:
    path, state = tmp_path / "model.pth", r18_state()
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


def test_fine_tuned_classes_points_and_layers_are_read_off_the_shapes(tmp_path: Path) -> None:
    path = tmp_path / "tuned.pth"
    save_variant(path, "r34", classes=7, points=(1, 1, 1), max_layers=2, layers=2)
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
    save_variant(path, "r50-m")
    assert load_checkpoint(path).model.layers == 3
    assert load_checkpoint(path, layers=5).model.layers == 5
    assert load_checkpoint(path, variant="r50-m-dsp").variant.sampling == "discrete"


def test_a_file_that_holds_itself_is_read_once(tmp_path: Path) -> None:
    content: dict[str, Any] = {"model": r18_state()}
    content.update({f"self {index}": content for index in range(1000)})
    torch.save(content, tmp_path / "ring.pth")
    assert load_checkpoint(tmp_path / "ring.pth").variant == VARIANTS["r18"]
