"""rtdetr-bench roofline: GPUs, parts, precision, the command, and the fit on published times."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from conftest import shared_folder, slow_except
from graphs import graph, half
from rtdetr_bench import RooflineOptions, study_roofline
from rtdetr_bench.cli import main
from rtdetr_bench.report.roofline import roofline_section
from rtdetr_bench.roofline import fit as fitting
from rtdetr_bench.roofline.estimate import estimate, estimate_graph
from rtdetr_bench.roofline.everywhere import in_fp16, is_postprocessing
from rtdetr_bench.roofline.factors import IDEAL, Factors, fitted_factors, stored_fit
from rtdetr_bench.roofline.fit import FITTED_ON, Workload, find_kernels, fit_factors, published_figures
from rtdetr_bench.roofline.fusion import fuse
from rtdetr_bench.roofline.gpus import GPUS, RATES, find_gpu
from rtdetr_bench.roofline.graph import read_graph
from rtdetr_bench.roofline.model_parts import module_of, part_of, parts_of
from rtdetr_bench.roofline.precision_cost import measure_precision
from rtdetr_bench.roofline.study import Roofline, format_roofline
from rtdetr_bench.roofline.tables import DECODER, MAX_BESIDE, MAX_PARTS, REST, group_parts, tables_of
from rtdetr_deploy import ArtifactError, OptionError

T4 = GPUS["t4"]


def _product(kind: str = "float16") -> onnx.ModelProto:
    weights = half(1024, 1024).astype(kind)
    return graph(
        f"{kind.replace('32', '')}[1024,1024] x",
        f"{kind.replace('32', '')}[1024,1024] y",
        "y = MatMul(x, w)",
        w=weights,
    )


def test_a_kernel_takes_the_longer_of_its_two_times_and_its_launch() -> None:
    flops, moved = 2 * 1024**3, 3 * 1024 * 1024 * 2
    compute, memory = flops / 65e9, moved / 320e6
    found = estimate(_product(), T4, factors=Factors(0.5, 0.8, 6.0))
    assert found.bound == pytest.approx(max(compute, memory))
    assert found.milliseconds == pytest.approx(max(compute / 0.5, memory / 0.8) + 0.006)
    copied = estimate(graph("float16[64] x", "float16[64] y", "y = Relu(x)"), T4, factors=Factors(0.5, 0.8, 6.0))
    assert copied.milliseconds == pytest.approx(256 / 320e6 / 0.8 + 0.006)
    single = estimate(_product("float32"), T4, factors=IDEAL)
    assert single.milliseconds == pytest.approx(flops / 8.1e9)


def test_factors_of_the_fit_are_what_is_used_without_others() -> None:
    model = _product()
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
    single = estimate(_product("float32"), T4, factors=factors)
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


def test_the_command_prints_parts_and_islands_and_writes_them(
    small_onnx: Path, half_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, page = tmp_path / "a.json", tmp_path / "a.html"
    command = ["roofline", "--engine", str(half_onnx), "--against", str(small_onnx), "--gpu", "t4"]
    assert main([*command, "--json", str(target), "--report", str(page)]) == 0
    text = capsys.readouterr().out
    for words in (
        "Tesla T4. An estimate from the files alone, nothing was run",
        "decoder layer 1",
        "of it the sampler",
        "lower bound",
        "in FP16: the same graph with all floats in FP16 but the postprocessing's",
        "half.onnx: FP32 and Casts",
        "small.onnx: all of its floats are FP32; in FP16 the same graph would take",
        "other published times come out within",
    ):
        assert words in " ".join(text.split())
    assert "small.onnx: FP32 and Casts" not in text
    assert not any(line != line.rstrip() for line in text.splitlines())
    found = json.loads(target.read_text())["roofline"]
    assert found["gpu"]["name"] == "Tesla T4"
    fast, slow = found["models"]
    assert fast["bound"] < fast["milliseconds"] < slow["milliseconds"]
    # Their samplers are written differently: with FP16 in the file the weighted sum fuses with the gather.
    assert fast["in_fp16"] < slow["in_fp16"] < 1.25 * fast["in_fp16"]
    assert (fast["all_fp32"], slow["all_fp32"], fast["kernels"]) == (False, True, [])
    html = page.read_text()
    assert "Estimated cost on Tesla T4" in html
    assert "nothing was run" in html
    assert "Computed 20" in html
    assert "Measured 20" not in html
    assert html.count("<svg") == 1
    assert _cells(html) == [cell for table in tables_of(found) for row in table.rows for cell in row]


def _cells(html: str) -> list[str]:
    return [unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", html)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--engine {model} --gpu t5", "--gpu is 't5', expected one of t4, l4"),
        (
            "--engine {model} --batch 2",
            "--batch is 2, but the model takes 1; leave it out, or export with a dynamic batch: "
            "rtdetr-export --weights ... --batch dynamic\n",
        ),
        ("--engine {model} --batch 0", "--batch is 0, expected a number from 1 to 1024\n"),
        ("--engine {model} --top -1", "--top is -1, expected a number of kernels, 0 or more\n"),
        ("--engine {model} --gpu=", "--gpu is '', expected one of t4, l4"),
        ("--engine .", ". is a folder; name the file in it\n"),
        ("--engine {nothing}", "nothing.onnx: nothing is left to compute; its outputs depend on constants alone"),
        (
            "--engine {scalar}",
            "scalar.onnx: input x has no batch axis; expected a tensor whose first axis counts images",
        ),
        ("--engine {text}", "broken.onnx is not an ONNX model"),
        ("--engine {empty}", "empty.onnx is not an ONNX model: it holds no operations"),
        ("--engine {engine}", "model.engine is not an .onnx file; an engine's cost is that of the file"),
        ("--engine none.onnx", "none.onnx does not exist"),
    ],
)
def test_wrong_input_is_one_line(
    line: str, message: str, small_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"text": tmp_path / "broken.onnx", "empty": tmp_path / "empty.onnx", "engine": tmp_path / "model.engine"}
    files |= {"nothing": tmp_path / "nothing.onnx", "scalar": tmp_path / "scalar.onnx"}
    onnx.save(graph("float[1,4] x", "float[4] y", "y = Neg(w)", w=half(4).astype("f4")), files["nothing"])
    onnx.save(graph("float x", "float y", "y = Neg(x)"), files["scalar"])
    files["text"].write_text("not a model at all, but text that is long enough")
    files["empty"].write_bytes(onnx.ModelProto(ir_version=9).SerializeToString())
    files["engine"].write_bytes(b"x")
    assert main(["roofline", *line.format(model=small_onnx, **files).split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"rtdetr-bench: {message}")
    assert error.count("\n") == 1


def test_files_are_refused_by_the_call_too(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"a.xml is not an .onnx file"):
        study_roofline(RooflineOptions(tmp_path / "a.xml"))


def test_a_long_list_of_islands_is_cut_and_long_names_are_shortened(half_onnx: Path, tmp_path: Path) -> None:
    copy = tmp_path / f"{'x' * 40}.onnx"
    copy.write_bytes(half_onnx.read_bytes())
    (model,) = study_roofline(RooflineOptions(copy)).models
    islands = tuple(replace(model.precision.islands[0], module=f"m{index}") for index in range(15))
    model = replace(model, precision=replace(model.precision, islands=islands))
    text = format_roofline(Roofline(T4, fitted_factors(), (model,)))
    assert "m11" in text
    assert "m12" not in text
    assert re.search(r"^3 others +\+", text, re.MULTILINE)
    assert "xxxxxxxxxx..xxxxxxxxxx" in text


def test_a_plot_has_few_parts_and_loses_no_time() -> None:
    parts: list[dict[str, Any]] = [{"name": f"model.{index}", "milliseconds": 3.0 + index} for index in range(20)]
    layers: list[dict[str, Any]] = [{"name": f"decoder layer {index}", "milliseconds": 2.0} for index in range(3)]
    grouped = group_parts([{"parts": parts}, {"parts": layers}])
    assert len(grouped) == MAX_PARTS
    assert sum(values[0] for values in grouped.values()) == sum(part["milliseconds"] for part in parts)
    assert sum(values[1] for values in grouped.values()) == 6.0
    assert group_parts([{"parts": layers}]) == {DECODER: [6.0]}


def test_parts_that_hardly_cost_anything_are_the_rest() -> None:
    times = {"backbone": 3.0, "input": 0.03, "selection": 0.5, "postprocessing": 0.04}
    parts = [{"name": name, "milliseconds": time, "bound": time / 2} for name, time in times.items()]
    assert group_parts([{"parts": parts}]) == {"backbone": [3.0], "selection": [0.5], REST: [pytest.approx(0.07)]}
    assert group_parts([{"parts": parts}], "bound")[REST] == [pytest.approx(0.035)]
    alone = group_parts([{"parts": parts[:3]}])  # one small part needs no other name
    assert list(alone) == ["backbone", "input", "selection"]


def test_many_models_are_rows_and_no_line_is_wider_than_a_terminal(half_onnx: Path) -> None:
    found = study_roofline(RooflineOptions(half_onnx, (half_onnx,) * MAX_BESIDE))
    text = format_roofline(found)
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("\nmodel ") == 3
    totals, parts, bounds = list(tables_of(found.to_json()))[:3]
    assert totals.head == ("model", "all", "lower bound", "in FP16", "GFLOP", "MB moved", "kernels", "Casts")
    for table, total in ((parts, totals.rows[0][1]), (bounds, totals.rows[0][2])):
        assert len(table.rows) == MAX_BESIDE + 1
        assert sum(map(float, table.rows[0][1:])) == pytest.approx(float(total), abs=0.004)


def test_shares_and_lower_bounds_of_parts_are_shown(half_onnx: Path) -> None:
    (table, *_) = tables_of(study_roofline(RooflineOptions(half_onnx)).to_json())
    assert table.head == ("part", "half.onnx", "share", "bound")
    rows = {row[0]: row[1:] for row in table.rows}
    parts = [row for row in rows.values() if row[1]]
    assert sum(float(share.rstrip("%")) for _, share, _ in parts) == pytest.approx(100, abs=0.5)
    assert sum(float(bound) for *_, bound in parts) == pytest.approx(float(rows["lower bound"][0]), abs=0.005)


def test_kernels_that_take_longest_are_listed_with_what_they_do(half_onnx: Path) -> None:
    (model,) = study_roofline(RooflineOptions(half_onnx, top=3)).models
    times = sorted((item.estimate for item in model.estimate.timed), reverse=True)
    assert [kernel.ms for kernel in model.kernels] == times[:3]
    (every,) = study_roofline(RooflineOptions(half_onnx, top=100_000)).models
    kernels = every.to_json()["kernels"]
    assert len(kernels) == every.to_json()["kernel_count"] == len(times)
    assert set(kernels[0]) == {"nodes", "part", "flops", "read", "written", "bound", "ms"}
    assert sum(kernel["read"] + kernel["written"] for kernel in kernels) / 1e6 == pytest.approx(every.megabytes)
    assert sum(sum(kernel["flops"].values()) for kernel in kernels) / 1e9 == pytest.approx(every.gflops)
    assert {kernel["part"] for kernel in kernels} == {part.name for part in every.parts}
    nodes = [node for kernel in kernels for node in kernel["nodes"]]
    assert len(nodes) == len(set(nodes))
    text = format_roofline(Roofline(T4, fitted_factors(), (model,)))
    assert f"half.onnx: the 3 of {len(times)} kernels that take longest" in text
    assert text.count("MB written") == 1


def test_only_the_gpu_that_the_factors_were_fitted_on_has_an_error(half_onnx: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(
        json.dumps({"name": "mine", "fp32": 8, "fp16": 65, "fp16_vector": 16, "int8": 130, "bandwidth": 320})
    )
    error = stored_fit()["max_error"]
    for gpu, expected, told in (
        ("t4", error, f"come out within {100 * error:.1f} %"),
        ("orin-nx", None, "never checked on the Jetson Orin NX 16GB; no error is known"),
        (str(file), None, "never checked on the mine; no error is known"),
    ):
        found = study_roofline(RooflineOptions(half_onnx, gpu=gpu))
        assert found.to_json()["max_error"] == expected
        assert told in " ".join(format_roofline(found).split())
        assert told in " ".join(roofline_section(found.to_json()).split())


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


def test_the_search_finds_the_factors_that_times_were_made_with(half_onnx: Path, small_onnx: Path) -> None:
    """Times of different mixes of compute, bytes and kernels tell all three factors."""
    true = Factors(0.41, 0.79, 5.8)
    graphs = {
        f"{path.stem} {batch}": read_graph(onnx.load(path), batch)
        for path, batch in ((half_onnx, 1), (half_onnx, 16), (half_onnx, 64), (small_onnx, 1))
    }
    graphs["product"] = read_graph(_product("float32"))
    workloads = {name: Workload(fuse(one), T4) for name, one in graphs.items()}
    found = fit_factors(workloads, {name: one.time(true) for name, one in workloads.items()})
    assert found.compute == pytest.approx(true.compute, rel=0.01)
    assert found.bandwidth == pytest.approx(true.bandwidth, rel=0.02)
    assert found.launch == pytest.approx(true.launch, rel=0.01)
    for name, one in graphs.items():
        assert workloads[name].time(true) == pytest.approx(estimate_graph(one, T4, true).milliseconds)


def test_the_stored_fit_holds_all_published_figures_and_most_are_not_fitted_on() -> None:
    rows = {row["name"]: row for row in stored_fit()["figures"]}
    figures = {figure.name: figure for figure in published_figures()}
    assert set(rows) == set(figures)
    assert {name for name, row in rows.items() if row["fitted_on"]} == set(FITTED_ON)
    assert len(rows) == 7 + 5 + 6  # variants, depths below R50's own, encoders without its own and with C twice
    for name, row in rows.items():
        assert row["published"] == pytest.approx(figures[name].milliseconds, abs=0.006)
        assert row["bound"] < row["estimate"]
        if row["counts"]:
            assert abs(row["estimate"] / row["published"] - 1) < 0.1, name
    errors = [
        abs(row["estimate"] / row["published"] - 1) for row in rows.values() if row["counts"] and not row["fitted_on"]
    ]
    assert stored_fit()["max_error"] == pytest.approx(max(errors), abs=0.002)
    assert [name for name, row in rows.items() if not row["counts"]] == ["R50, encoder C"]


@pytest.mark.parametrize("name", slow_except([figure.name for figure in published_figures()], "R18"))
def test_the_stored_estimates_are_what_the_model_estimates(name: str) -> None:
    pytest.importorskip("torch")
    figure = next(figure for figure in published_figures() if figure.name == name)
    stored = next(row for row in stored_fit()["figures"] if row["name"] == name)
    kernels = find_kernels(figure)
    assert Workload(kernels, T4).time(fitted_factors()) == pytest.approx(stored["estimate"], abs=0.02)
    flops = sum(count for kernel in kernels for unit, count in kernel.flops.items() if unit != "fp32") / 1e9
    if figure.layers is None and figure.encoder is None:
        from rtdetr_deploy.evaluate.published import COMPLEXITY

        assert flops == pytest.approx(COMPLEXITY[figure.variant][1], rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["r18", "r50"])
def test_graphs_of_the_fit_do_the_work_of_the_released_exporters(variant: str) -> None:
    """Nodes differ (LayerNorm written out, projections one by one); FLOPs don't, and times do by less than 4 %."""
    pytest.importorskip("torch")
    model = onnx.load(shared_folder("peers") / f"released_v1_{variant}.skeleton.onnx")
    (entry,) = (prop for prop in model.metadata_props if prop.key == "random_weights")
    for name, spec in json.loads(entry.value).items():
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(spec["shape"], np.float32), name))
    released = fuse(in_fp16(read_graph(model)))
    ours = find_kernels(next(figure for figure in published_figures() if figure.name == variant.upper()))
    assert sum(kernel.flops.get("fp16", 0) for kernel in ours) == sum(
        kernel.flops.get("fp16", 0) for kernel in released
    )
    factors = fitted_factors()
    assert Workload(ours, T4).time(factors) == pytest.approx(Workload(released, T4).time(factors), rel=0.04)


def test_the_fit_is_printed_and_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels = fuse(read_graph(_product()))
    monkeypatch.setattr(fitting, "find_kernels", lambda _: kernels)
    target = tmp_path / "fit.json"
    assert fitting.main(["--output", str(target)]) == 0
    out = capsys.readouterr().out
    assert "of the peak rates" in out
    assert "rejected reading" in out
    content = json.loads(target.read_text())
    assert set(content) == set(stored_fit())
    assert Factors(**content["factors"])
    assert fitting.main([]) == 0
