"""rtdetr-bench roofline: GPUs, parts, precision."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import pytest

from graphs import graph, half, product
from rtdetr_bench import RooflineOptions, study_roofline
from rtdetr_bench.roofline.estimate import estimate, estimate_graph
from rtdetr_bench.roofline.everywhere import in_fp16, is_postprocessing
from rtdetr_bench.roofline.factors import IDEAL, Factors, fitted_factors
from rtdetr_bench.roofline.fusion import fuse
from rtdetr_bench.roofline.gpus import GPUS, RATES, find_gpu
from rtdetr_bench.roofline.graph import read_graph
from rtdetr_bench.roofline.model_parts import module_of, part_of, parts_of
from rtdetr_bench.roofline.precision_cost import measure_precision
from rtdetr_deploy import OptionError

T4 = GPUS["t4"]


def test_a_kernel_takes_the_longer_of_its_two_times_and_its_launch() -> None:
    flops, moved = 2 * 1024**3, 3 * 1024 * 1024 * 2
    compute, memory = flops / 65e9, moved / 320e6
    found = estimate(product(), T4, factors=Factors(0.5, 0.8, 6.0))
    assert found.bound == pytest.approx(max(compute, memory))
    assert found.milliseconds == pytest.approx(max(compute / 0.5, memory / 0.8) + 0.006)
    copied = estimate(graph("float16[64] x", "float16[64] y", "y = Relu(x)"), T4, factors=Factors(0.5, 0.8, 6.0))
    assert copied.milliseconds == pytest.approx(256 / 320e6 / 0.8 + 0.006)
    single = estimate(product("float32"), T4, factors=IDEAL)
    assert single.milliseconds == pytest.approx(flops / 8.1e9)


def test_factors_of_the_fit_are_what_is_used_without_others() -> None:
    model = product()
    assert estimate(model, T4).milliseconds == estimate(model, T4, factors=fitted_factors()).milliseconds


def test_gpus_have_sources_and_plausible_rates() -> None:
    for gpu in GPUS.values():
        assert "sheet" in gpu.source or "whitepaper" in gpu.source
        assert gpu.fp32 <= gpu.fp16_vector < gpu.fp16 < gpu.int8 <= 2.1 * gpu.fp16
    assert find_gpu("T4") is T4


def test_another_gpu_is_given_by_its_numbers(tmp_path: Path) -> None:
    content = {"name": "mine", "fp32": 1, "fp16": 8.5, "fp16_vector": 2, "int8": 16, "bandwidth": 100}
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(content))
    assert (find_gpu(str(file)).name, find_gpu(str(file)).fp16) == ("mine", 8.5)
    for name in RATES:
        for value in (0, -1, "fast", None, True):
            file.write_text(json.dumps({**content, name: value}))
            with pytest.raises(OptionError, match=f"`gpu`: {name} is {value!r}, expected a number above 0"):
                find_gpu(str(file))
    for name in ("name", "source"):
        file.write_text(json.dumps({**content, name: 5}))
        with pytest.raises(OptionError, match=f"`gpu`: {name} is 5, expected text"):
            find_gpu(str(file))
    for unknown in ("t5", "", "."):
        with pytest.raises(
            OptionError, match=f"`gpu` is '{unknown}', expected one of t4, l4, a10, orin-nx, h100, or a .json"
        ):
            find_gpu(unknown)
    with pytest.raises(OptionError, match="none.json does not exist"):
        find_gpu(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a JSON file: Expecting"),
        ("[]", "is not a JSON object of name, fp32, fp16, fp16_vector, int8, bandwidth, source"),
        (
            '{"name": "a", "fp32": 1}',
            "lacks fp16, fp16_vector, int8, bandwidth; expected name, fp32, .*may be left out",
        ),
        (
            '{"name": "a", "tf32": 1, "fp32": 1, "fp16": 1, "fp16_vector": 1, "int8": 1, "bandwidth": 1}',
            "has .*: tf32;",
        ),
        (
            '{"name": "a", "fp8": 1}',
            "lacks fp32, fp16, fp16_vector, int8, bandwidth, and has unknown keys: fp8; expected",
        ),
    ],
)
def test_a_gpus_file_is_told_what_it_lacks_or_has_too_much(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.json"
    file.write_text(text)
    with pytest.raises(OptionError, match=f"^`gpu`: mine.json {message}"):
        find_gpu(str(file))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("/preprocess/Cast", "input"),
        ("cast of images", "input"),
        ("/model/backbone/conv1/conv1_1/conv1_1.0/Conv", "backbone"),
        ("/model/encoder/encoder.0/layers.0/norm1/LayerNormalization", "encoder"),
        ("/model/decoder/input_proj.0/input_proj.0.0/Conv", "selection"),
        ("/model/decoder/query_selection/enc_bbox_head/layers.0/MatMul", "selection"),
        ("/model/decoder/Concat", "selection"),
        ("/model/decoder/layers.2/cross_attn/sampler/Gather", "decoder layer 2"),
        ("/model/decoder/decoder/layers.1/self_attn/Gemm", "decoder layer 1"),
        ("/model/decoder/query_pos_head/layers.1_1/MatMul", "decoder layer 1"),
        ("/model/decoder/query_pos_head/layers.0/MatMul", "decoder layer 0"),
        ("/model/decoder/query_pos_head_2/Relu", "decoder layer 2"),
        ("/model/decoder/reference_box/Sigmoid", "decoder layer 0"),
        ("/model/decoder/dec_bbox_head.4/layers.0/MatMul", "decoder layer 4"),
        ("/model/decoder/decoder/dec_score_head.5/Add", "decoder layer 5"),
        ("/model/decoder/refinement_3/Add", "decoder layer 3"),
        ("/postprocess/TopK", "postprocessing"),
        ("/behind/TopK", "postprocessing"),
        ("/model.7/cv1/conv/Conv", "model.7"),
        ("node_Reshape_20", None),
    ],
)
def test_parts_are_told_by_names(name: str, part: str | None) -> None:
    assert part_of(name) == part


def test_parts_of_an_export_are_those_of_the_model_and_the_sampler_is_in_its_layers(half_onnx: Path) -> None:
    found = study_roofline(RooflineOptions(half_onnx, (half_onnx,), "l4", 2))
    first, second = found.models
    names = [part.name for part in first.parts]
    parts = ["backbone", "encoder", "selection", "decoder layer 0", "decoder layer 1", "postprocessing"]
    assert [name for name in names if name != "input"] == parts
    for model in (first, second):
        assert sum(part.milliseconds for part in model.parts) == pytest.approx(model.estimate.milliseconds)
        assert sum(part.bound for part in model.parts) == pytest.approx(model.estimate.bound)
    for part in first.parts:
        assert (0 < part.sampler < part.milliseconds) == part.name.startswith("decoder layer")
    assert first.precision.casts == second.precision.casts > 0
    modules = [one.module for one in first.precision.islands]
    assert len(modules) == len(set(modules)) > 0
    assert not any(re.search(r"\.\d", module) for module in modules)  # alike ones are one


def test_kernels_without_a_name_belong_where_those_before_them_do() -> None:
    nodes = "a = Conv<kernel_shape=[1,1]>(x, w) p = MaxPool<kernel_shape=[1,1]>(a) y = MaxPool<kernel_shape=[1,1]>(p)"
    model = graph("float16[1,8,4,4] x", "float16[1,8,4,4] y", nodes, w=half(8, 8, 1, 1))
    for node, name in zip(model.graph.node, ("", "/model/backbone/pool/MaxPool", "anything"), strict=True):
        node.name = name
    kernels = fuse(read_graph(model))
    assert parts_of(kernels) == ("other", "backbone", "backbone")
    assert [module_of(kernel) for kernel in kernels] == ["other", "backbone/pool", "other"]


def test_an_island_costs_what_it_takes_more_than_in_fp16() -> None:
    nodes = "f = Cast<to=1>(x) c = MatMul(f, w) h = Cast<to=10>(c) y = MatMul(h, v)"
    model = graph("float16[256,256] x", "float16[256,256] y", nodes, w=half(256, 256).astype("f4"), v=half(256, 256))
    for node, name in zip(
        model.graph.node,
        ("cast_/model/a/x_fp32", "/model/a/b.3/MatMul", "cast_/model/a/y_fp16", "/model/c/MatMul"),
        strict=True,
    ):
        node.name = name
    factors = Factors(0.5, 0.8, 5.0)
    now = estimate(model, T4, factors=factors)
    cost = measure_precision(now, factors)
    fast = estimate_graph(in_fp16(now.graph), T4, factors)
    assert (cost.casts, cost.cast_kernels, len(fast.timed)) == (2, 2, 2)
    assert cost.in_fp16 == fast.milliseconds
    assert sum(one.cost for one in cost.islands) == pytest.approx(now.milliseconds - fast.milliseconds)
    assert {(one.module, one.casts, one.fp32) for one in cost.islands} == {("a/b.*", 0, True), ("a", 2, True)}
    assert not cost.single
    single = estimate(product("float32"), T4, factors=factors)
    assert measure_precision(single, factors).islands == ()
    assert measure_precision(single, factors).single


def test_the_postprocessing_stays_in_fp32_in_the_graph_in_fp16() -> None:
    nodes = "c = MatMul(x, w) s = Softmax(c) n = Neg(s) y = MatMul(n, w)"
    model = graph("float[256,256] x", "float[256,256] y", nodes, w=half(256, 256).astype("f4"))
    names = ("/model/a/MatMul", "/postprocess/Softmax", "/postprocess/Neg", "/model/b/MatMul")
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    converted = in_fp16(read_graph(model), is_postprocessing)
    assert [(one.operator, one.inputs[0].kind, one.outputs[0].kind) for one in converted.operations] == [
        ("Cast", "float32", "float16"),
        ("MatMul", "float16", "float16"),
        ("Cast", "float16", "float32"),
        ("Softmax", "float32", "float32"),
        ("Neg", "float32", "float32"),
        ("Cast", "float32", "float16"),
        ("MatMul", "float16", "float16"),
    ]
    written = [name for one in converted.operations for name in (value.name for value in one.outputs)]
    assert len(written) == len(set(written))
    for before, after in pairwise(converted.operations):  # each reads what the one before it wrote
        assert after.inputs[0].name == before.outputs[0].name
    factors = Factors(0.5, 0.8, 5.0)
    expected = estimate_graph(converted, T4, factors).milliseconds
    assert measure_precision(estimate(model, T4, factors=factors), factors).in_fp16 == expected


def test_an_int8_graph_has_its_parts_and_moves_fewer_bytes(small_options: Any) -> None:
    pytest.importorskip("torch")
    from rtdetr_export.pipeline import trace_checkpoint
    from rtdetr_export.precision.int8 import find_quantizable, quantize
    from rtdetr_export.simplify import serialize

    traced = trace_checkpoint(small_options("roofline.onnx", layers=1))
    full = estimate(onnx.load_from_string(serialize(traced.graph, {}, "")), T4)
    nodes = find_quantizable(traced.graph, traced.placement)
    quantize(traced.graph, nodes, {name: 0.05 for node in nodes for name in node.quantized_values})
    int8 = estimate(onnx.load_from_string(serialize(traced.graph, {}, "")), T4)
    parts = [set(parts_of([item.kernel for item in found.timed])) for found in (full, int8)]
    assert parts[0] == parts[1] >= {"backbone", "encoder", "selection", "decoder layer 0", "postprocessing"}
    flops = [sum(sum(item.kernel.flops.values()) for item in found.timed) for found in (full, int8)]
    assert flops[0] == flops[1]
    assert sum(item.kernel.flops.get("int8", 0.0) for item in int8.timed) > 0.5 * flops[1]
    weights = [
        sum(value.bytes for item in found.timed for value in item.kernel.operations[0].inputs if value.constant)
        for found in (full, int8)
    ]
    assert weights[1] < 0.6 * weights[0]
    moved = [sum(item.kernel.read + item.kernel.written for item in found.timed) for found in (full, int8)]
    assert moved[1] < moved[0]
    cost = measure_precision(int8, fitted_factors())
    assert (cost.single, cost.casts) == (True, 0)
    assert cost.in_fp16 < int8.milliseconds
