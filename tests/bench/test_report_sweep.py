"""A sweep on the page: its front, the recommended configuration with its command, and rows that failed."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("plotly")

from report_content import HOSTILE, profile_study, sweep, sweep_row
from rtdetr_bench.cli import main
from rtdetr_bench.report.sections.profile import profile_section
from rtdetr_bench.report.sections.sweep import plot_latency, plot_throughput, sweep_section


def _named(traces: Any) -> dict[str, Any]:
    return {trace["name"]: trace for trace in traces}


def test_a_sweeps_file_is_read_and_one_that_was_edited_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps(sweep()))
    command = ["report", str(tmp_path / "sweep.json"), "--output", str(tmp_path / "a.html")]
    assert main(command) == 0
    text = (tmp_path / "a.html").read_text()
    assert "Sweep: r50.pth" in text
    assert "Published" not in text
    assert "Measured on EPYC" in text
    (tmp_path / "sweep.json").write_text(json.dumps({**sweep(), "limits": None}))
    capsys.readouterr()
    assert main(command) == 2
    assert "sweep.json is not as rtdetr-bench writes results" in capsys.readouterr().err


def test_the_recommendation_stands_first_with_the_lines_that_make_and_run_it() -> None:
    page = sweep_section(sweep())
    chosen = sweep()["rows"][5]
    told = page[: page.index("</p>")]
    assert "within 90 ms &amp; &lt;most&gt; accurate" in told
    assert escape(chosen["export_command"]) in told
    assert escape(chosen["run_hint"]) in told
    assert "Limits (dashed): budget 90 ms." in page
    assert "within 0.005 AP of the best" not in page
    usual = {"budget_ms": None, "min_ap": None, "within": 0.005}
    assert "Limits: within 0.005 AP of the best." in sweep_section({**sweep(), "limits": usual})
    nothing = sweep_section({**sweep(), "recommended": None, "recommendation": "Nothing takes less than 1 ms."})
    assert "Nothing takes less than 1 ms.</p>" in nothing
    assert "recommended</td>" not in nothing


def test_colors_tell_runtimes_and_arithmetics_shapes_tell_precisions() -> None:
    traces = _named(plot_latency(sweep()).traces)
    fp32, bf16 = traces["openvino fp32, fp32 file"]["marker"], traces["openvino bf16, fp32 file"]["marker"]
    int8 = traces["openvino bf16, int8 file"]["marker"]
    assert fp32["color"] != bf16["color"] == int8["color"]
    assert fp32["symbol"] == bf16["symbol"] != int8["symbol"]
    assert sum(len(traces[name]["x"]) for name in traces if name.endswith("file")) == 24
    (text, *_) = traces["openvino bf16, int8 file"]["hovertext"]
    for words in ("layers: 1", "queries: 100", "size: 640x640", "runtime: openvino", "AP: 0.55", "MB: 80.0"):
        assert words in text


def test_the_front_goes_up_with_time_and_the_recommended_point_is_ringed_and_labelled_first() -> None:
    study = sweep()
    plot = plot_latency(study)
    front, ring = _named(plot.traces)["front"], _named(plot.traces)["recommended"]
    assert len(front["x"]) == 12
    assert front["x"] == sorted(front["x"])
    assert front["y"] == sorted(front["y"])
    assert (ring["x"], ring["y"]) == ([study["rows"][5]["single_stream_p90_ms"]], [study["rows"][5]["AP"]])
    assert (plot.labels[0].x, plot.labels[0].text) == (ring["x"][0], "l1 q300")
    assert plot.x["type"] == "log"  # 10 to 120 ms
    (budget,) = plot.shapes
    assert (budget["x0"], budget["x1"], budget["yref"]) == (90.0, 90.0, "paper")
    wanted = {**study, "limits": {**study["limits"], "min_ap": 0.6}}
    (least,) = plot_throughput(wanted).shapes
    assert (least["y0"], least["y1"], least["xref"]) == (0.6, 0.6, "paper")


def test_each_plot_and_the_table_show_the_front_of_its_own() -> None:
    study = sweep()
    for row in study["rows"][:-1]:
        row["offline_front"] = row["queries"] == 100
    latency, throughput = _named(plot_latency(study).traces)["front"], _named(plot_throughput(study).traces)["front"]
    few = [row for row in study["rows"][:-1] if row["queries"] == 100]
    assert sorted(throughput["x"]) == sorted(row["offline_images_per_second"] for row in few)
    assert sorted(latency["y"]) == sorted(row["AP"] for row in study["rows"][:-1] if row["queries"] == 300)
    page = sweep_section(study)
    assert page.count(">latency</td>") == 11
    assert page.count(">recommended, latency</td>") == 1
    assert page.count(">throughput</td>") == 12
    assert ">latency / throughput</td>" in sweep_section(sweep())


def test_what_was_timed_briefly_alone_has_a_note_and_no_point() -> None:
    study = sweep()
    speeds = dict.fromkeys(("single_stream_p90_ms", "multi_stream_p99_ms", "offline_images_per_second"))
    study["rows"][0] |= speeds | {"brief_median_ms": 9.5, "note": "clearly beaten in latency by x", "front": False}
    traces = _named(plot_latency(study).traces)
    assert sum(len(traces[name]["x"]) for name in traces if name.endswith("file")) == 23
    assert "clearly beaten in latency by x (median of a brief measurement: 9.5 ms)</td>" in sweep_section(study)


def test_what_failed_has_its_reason_and_is_in_no_plot() -> None:
    page = sweep_section(sweep())
    head, _, failed = page.partition("<h3>Failed</h3>")
    assert f"<td>{escape(HOSTILE)}" not in head
    assert escape("no room for </script>") in failed
    only = {**sweep(), "rows": sweep()["rows"][-1:], "recommended": None}
    page = sweep_section(only)
    assert 'class="plot"' not in page
    assert escape("no room for </script>") in page


def test_one_row_without_figures_of_speed_is_shown_in_the_table_alone() -> None:
    row = {**sweep_row(3, 300, ("fp32", "onnxruntime", "fp32"), 10.0, 0.5), "single_stream_p90_ms": None}
    study = {**sweep(), "rows": [row], "recommended": None}
    assert not plot_latency(study).traces
    assert len(plot_throughput(study).traces) == 1
    page = sweep_section(study)
    assert "All rows: layers 3, queries 300, size 640x640, precision fp32" in page
    assert "0.5000" in page


def test_a_profile_shows_parts_operators_and_the_nodes_that_take_longest() -> None:
    page = profile_section(profile_study()["profile"])
    assert "60.0 GFLOP take 52.0 ms at that peak, the floor: 72 % of the peak is reached." in page
    assert escape(HOSTILE) in page
    assert ">node 29<" in page
    assert ">node 5<" not in page  # 20 of 30
    bare = {**profile_study()["profile"], "floor_ms": None, "gflops": None, "reached": None}
    assert "GFLOP take" not in profile_section(bare)
