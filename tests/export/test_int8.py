"""INT8 exports: the rules of Q/DQ, scales, the choice of blocks, and what is lost."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")

from onnx import TensorProto, numpy_helper  # noqa: E402

from rtdetr_deploy import OptionError, Predictor  # noqa: E402
from rtdetr_export import ExportOptions, export_onnx  # noqa: E402
from rtdetr_export.precision.int8 import LEVELS, QuantizableNode, choose_scale, quantize_weight  # noqa: E402
from rtdetr_export.precision.sensitivity import QuantizationPlan, TradeOff, choose_blocks, sensitivity_of  # noqa: E402
from rtdetr_export.trt.lint import lint_file  # noqa: E402
from rtdetr_export.verify.agreement import Agreement  # noqa: E402
from rtdetr_export.verify.tolerances import TOLERANCES  # noqa: E402


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from rtdetr_export.verify.synthetic_images import structured_image

    folder = tmp_path_factory.mktemp("photos")
    for seed in range(2):
        Image.fromarray(structured_image(128, 160, seed)).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def exported(small_options: Any, photos: Path) -> dict[str, Any]:
    """INT8 with an FP32 and with an FP16 rest; random weights bear little, so files are not compared with torch."""
    options = {
        rest: small_options(
            f"int8-{rest}.onnx",
            layers=1,
            precision="int8",
            non_int8_precision=rest,
            target="tensorrt",
            calibration=photos,
            keep_fp32=("/(res_layers|pan_blocks)",),  # fewer blocks to try
            verify=False,
        )
        for rest in ("fp32", "fp16")
    }
    first = export_onnx(options["fp32"])
    with pytest.MonkeyPatch.context() as patch:  # the same blocks again: measuring them takes the most time
        patch.setattr("rtdetr_export.precision.reduce.choose_blocks", lambda *_: first.quantization)
        return {"fp32": first, "fp16": export_onnx(options["fp16"])}


@pytest.mark.parametrize("rest", ["fp32", "fp16"])
def test_quantized_files_run_and_satisfy_the_rules(
    rest: str, exported: dict[str, Any], small_onnx: Path, picture: NDArray[np.uint8]
) -> None:
    result = exported[rest]
    assert result.info.precision == "int8"
    assert result.quantization is not None
    assert result.quantization.blocks
    assert lint_file(result.path) == []
    with Predictor(result.path, 0.0) as predictor:
        assert len(predictor.detect(picture)) == 300
    model = onnx.load(str(result.path))
    assert model.opset_import[0].version == {"fp32": 17, "fp16": 19}[rest]
    constants = {constant.name: numpy_helper.to_array(constant) for constant in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) > 10
    for node in pairs:
        assert constants[node.input[2]].dtype == np.int8
        assert not constants[node.input[2]].any()
        assert (constants[node.input[1]] > 0).all()
        assert constants[node.input[1]].dtype == {"fp32": np.float32, "fp16": np.float16}[rest]
    stored = [node for node in pairs if node.input[0] in constants]
    assert all(constants[node.input[0]].dtype == np.int8 for node in stored)
    assert all(constants[node.input[1]].size > 1 for node in stored)
    assert result.path.stat().st_size < small_onnx.stat().st_size


def test_the_file_says_what_was_chosen(exported: dict[str, Any]) -> None:
    plan = exported["fp32"].quantization
    assert {point.blocks for point in plan.curve} == {
        plan.curve[-1].blocks[: len(point.blocks)] for point in plan.curve
    }
    macs = [point.macs for point in plan.curve]
    assert macs == sorted(macs)
    assert macs[-1] == pytest.approx(1.0)
    assert "<- chosen" in str(plan)
    nodes = {node.name for node in onnx.load(str(exported["fp32"].path)).graph.node}
    assert any(name.startswith("quantize_") for name in nodes)


def test_scales_balance_rounding_and_clipping() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (1, 20000)).astype(np.float32)
    values[0, 0] = 30.0

    def error(scale: float) -> float:
        rounded = np.clip(np.rint(values / scale), -LEVELS, LEVELS) * scale
        return float(((rounded - values) ** 2).mean())

    scale = float(choose_scale(values)[0])
    assert error(scale) < error(30.0 / LEVELS)
    flat = rng.uniform(-1, 1, (1, 20000)).astype(np.float32)
    assert float(choose_scale(flat)[0]) == pytest.approx(1.0 / LEVELS, rel=0.05)
    assert choose_scale(np.zeros((2, 5), np.float32)).min() > 0


@pytest.mark.parametrize(("shape", "axis"), [((8, 4, 3, 3), 0), ((16, 8), 1)])
def test_weights_have_a_scale_per_output_channel(shape: tuple[int, ...], axis: int) -> None:
    rng = np.random.default_rng(1)
    gains = np.moveaxis(np.geomspace(0.001, 10, shape[axis])[(...,) + (None,) * (len(shape) - 1)], 0, axis)
    weight = (rng.uniform(-1, 1, shape) * gains).astype(np.float32)
    stored, scale = quantize_weight(weight, axis)
    assert stored.dtype == np.int8
    assert scale.shape == (shape[axis],)
    restored = stored * np.moveaxis(scale[(...,) + (None,) * (len(shape) - 1)], 0, axis)
    assert np.abs(restored - weight).max(axis=tuple(i for i in range(len(shape)) if i != axis)) == pytest.approx(
        scale / 2, rel=1.5
    )
    assert np.float16(scale).astype(np.float32).tolist() == scale.tolist()


def _agreement(wanted: int, distances: list[float]) -> Agreement:
    boxes = np.array(distances, np.float32) * TOLERANCES[-1].pixels
    return Agreement(TOLERANCES, wanted, (0, 0, len(distances)), 0, boxes, np.zeros(len(boxes), np.float32))


def test_sensitivity_counts_what_is_lost_as_one() -> None:
    assert sensitivity_of(_agreement(4, [0.0, 0.5])) == pytest.approx((0.0 + 0.5 + 2.0) / 4)
    assert sensitivity_of(_agreement(0, [])) == 0.0


def test_a_plan_names_the_point_of_as_many_blocks_as_were_chosen() -> None:
    points = tuple(TradeOff(("a", "b", "c")[:count], 0.3 * count, _agreement(1, [0.0])) for count in (2, 3))
    assert QuantizationPlan(points, 0).blocks == ()
    assert QuantizationPlan(points, 0).macs == 0.0
    assert QuantizationPlan(points, 2).blocks == ("a", "b")
    assert QuantizationPlan(points, 3).macs == pytest.approx(0.9)


@pytest.mark.parametrize(("whole", "tried"), [(False, [2, 3]), (True, [1, 2, 3])])
def test_sensitive_blocks_are_taken_out_until_detections_stay(
    whole: bool, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three blocks; the one called b loses detections, alone and with others."""
    nodes = [QuantizableNode(f"node_{name}", "x", "w", 0, name) for name in "abc"]

    class Trials:
        def __init__(self, *_: Any) -> None: ...

        def detect_reference(self) -> None: ...

        def agreement(self, _: str, chosen: list[QuantizableNode], count: int | None = None) -> Agreement:
            lost = any(node.block == "b" for node in chosen)
            return _agreement(10, [0.1] * (5 if lost else 10))

    monkeypatch.setattr("rtdetr_export.precision.sensitivity._Trials", Trials)
    monkeypatch.setattr("rtdetr_export.precision.sensitivity.count_macs", lambda *_: {node.name: 1.0 for node in nodes})
    plan = choose_blocks(None, SimpleNamespace(nodes=nodes), [], whole_curve=whole)  # type: ignore[arg-type]
    assert set(plan.blocks) == {"a", "c"}
    assert [len(point.blocks) for point in plan.curve] == tried
    assert plan.curve[-1].blocks[-1] == "b"
    assert str(plan).count("<- chosen") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int8"}, "needs `calibration`"),
        ({"precision": "fp16", "non_int8_precision": "fp16"}, 'add `precision="int8"`'),
        (
            {"precision": "int8", "calibration": Path("x"), "non_int8_precision": "int8"},
            "`non_int8_precision` is fp32 or fp16",
        ),
        ({"precision": "int8", "calibration": Path("x"), "non_int8_precision": "fp16", "opset": 17}, "needs opset 19"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ExportOptions(Path("x.pth"), **changes)


def test_types_are_as_the_reader_expects(exported: dict[str, Any]) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(str(exported["fp16"].path)), strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    kinds = {types[node.output[0]] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    assert kinds == {TensorProto.FLOAT16}
