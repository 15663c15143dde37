"""Residuals of additions behind INT8 convolutions: which are found, what is quantized, and what the lint says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")

import onnx_ir as ir  # noqa: E402
from onnx import parser  # noqa: E402

from rtdetr_deploy.artifacts.metadata import METADATA_KEY  # noqa: E402
from rtdetr_deploy.runtimes import open_runtime  # noqa: E402
from rtdetr_export.pipeline import TracedCheckpoint, trace_checkpoint  # noqa: E402
from rtdetr_export.precision.int8 import QuantizableNode, TensorRtScheme, find_quantizable, quantize  # noqa: E402
from rtdetr_export.precision.reduce import make_scheme  # noqa: E402
from rtdetr_export.precision.residual import ResidualAdd, find_residual_adds  # noqa: E402
from rtdetr_export.simplify import serialize  # noqa: E402
from rtdetr_export.trt.lint import lint  # noqa: E402

MAP = "float[1,4,8,8]"
BLOCKS = {
    "an identity": ("a = Conv(x, w) b = Relu(a) c = Conv(b, w) s = Add(c, x) y = Relu(s)", {"c": ("s", 1, "x")}),
    "an identity first": ("c = Conv(x, w) s = Add(x, c) y = Relu(s)", {"c": ("s", 0, "x")}),
    "a projection": (
        "a = Conv(x, w) b = Relu(a) c = Conv(b, w) d = Conv(x, w) s = Add(c, d) y = Relu(s)",
        {"c": ("s", 1, "d")},
    ),
    "a projection first": (
        "d = Conv(x, w) a = Conv(x, w) b = Relu(a) c = Conv(b, w) s = Add(d, c) y = Relu(s)",
        {"c": ("s", 0, "d")},
    ),
    "an activation before the addition": ("c = Conv(x, w) a = Sigmoid(c) s = Add(a, x) y = Relu(s)", {}),
    "a convolution that is read elsewhere too": ("c = Conv(x, w) s = Add(c, x) y = Mul(s, c)", {}),
    "a bias": ("c = Conv(x, w) y = Add(c, o)", {}),
    "a doubled value": ("c = Conv(x, w) y = Add(c, c)", {}),
    "a convolution as the output": ("y = Conv(x, w) s = Add(y, x) z = Relu(s)", {}),
}


def _graph(body: str) -> ir.Model:
    outputs = f"{MAP} y" + (f", {MAP} z" if "z = " in body else "")
    text = f"({MAP} x) => ({outputs}) {{ {body} }}"
    model = parser.parse_model(f'<ir_version: 9, opset_import: ["" : 17]> g {text}')
    rng = np.random.default_rng(0)
    for name, shape in (("w", (4, 4, 1, 1)), ("o", (1, 4, 1, 1))):
        values = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    for node in model.graph.node:
        node.name = f"make_{node.output[0]}"
    found: ir.Model = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    return found


@pytest.mark.parametrize("name", BLOCKS)
def test_additions_right_behind_convolutions_are_found_with_the_shorter_branch_as_residual(name: str) -> None:
    body, expected = BLOCKS[name]
    graph = _graph(body).graph
    convolutions = {str(node.name) for node in graph if node.op_type == "Conv"}
    found = find_residual_adds(graph, convolutions)
    assert found == {
        f"make_{conv}": ResidualAdd(f"make_{add}", index, residual) for conv, (add, index, residual) in expected.items()
    }
    assert find_residual_adds(graph, ()) == {}


def _quantized(body: str, *, residuals: bool) -> Any:
    model = _graph(body)
    convolutions = [node for node in model.graph if node.op_type == "Conv"]
    adds = find_residual_adds(model.graph, {str(node.name) for node in convolutions}) if residuals else {}
    chosen = [
        QuantizableNode(str(node.name), str(node.inputs[0].name), "w", 0, "block", adds.get(str(node.name)))  # type: ignore[union-attr]
        for node in convolutions
    ]
    quantize(model, chosen, {name: 0.05 for node in chosen for name in node.quantized_values})
    return ir.to_proto(model)


@pytest.mark.parametrize(("name", "pairs"), [("an identity", 2), ("a projection", 3)])
def test_a_pair_of_the_blocks_input_serves_its_identity_and_a_projection_gets_one(name: str, pairs: int) -> None:
    model = _quantized(BLOCKS[name][0], residuals=True)
    made = {output: node.op_type for node in model.graph.node for output in node.output}
    addition = next(node for node in model.graph.node if node.op_type == "Add")
    assert [made[value] for value in addition.input] == ["Conv", "DequantizeLinear"]
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) == pairs
    assert lint(model) == []
    onnx.checker.check_model(model, full_check=True)


def test_an_addition_with_another_residual_is_a_warning() -> None:
    for name in ("an identity", "a projection"):
        findings = lint(_quantized(BLOCKS[name][0], residuals=False))
        assert [(finding.rule, finding.severity, finding.where) for finding in findings] == [
            ("residual", "warning", "make_s")
        ]
        assert "conv + add + ReLU won't fuse" in findings[0].message


@pytest.fixture(scope="module")
def traced(small_options: Any) -> TracedCheckpoint:
    return trace_checkpoint(small_options("residual.onnx", layers=1, target="tensorrt", raw_input=False))


def test_every_block_of_a_real_graph_can_fuse_and_the_file_runs(traced: TracedCheckpoint) -> None:
    nodes = find_quantizable(traced.graph, traced.placement)
    adds = [node.add for node in nodes if node.add is not None]
    assert [add.name.split("/")[3] for add in adds] == [f"res_layers.{stage}" for stage in range(4)]
    assert all("/short/" in add.residual for add in adds)
    changed = traced.graph.clone()
    quantize(changed, nodes, {name: 0.05 for node in nodes for name in node.quantized_values})
    content = serialize(changed, {METADATA_KEY: traced.info.to_json()}, "0")
    assert lint(onnx.load_from_string(content)) == []
    runtime = open_runtime(content)
    found = runtime.run({"images": np.zeros((1, 3, 128, 160), np.float32)})
    runtime.close()
    assert np.isfinite(found["boxes"]).all()


def test_a_residual_stays_where_its_addition_is_kept(traced: TracedCheckpoint, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    patterns = ("/res_layers.2/.*/Add$", "/decoder/", "/encoder/")
    scheme = make_scheme(traced.graph, traced.placement, traced.info, [tmp_path / "a.png"], patterns, for_cpu=False)
    assert isinstance(scheme, TensorRtScheme)
    nodes, scales = scheme.nodes, scheme.scales
    kept = {node.add.name.split("/")[3] for node in nodes if node.add is not None}
    assert kept == {"res_layers.0", "res_layers.1", "res_layers.3"}
    assert not any("/res_layers.2/" in name and name.endswith("/short/conv/conv.0/Conv_output_0") for name in scales)
    assert {name for node in nodes for name in node.quantized_values} == set(scales)
