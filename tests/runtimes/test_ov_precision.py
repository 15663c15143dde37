"""What stays in FP32 when OpenVINO computes in BF16."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rtdetr_deploy.runtimes.ov_precision import keep_fp32

openvino = pytest.importorskip("openvino")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def small_model() -> Any:
    """Return a linear layer, a slice, an Unsqueeze and another linear layer; names as in exported files."""
    from openvino import opset13 as ops

    rng = np.random.default_rng(0)

    def linear(x: Any, width: int, name: str) -> Any:
        product = ops.matmul(x, ops.constant(rng.normal(size=(16, width)).astype(np.float32)), False, False)
        product.set_friendly_name(f"/{name}/MatMul")
        added = ops.add(product, ops.constant(rng.normal(size=width).astype(np.float32)))
        added.set_friendly_name(f"/{name}/Add")
        return added

    images = ops.parameter([1, 20, 16], np.float32)
    hidden = ops.relu(linear(images, 16, "hidden"))
    hidden.set_friendly_name("/hidden/Relu")
    boxes = linear(hidden, 16, "box")
    one = [ops.constant(np.array([number])) for number in (0, 8, 1, 2)]
    half = ops.slice(boxes, *one)
    half.set_friendly_name("/box/Slice")
    wide = ops.unsqueeze(half, ops.constant(np.array([1])))
    wide.set_friendly_name("/box/Unsqueeze")
    return openvino.Model([ops.exp(wide), ops.multiply(boxes, boxes)], [images])


def infer(model: Any, precision: str) -> tuple[list[np.ndarray], Any]:
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    x = np.random.default_rng(1).normal(size=(1, 20, 16)).astype(np.float32)
    return [np.array(value) for value in compiled([x]).values()], compiled


def test_the_forms_that_keep_a_mark_compute_the_same() -> None:
    expected, _ = infer(small_model(), "f32")
    model = small_model()
    assert keep_fp32(model, ["/box/"]) == 4
    found, _ = infer(model, "f32")
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_nothing_changes_without_names() -> None:
    model = small_model()
    before = [node.friendly_name for node in model.get_ordered_ops()]
    assert keep_fp32(model, ()) == 0
    assert [node.friendly_name for node in model.get_ordered_ops()] == before


def test_a_name_without_slash_keeps_that_node_alone() -> None:
    assert keep_fp32(small_model(), ["/box/Add"]) == 1


def test_what_is_named_is_computed_in_fp32_where_the_rest_is_bf16() -> None:
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("the processor has no BF16")
    model = small_model()
    keep_fp32(model, ["/box/"])
    _, compiled = infer(model, "bf16")
    kept: dict[str, str] = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        told = {key: str(getattr(value, "value", value)) for key, value in node.rt_info.items()}
        for name in told.get("originalLayersNames", "").split(","):
            kept[name] = told["runtimePrecision"]
    assert kept["/hidden/Add"] == "bf16"
    assert {kept[name] for name in kept if name.startswith("/box/")} == {"f32"}
