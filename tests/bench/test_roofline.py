"""rtdetr-bench roofline: GPUs, parts, precision, the command, and the fit on published times."""

from __future__ import annotations

import json
import re
from dataclasses import replace
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
from rtdetr_bench.report.roofline import DECODER, MAX_PARTS, group_parts
from rtdetr_bench.roofline import fit as fitting
from rtdetr_bench.roofline.estimate import estimate, estimate_graph
from rtdetr_bench.roofline.everywhere import in_fp16
from rtdetr_bench.roofline.factors import IDEAL, Factors, fitted_factors, stored_fit
from rtdetr_bench.roofline.fit import FITTED_ON, Workload, find_kernels, fit_factors, published_figures
from rtdetr_bench.roofline.fusion import fuse
from rtdetr_bench.roofline.gpus import GPUS, RATES, find_gpu
from rtdetr_bench.roofline.graph import read_graph
from rtdetr_bench.roofline.model_parts import module_of, part_of, parts_of
from rtdetr_bench.roofline.precision_cost import measure_precision
from rtdetr_bench.roofline.study import Roofline, format_roofline
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
    for text in ("{", "[]", json.dumps({**content, "colour": 1}), "{}"):
        file.write_text(text)
        with pytest.raises(OptionError, match=r"mine.json is not a JSON object of name, fp32, .*bandwidth, source"):
            find_gpu(str(file))
    with pytest.raises(OptionError, match="`gpu` is 't5', expected one of t4, l4, a10, orin-nx, h100, or a .json"):
        find_gpu("t5")
    with pytest.raises(OptionError, match="none.json does not exist"):
        find_gpu(str(tmp_path / "none.json"))


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
    single = estimate(_product("float32"), T4, factors=factors)
    assert measure_precision(single, factors).islands == ()


def test_the_command_prints_parts_and_islands_and_writes_them(
    small_onnx: Path, half_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, page = tmp_path / "a.json", tmp_path / "a.html"
    command = ["roofline", "--engine", str(half_onnx), "--against", str(small_onnx), "--gpu", "t4"]
    assert main([*command, "--json", str(target), "--report", str(page)]) == 0
    text = capsys.readouterr().out
    for words in (
        "Tesla T4: an estimate, not a measurement",
        "decoder layer 1",
        "of it the sampler",
        "lower bound",
        "with FP16 everywhere",
        "half.onnx: FP32 and Casts",
    ):
        assert words in text
    assert "small.onnx: FP32 and Casts" not in text  # all of it is FP32
    assert not any(line != line.rstrip() for line in text.splitlines())
    found = json.loads(target.read_text())["roofline"]
    assert found["gpu"]["name"] == "Tesla T4"
    fast, slow = found["models"]
    assert fast["bound"] < fast["milliseconds"] < slow["milliseconds"]
    # Their samplers are written differently: with FP16 in the file the weighted sum fuses with the gather.
    assert fast["fp16_everywhere"] < slow["fp16_everywhere"] < 1.25 * fast["fp16_everywhere"]
    html = page.read_text()
    assert "Estimated cost on Tesla T4" in html
    assert "nothing was run" in html
    assert "Computed 20" in html
    assert "Measured 20" not in html
    assert html.count("<svg") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--engine {model} --gpu t5", "--gpu is 't5', expected one of t4, l4"),
        ("--engine {model} --batch 2", "--batch is 2, but the model takes 1; leave it out"),
        ("--engine {model} --batch 0", "--batch is 0, expected different numbers from 1 to 1024"),
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
    assert "3 others" in text
    assert "xxxxxxxxxx..xxxxxxxxxx" in text


def test_a_plot_has_few_parts_and_loses_no_time() -> None:
    parts: list[dict[str, Any]] = [{"name": f"model.{index}", "milliseconds": 1.0 + index} for index in range(20)]
    layers: list[dict[str, Any]] = [{"name": f"decoder layer {index}", "milliseconds": 2.0} for index in range(3)]
    grouped = group_parts([{"parts": parts}, {"parts": layers}])
    assert len(grouped) == MAX_PARTS
    assert sum(values[0] for values in grouped.values()) == sum(part["milliseconds"] for part in parts)
    assert sum(values[1] for values in grouped.values()) == 6.0
    assert group_parts([{"parts": layers}]) == {DECODER: [6.0]}


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
