"""Every rule for TensorRT rejects a graph that breaks it, and our own exports break none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, numpy_helper, parser  # noqa: E402

from rtdetr_deploy import ArtifactError  # noqa: E402
from rtdetr_export.cli import main  # noqa: E402
from rtdetr_export.trt.lint import RULES, Finding, lint, lint_file, merged  # noqa: E402

MAP, PAIRS, ROWS = "float[1,4,8,8]", "float[1,6,6,2]", "float16[1,8,20,32]"
BROKEN = {
    "opset": ("", f"({MAP} x) => ({MAP} y) {{ y = Relu(x) }}", 8),
    "operator": ("Unique", "(float[9] x) => (float[n] y) { y = Unique(x) }", 17),
    "plugin": ("own::Magic", f"({MAP} x) => ({MAP} y) {{ y = own.Magic(x) }}", 17),
    "type": ("UINT16", "(uint16[4] x) => (uint16[4] y) { y = Identity(x) }", 17),
    "uint8": ("cast first", "(float[4] x) => (float[4] y) { b = Cast<to=2>(x) y = Cast<to=1>(b) }", 17),
    "finite": (
        "infinity",
        "(float[2] x) => (float16[2] y) <float[2] c = {1.0, 1.0}> { z = Add(x, c) y = Cast<to=10>(z) }",
        17,
    ),
    "strong-typing": ("FLOAT and FLOAT16", "(float[4] x, float16[4] h) => (float[4] y) { y = Add(x, h) }", 17),
    "dynamic-axes": ("[2, 3]", "(float[1,3,h,w] x) => (float[1,3,h,w] y) { y = Relu(x) }", 17),
    "gridsample-mode": (
        "nearest",
        f"({MAP} x, {PAIRS} p) => (float[1,4,6,6] y) {{ y = GridSample<mode=\"linear\">(x, p) }}",
        20,
    ),
    "gridsample-rank": (
        "5 axes",
        "(float[1,4,8,8,8] x, float[1,2,2,2,3] p) => (float[1,4,2,2,2] y) { y = GridSample(x, p) }",
        20,
    ),
    "float-only": (
        "DOUBLE",
        "(double[1,4,8,8] x, double[1,6,6,2] p) => (double[1,4,6,6] y) { y = GridSample(x, p) }",
        17,
    ),
    "gridsample": ('`sampler="gather"`', f"({MAP} x, {PAIRS} p) => (float[1,4,6,6] y) {{ y = GridSample(x, p) }}", 17),
    "topk": (
        "K is 4000",
        "(float[5000] x) => (float[4000] y, int64[4000] i) <int64[1] k = {4000}> { y, i = TopK(x, k) }",
        17,
    ),
    "layernorm-outputs": (
        "first output",
        "(float[2,4] x, float[4] s) => (float[2,4] y, float[2,1] m) { y, m = LayerNormalization(x, s) }",
        17,
    ),
    "maxpool-indices": (
        "Indices",
        f"({MAP} x) => (float[1,4,7,7] y, int64[1,4,7,7] i) {{ y, i = MaxPool<kernel_shape=[2,2]>(x) }}",
        17,
    ),
    "scatter-reduction": (
        "reductions",
        "(float[4] x, int64[1,1] i, float[1] u) => (float[4] y) { y = ScatterND<reduction=\"add\">(x, i, u) }",
        17,
    ),
    "constant-axes": ("axes must", "(float[2,4] x, int64[1] a) => (float[n,m] y) { y = ReduceMean(x, a) }", 18),
    "resize": (
        "tf_crop_and_resize",
        "(float[1,1,4,4] x) => (float[1,1,8,8] y) <float[8] r = {0,0,0,0,1,1,1,1}, float[4] s = {1,1,2,2}> "
        "{ y = Resize<coordinate_transformation_mode=\"tf_crop_and_resize\">(x, r, s) }",
        17,
    ),
    "zero-point": (
        "zero point",
        "(float[4] x) => (int8[4] y) <float s = {0.1}, int8 z = {3}> { y = QuantizeLinear(x, s, z) }",
        17,
    ),
    "per-channel": (
        "weights only",
        "(float[2,4] x) => (int8[2,4] y) <float[2] s = {0.1,0.2}, int8[2] z = {0,0}> "
        "{ y = QuantizeLinear<axis=0>(x, s, z) }",
        17,
    ),
    "residual": (
        "conv + add + ReLU won't fuse",
        f"(int8[1,4,8,8] q, {MAP} x) => ({MAP} y) <float s = {{0.1}}, int8[4,4,1,1] w, float[4] t = {{1,1,1,1}}> "
        "{ d = DequantizeLinear(q, s) e = DequantizeLinear<axis=0>(w, t) c = Conv(d, e) a = Add(c, x) y = Relu(a) }",
        17,
    ),
    "attention": (
        "Cast between its first product and Softmax, Cast between Softmax and its second product",
        f"({ROWS} q, {ROWS} k, {ROWS} v) => ({ROWS} y) {{ t = Transpose<perm=[0,1,3,2]>(k) p = MatMul(q, t) "
        "f = Cast<to=1>(p) s = Softmax<axis=-1>(f) h = Cast<to=10>(s) y = MatMul(h, v) }",
        17,
    ),
}  # fmt: skip


def _model(text: str, opset: int) -> Any:
    return parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}, "own" : 1]> g {text}')


def _findings(name: str) -> list[Finding]:
    _, text, opset = BROKEN[name]
    model = _model(text, opset)
    if name == "finite":
        array = np.array([1.0, np.inf], np.float32)
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "c"))
    return lint(model)


def test_there_is_a_broken_graph_for_every_rule() -> None:
    assert [rule.name for rule in RULES] == list(BROKEN)
    assert all(rule.source for rule in RULES)


@pytest.mark.parametrize("name", BROKEN)
def test_a_graph_that_breaks_the_rule_is_found(name: str) -> None:
    found = [finding for finding in _findings(name) if finding.rule == name]
    assert found
    assert BROKEN[name][0] in str(found[0])
    assert found[0].source in str(found[0])


def test_plain_graphs_break_no_rule() -> None:
    text = (
        "(float[n,3,8,8] x) => (float[n,4,8,8] y) <float[4,3,1,1] w = {1,2,3,4,5,6,7,8,9,10,11,12}, int64[1] k = {2}> "
        "{ c = Conv(x, w) d = Relu(c) t, i = TopK<axis=1>(d, k) y = Add(d, c) }"
    )
    assert lint(_model(text, 17)) == []


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("small.onnx", {}),
        ("dynamic.onnx", {"batch": "dynamic", "raw_input": True}),
        ("half-1.onnx", {"precision": "fp16"}),
    ],
)
def test_our_exports_break_no_rule(name: str, changes: dict[str, Any], small_export: Any) -> None:
    assert lint_file(small_export(name, **changes)) == []


ATTENTION = {
    "as TensorRT fuses it": ("p = MatMul(q, t) s = Softmax<axis=-1>(p) y = MatMul(s, v)", None),
    "with scale and mask": (
        "p = MatMul(q, t) c = Mul(p, o) m = Add(c, o) s = Softmax<axis=-1>(m) y = MatMul(s, v)", None,
    ),
    "with a computed mask before the scores": (
        "n = Mul(q, o) u = Cast<to=1>(n) m = Cast<to=10>(u) p = MatMul(q, t) f = Cast<to=1>(p) h = Cast<to=10>(f) "
        "a = Add(m, h) s = Softmax<axis=-1>(a) y = MatMul(s, v)",
        "Cast between its first product and Softmax",
    ),
    "with scores before a computed mask": (
        "n = Mul(q, o) u = Cast<to=1>(n) m = Cast<to=10>(u) p = MatMul(q, t) f = Cast<to=1>(p) h = Cast<to=10>(f) "
        "a = Add(h, m) s = Softmax<axis=-1>(a) y = MatMul(s, v)",
        "Cast between its first product and Softmax",
    ),
    "with a computed mask, as TensorRT fuses it": (
        "n = Mul(q, o) m = Cast<to=10>(n) p = MatMul(q, t) a = Add(m, p) s = Softmax<axis=-1>(a) y = MatMul(s, v)",
        None,
    ),
    "with a layout change": (
        "p = MatMul(q, t) s = Softmax<axis=-1>(p) i = Identity(s) y = MatMul(i, v)",
        "Identity between Softmax and its second product",
    ),
    "in FP32": (
        "a = Cast<to=1>(q) b = Cast<to=1>(t) p = MatMul(a, b) s = Softmax<axis=-1>(p) f = Cast<to=1>(v) "
        "g = MatMul(s, f) y = Cast<to=10>(g)",
        "MatMul of p multiplies FLOAT, FP16 or BF16 is needed",
    ),
    "behind a linear layer, as the weights of deformable attention": (
        "p = MatMul(q, o) f = Cast<to=1>(p) s = Softmax<axis=-1>(f) h = Cast<to=10>(s) y = MatMul(h, v)", None,
    ),
    "without a second product": ("p = MatMul(q, t) f = Cast<to=1>(p) s = Softmax<axis=-1>(f) y = Cast<to=10>(s)", None),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_told_from_other_softmaxes_and_what_splits_it_is_named(name: str) -> None:
    body, message = ATTENTION[name]
    inputs = "float16[1,8,20,20] q, float16[1,8,20,20] k, float16[1,8,20,20] v"
    text = f"({inputs}) => (float16[1,8,20,20] y) {{ t = Transpose<perm=[0,1,3,2]>(k) {body} }}"
    model = _model(text, 17)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((20, 20), np.float16), "o"))
    findings = lint(model)
    assert [finding.rule for finding in findings] == ["attention"] * (message is not None)
    assert all(message in finding.message for finding in findings if message is not None)


def test_graphs_in_fp32_are_not_asked_for_fused_attention() -> None:
    rows = ROWS.replace("16", "")
    body = "p = MatMul(q, k) i = Identity(p) s = Softmax<axis=-1>(i) y = MatMul(s, v)"
    assert lint(_model(f"({rows} q, float[1,8,32,20] k, {rows} v) => ({rows} y) {{ {body} }}", 17)) == []


def test_changes_of_a_real_export_are_found(small_onnx: Path) -> None:
    def findings(change: Any) -> set[str]:
        model = onnx.load(str(small_onnx))
        change(model)
        return {finding.rule for finding in lint(model)}

    def cast_one_input(model: Any) -> None:
        node = next(node for node in model.graph.node if node.name == "/model/decoder/layers.0/Add")
        half = onnx.helper.make_node("Cast", [node.input[0]], ["half"], to=TensorProto.FLOAT16)
        node.input[0] = "half"
        model.graph.node.insert(list(model.graph.node).index(node), half)

    def unsort(model: Any) -> None:
        for node in model.graph.node:
            if node.op_type == "TopK":
                del node.attribute[:]
                node.attribute.append(onnx.helper.make_attribute("sorted", 0))

    def open_size(model: Any) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"

    assert findings(lambda model: None) == set()
    assert "strong-typing" in findings(cast_one_input)
    assert findings(unsort) == {"topk"}
    assert "dynamic-axes" in findings(open_size)


def test_what_several_nodes_have_is_one_line_with_their_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "grid.onnx"
    nodes = " ".join(f"y{i} = GridSample(x, p)" for i in range(4))
    outputs = ", ".join(f"float[1,4,6,6] y{i}" for i in range(4))
    onnx.save(_model(f"({MAP} x, {PAIRS} p) => ({outputs}) {{ {nodes} }}", 17), path)
    findings = lint_file(path)
    assert len({finding.where for finding in findings}) == len(findings) > 2, "Python names every node"
    assert main(["--lint", str(path)]) == 0
    line, total = capsys.readouterr().out.splitlines()
    assert line.startswith(f"warning: {findings[0].where} and {len(findings) - 1} more: 10.14 and 11.1 computed")
    assert f"0 errors, {len(findings)} warnings;" in total


def test_findings_of_other_rules_or_messages_stay_apart() -> None:
    def at(where: str, message: str = "wrong", rule: str = "topk") -> Finding:
        return Finding(rule, "error", where, message, "docs")

    found = [at("a"), at("b", "other"), at("c"), at("d", rule="resize"), at("e")]
    assert merged(found) == [at("a and 2 more"), at("b", "other"), at("d", rule="resize")]
    assert merged([]) == []


def test_the_command_prints_findings_and_fails_on_errors(
    small_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--lint", str(small_onnx)]) == 0
    assert f"0 errors, 0 warnings; {len(RULES)} rules were checked" in capsys.readouterr().out
    broken = tmp_path / "broken.onnx"
    _, text, opset = BROKEN["topk"]
    onnx.save(_model(text, opset), broken)
    assert main(["--lint", str(broken)]) == 1
    assert "K is 4000; at most 3840 are supported" in capsys.readouterr().out
    (tmp_path / "text.onnx").write_text("no model")
    assert main(["--lint", str(tmp_path / "text.onnx")]) == 2
    assert "is not a valid ONNX model" in capsys.readouterr().err
    with pytest.raises(ArtifactError, match="none.onnx"):
        lint_file(tmp_path / "none.onnx")
