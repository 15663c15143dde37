"""rtdetr-bench roofline: the command, its tables, the plot, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import onnx
import pytest

from graphs import graph, half
from rtdetr_bench import RooflineOptions, study_roofline
from rtdetr_bench.cli import main
from rtdetr_bench.report.sections.roofline import bar_places, plot_roofline, roofline_section
from rtdetr_bench.roofline.factors import fitted_factors, stored_fit
from rtdetr_bench.roofline.gpus import GPUS
from rtdetr_bench.roofline.study import Roofline, format_roofline
from rtdetr_bench.roofline.tables import DECODER, MAX_BESIDE, MAX_PARTS, REST, group_parts, tables_of
from rtdetr_deploy import ArtifactError

T4 = GPUS["t4"]


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
    assert html.count('class="plot"') == 1
    assert _cells(html) == [cell for table in tables_of(found) for row in table.rows for cell in row]


def _cells(html: str) -> list[str]:
    return [unescape(cell) for cell in re.findall(r"<(?:td|th scope=.row.)[^>]*>(.*?)</t[dh]>", html)]


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


def test_the_plot_shows_bounds_and_parts_networks(half_onnx: Path) -> None:
    (model,) = study_roofline(RooflineOptions(half_onnx)).to_json()["models"]
    plot = plot_roofline([model, {**model, "gflops": 2 * model["gflops"]}])
    bound, half_precision = plot.traces[-2:]
    assert (bound["name"], half_precision["name"]) == ("lower bound", "the same graph in FP16")
    assert bound["x"][:2] == [model["bound"]] * 2
    stacked = [trace["x"][0] for trace in plot.traces if trace["type"] == "bar"]
    assert sum(stacked) == pytest.approx(model["milliseconds"], rel=1e-3)
    before, same, other = bar_places([10.0, 10.5, 30.0])
    assert other - same > same - before == 1.0
