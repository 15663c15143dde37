"""What stays in FP32 when OpenVINO computes in BF16."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rtdetr_deploy import MissingPackageError
from rtdetr_deploy.runtimes import ov_precision
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


def infer(model: Any) -> list[np.ndarray]:
    x = np.random.default_rng(1).normal(size=(1, 20, 16)).astype(np.float32)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [np.array(value) for value in compiled([x]).values()]


def test_the_forms_that_keep_a_mark_compute_the_same() -> None:
    expected = infer(small_model())
    model = small_model()
    assert keep_fp32(model, ["/box/"]) == 4
    found = infer(model)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_nothing_changes_without_names() -> None:
    model = small_model()
    before = [node.friendly_name for node in model.get_ordered_ops()]
    assert keep_fp32(model, ()) == 0
    assert [node.friendly_name for node in model.get_ordered_ops()] == before


def test_a_name_without_slash_keeps_that_node_alone() -> None:
    assert keep_fp32(small_model(), ["/box/Add"]) == 1


def test_a_version_that_marks_otherwise_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ov_precision, "MARK", "another")
    ov_precision._mark.cache_clear()
    told = (
        r"OpenVINO \d+.* does not mark what stays in FP32 .* as OpenVINO 2026.4 does; install that version: pip install"
    )
    with pytest.raises(MissingPackageError, match=told):
        keep_fp32(small_model(), ["/box/"])
    monkeypatch.undo()
    assert keep_fp32(small_model(), ["/box/"]) == 4


def pixels_model() -> Any:
    """Return a convolution of uint8 pixels in shares of 255, and one behind it."""
    from openvino import opset13 as ops

    rng = np.random.default_rng(0)
    images = ops.parameter([1, 8, 8, 3], np.uint8)
    planes = ops.transpose(ops.convert(images, np.float32), ops.constant(np.array([0, 3, 1, 2])))
    x = ops.divide(planes, ops.constant(np.float32(255)))
    for name, channels in (("first", 3), ("second", 16)):
        weights = ops.constant(rng.normal(size=(16, channels, 3, 3)).astype(np.float32))
        x = ops.convolution(x, weights, [1, 1], [1, 1], [1, 1], [1, 1])
        x.set_friendly_name(f"/{name}/Conv/WithoutBiases")
    return openvino.Model([ops.relu(x)], [images])


def precisions(model: Any) -> dict[str, str]:
    """Return what each operator of the model is computed in when BF16 is asked for."""
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    found: dict[str, str] = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        told = {key: str(getattr(value, "value", value)) for key, value in node.rt_info.items()}
        for name in told.get("originalLayersNames", "").split(","):
            found[name] = told["runtimePrecision"]
    return found


def test_dividing_weights_in_place_of_pixels_computes_the_same() -> None:
    x = np.random.default_rng(1).integers(0, 256, (1, 8, 8, 3)).astype(np.uint8)
    found = []
    for names in ((), ("/first/",)):
        model = pixels_model()
        keep_fp32(model, names)
        found.append(openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x])[0])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-4)


@pytest.fixture
def bf16() -> None:
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("the processor has no BF16")


@pytest.mark.usefixtures("bf16")
def test_the_first_convolution_of_pixels_stays_in_fp32() -> None:
    model = pixels_model()
    keep_fp32(model, ["/first/"])
    found = precisions(model)
    assert (found["/first/Conv/WithoutBiases"], found["/second/Conv/WithoutBiases"]) == ("f32", "bf16")


@pytest.mark.usefixtures("bf16")
def test_what_is_named_is_computed_in_fp32_where_the_rest_is_bf16() -> None:
    model = small_model()
    keep_fp32(model, ["/box/"])
    kept = precisions(model)
    assert kept["/hidden/Add"] == "bf16"
    assert {kept[name] for name in kept if name.startswith("/box/")} == {"f32"}
