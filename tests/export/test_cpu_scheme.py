"""INT8 for CPUs: what is quantized, and that both runtimes compute it in integers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
ir = pytest.importorskip("onnx_ir")

from onnx import numpy_helper, parser  # noqa: E402

from rtdetr_export.precision.cpu_scheme import CpuScheme, make_cpu_scheme  # noqa: E402
from rtdetr_export.precision.int8 import QuantizableNode  # noqa: E402
from rtdetr_export.precision.integer_kernels import SIGMOID, SILU, QuantizedValues  # noqa: E402
from rtdetr_export.precision.ranges import Range, choose_range, silu  # noqa: E402
from rtdetr_export.trt.lint import lint  # noqa: E402

NODES = """
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r = Relu(a)
    c = Conv<pads=[1,1,1,1]>(r, w2, b2)
    t = Add(c, r)
    u = Relu(t)
    p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(u)
    d = Conv<pads=[1,1,1,1]>(p, w3, b3)
    s = Sigmoid(d)
    m = Mul(d, s)
    e = Concat<axis=1>(m, p)
    y = Conv(e, w4, b4)
"""
SHAPES = {"w1": (8, 8, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 8, 3, 3), "w4": (8, 16, 1, 1)}


@pytest.fixture(scope="module")
def model() -> Any:
    """Convolutions with a residual, a pooling, a SiLU and a concatenation between them; the last gives the output."""
    rng = np.random.default_rng(0)
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[1,8,16,16] x) => (float[1,8,8,8] y) {{ {NODES} }}'
    )
    for node in proto.graph.node:
        node.name = f"make_{node.output[0]}"
    for name, shape in SHAPES.items():
        weight = rng.normal(0, 0.15, shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weight, name))
        bias = rng.normal(0, 0.3, shape[:1]).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(bias, name.replace("w", "b")))
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))


def _nodes(*names: str) -> list[QuantizableNode]:
    found = {
        "make_a": ("x", "w1"), "make_c": ("r", "w2"), "make_d": ("p", "w3"), "make_y": ("e", "w4"),
    }  # fmt: skip
    return [QuantizableNode(name, *found[name], 0, "block") for name in names]


ALL = _nodes("make_a", "make_c", "make_d", "make_y")


@pytest.fixture(scope="module")
def pictures() -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    return [rng.normal(0, 1, (1, 8, 16, 16)).astype(np.float32) for _ in range(4)]


@pytest.fixture(scope="module")
def scheme(model: Any, pictures: list[NDArray[np.float32]]) -> CpuScheme:
    content = ir.serde.serialize_model(model).SerializeToString()
    return make_cpu_scheme(model.graph, ALL, content, pictures)


@pytest.fixture(scope="module")
def quantized(model: Any, scheme: CpuScheme, tmp_path_factory: pytest.TempPathFactory) -> Path:
    changed = model.clone()
    scheme.quantize(changed, ALL)
    path: Path = tmp_path_factory.mktemp("int8") / "small.onnx"
    ir.save(changed, path)
    return path


def test_values_between_quantized_nodes_are_quantized_where_a_kernel_writes_them(model: Any) -> None:
    values = QuantizedValues(model.graph, {node.name for node in ALL})
    assert values.kinds == {
        "x": None, "r": None, "c": None, "u": None, "p": "u", "d": SILU, "s": SIGMOID, "m": None, "e": None,
    }  # fmt: skip
    assert values.from_integers == set(values.kinds) - {"x"}


def test_what_no_quantized_node_reads_stays_in_float(model: Any) -> None:
    values = QuantizedValues(model.graph, {"make_a", "make_d"})
    assert set(values.kinds) == {"x", "r", "p", "d"}
    assert values.from_integers == {"r", "d"}
    assert QuantizedValues(model.graph, set()).kinds == {}


def test_onnx_runtime_computes_everything_in_integers(quantized: Path, tmp_path: Path) -> None:
    settings = onnxruntime.SessionOptions()
    settings.enable_profiling, settings.profile_file_prefix = True, str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(str(quantized), settings, providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.ones((1, 8, 16, 16), np.float32)})
    import json

    events = json.loads(Path(session.end_profiling()).read_text())
    ran = Counter(event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time"))
    assert ran["QLinearConv"] == 3  # the last one gives the graph's output, which is float
    assert ran["QLinearAdd"] == ran["QLinearSigmoid"] == ran["QLinearMul"] == ran["QLinearConcat"] == 1
    assert not ran["Relu"] + ran["Add"] + ran["Mul"] + ran["Sigmoid"]


def test_openvino_convolves_in_int8(quantized: Path) -> None:
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(str(quantized), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    convolutions = [kind["primitiveType"].value for kind in kinds if kind["layerType"].value == "Convolution"]
    assert [name.lower().endswith("_i8") for name in convolutions] == [True] * 4


def test_both_runtimes_give_nearly_what_the_float_model_gives(
    model: Any, quantized: Path, pictures: list[NDArray[np.float32]]
) -> None:
    exact = onnxruntime.InferenceSession(ir.serde.serialize_model(model).SerializeToString()).run(
        None, {"x": pictures[0]}
    )[0]
    found = onnxruntime.InferenceSession(str(quantized)).run(None, {"x": pictures[0]})[0]
    assert np.abs(found - exact).mean() < 0.03 * np.abs(exact).mean()
    openvino = pytest.importorskip("openvino")
    other = openvino.Core().compile_model(str(quantized), "CPU")([pictures[0]])[0]
    assert np.abs(other - exact).mean() < 0.03 * np.abs(exact).mean()


def test_weights_are_signed_biases_in_steps_of_sums_and_activations_unsigned(quantized: Path) -> None:
    graph = onnx.load(str(quantized)).graph
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    by_output = {node.output[0]: node for node in graph.node}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            assert constants[node.input[2]].dtype == np.uint8
        if node.op_type != "Conv":
            continue
        activation, weight, bias = (by_output[name] for name in node.input)
        assert constants[weight.input[0]].dtype == np.int8
        assert constants[bias.input[0]].dtype == np.int32
        assert not constants[weight.input[2]].any()
        steps = constants[activation.input[1]] * constants[weight.input[1]]
        assert constants[bias.input[1]] == pytest.approx(steps)


def test_a_file_for_cpus_is_named_as_such_by_the_lint(quantized: Path) -> None:
    findings = [finding for finding in lint(onnx.load(str(quantized))) if finding.rule in ("zero-point", "uint8")]
    assert {finding.rule for finding in findings} == {"zero-point"}
    assert any('which is for CPUs; export with `target="tensorrt"`' in finding.message for finding in findings)


def test_zero_is_a_level_of_every_range() -> None:
    for low, high in ((0.0, 3.0), (-1.0, 3.0), (-2.0, 0.0), (0.0, 0.0)):
        span = Range.of(low, high)
        assert 0 <= span.zero_point <= 255
        assert span.round(np.zeros(1, np.float32)) == 0
    assert Range.of(0.0, 3.0).zero_point == 0


def test_the_range_before_a_silu_gives_up_what_silu_makes_nothing_of() -> None:
    values = np.random.default_rng(0).normal(-4, 5, 20000).astype(np.float32)
    plain, before_silu = choose_range(values), choose_range(values, silu)
    assert before_silu.scale < 0.8 * plain.scale

    def error(span: Range) -> float:
        return float(((silu(span.round(values)) - silu(values)) ** 2).mean())

    assert error(before_silu) < 0.7 * error(plain)


def test_outliers_are_clipped() -> None:
    values = np.append(np.abs(np.random.default_rng(0).normal(0, 1, 400000)), 20.0).astype(np.float32)
    span = choose_range(values)
    assert span.zero_point == 0
    assert span.scale * 255 < 15


def test_a_weight_of_several_readers_is_stored_for_each_so_that_exact_kernels_load() -> None:
    text = "g (float[4,8] x) => (float[4,8] y) { a = MatMul(x, w) b = Add(a, c) y2 = MatMul(b, w) y = Add(y2, c) }"
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    rng = np.random.default_rng(0)
    for node in proto.graph.node:
        node.name = f"make_{node.output[0]}"
    for name, shape in (("w", (8, 8)), ("c", (8,))):
        proto.graph.initializer.append(numpy_helper.from_array(rng.normal(0, 1, shape).astype(np.float32), name))
    graph = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))
    nodes = [QuantizableNode(f"make_{name}", read, "w", 1, "block") for name, read in (("a", "x"), ("y2", "b"))]
    content = proto.SerializeToString()
    make_cpu_scheme(graph.graph, nodes, content, [np.ones((4, 8), np.float32)]).quantize(graph, nodes)
    quantized = ir.serde.serialize_model(graph)
    names = Counter(value.name for value in quantized.graph.initializer)
    assert {"w_int8", "w_1_int8"} <= names.keys()
    assert max(names.values()) == 1
    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry("session.x64quantprecision", "1")
    onnxruntime.InferenceSession(quantized.SerializeToString(), settings, providers=["CPUExecutionProvider"])
