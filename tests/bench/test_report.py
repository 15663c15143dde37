"""The page: self-contained, right in both colour schemes, and shown by a real browser where there is one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import slow_except

pytest.importorskip("plotly")

from plotly import graph_objects

from browser import needs_browser, take_picture
from report_content import HOSTILE, ablation_study, all_results, model_row, precision_study, profile_study, sweep
from rtdetr_bench.cli import main
from rtdetr_bench.models.timed_model import SPANS
from rtdetr_bench.report.page import SECTIONS, write_report
from rtdetr_bench.report.plot import COLORS
from rtdetr_bench.report.sections.decoder import plot_decoder, plot_encoders
from rtdetr_bench.report.sections.latency import plot_accuracy, plot_spans
from rtdetr_bench.results import read_results
from rtdetr_deploy import OptionError
from rtdetr_deploy.evaluate.published import SOURCE, published_decoder

BROWSER_FILES = Path(__file__).resolve().parents[2] / "benchmarks" / "rtdetr_bench" / "report" / "browser"
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Elements(HTMLParser):
    """Every element of a page in order, with attributes and text; fails where one is not closed as it was opened."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[tuple[str, list[str]]] = []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))
        if tag not in VOID:
            self.open.append((tag, self.found[-1][2]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.open[-1][1].append(data)

    def plots(self) -> list[dict[str, Any]]:
        """Return what the page's script draws."""
        return [json.loads("".join(told)) for _, given, told in self.found if given.get("type") == "application/json"]


def everything() -> list[dict[str, Any]]:
    return [all_results(), sweep(), precision_study(), ablation_study(), profile_study()]


def test_the_page_is_one_file_that_fetches_nothing(tmp_path: Path) -> None:
    write_report(tmp_path / "a.html", everything())
    text = (tmp_path / "a.html").read_text()
    elements = Elements(text)
    policy = next(given["content"] for tag, given, _ in elements.found if "http-equiv" in given)
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy
    for tag, given, _ in elements.found:
        assert "src" not in given
        assert tag not in ("link", "img", "iframe", "object")
        assert tag == "a" or "href" not in given
        assert not any(name.startswith("on") for name in given)
    scripts = ["".join(told) for tag, given, told in elements.found if tag == "script" and not given]
    assert scripts == [(BROWSER_FILES / name).read_text() for name in ("tables.js", "labels.js", "plots.js")]
    assert "prefers-color-scheme: dark" in text
    assert len(text) < 2.5e6
    write_report(tmp_path / "b.html", everything())
    assert (tmp_path / "b.html").read_text() == text


def test_the_page_says_when_how_and_on_what_it_was_measured_and_what_it_weighs(tmp_path: Path) -> None:
    write_report(tmp_path / "a.html", everything())
    text = (tmp_path / "a.html").read_text()
    for words in (
        "Measured 2026-11-24 06:54:02 UTC on EPYC, 2 cores", "40 rounds.", "minimum of 3 rounds", "60 rounds.",
        "15 rounds.", "rtdetr-bench --engine &#x27;my model.onnx&#x27;", "Python 3.11, numpy 2",
        "1.200 [1.100, 1.300]", SOURCE[1:], "load 1.5", "What NMS costs", "D_S5", "8.12", "a guess",
        f"One file of {len(text) / 1e6:.1f} MB that needs no network", "plotly.js",
    ):  # fmt: skip
        assert words in text, words


def test_what_results_hold_is_never_markup(tmp_path: Path) -> None:
    write_report(tmp_path / "a.html", everything())
    text = (tmp_path / "a.html").read_text()
    assert escape(HOSTILE) in text
    assert "<script>alert" not in text
    assert "<i>INT8" not in text
    for plot in Elements(text).plots():
        told = json.dumps(plot["layout"]["annotations"]) + json.dumps([plot["labels"], plot["traces"]])
        assert not re.search(r"<(?!b>|/b>|br>)", told)  # plotly.js reads tags in texts


def test_headings_have_an_id_each_and_the_contents_lead_to_them(tmp_path: Path) -> None:
    write_report(tmp_path / "a.html", [all_results(), all_results()])
    found = Elements((tmp_path / "a.html").read_text()).found
    ids = [given["id"] for tag, given, _ in found if "id" in given]
    assert len(set(ids)) == len(ids)
    heads = [f"#{given['id']}" for tag, given, _ in found if tag == "h2"]
    assert heads == [given["href"] for tag, given, _ in found if tag == "a"]
    assert len(heads) == 2 * 6 + 1
    assert "#scenarios-2" in heads
    assert all(given.get("aria-label") for _, given, _ in found if given.get("role") in ("img", "region"))
    assert [tag for tag, _, _ in found].count("h1") == 1


def test_plots_are_what_plotly_knows_and_have_nothing_in_common_with_published_ones(tmp_path: Path) -> None:
    write_report(tmp_path / "a.html", everything())
    plots = Elements((tmp_path / "a.html").read_text()).plots()
    assert len(plots) == 20
    for plot in plots:
        layout = json.loads(re.sub(r'"@\w+"', '"#123456"', json.dumps(plot["layout"])))
        traces = json.loads(re.sub(r'"@\w+"', '"#123456"', json.dumps(plot["traces"])))
        graph_objects.Figure(traces, layout)  # refuses what plotly.js does not know
        hollow = [
            "open" in str(trace.get("marker", {}).get("symbol"))
            for trace in traces
            if trace.get("name") != "recommended"
        ]
        assert all(hollow) or not any(hollow)


def test_published_points_have_a_panel_of_their_own_once_and_only_beside_measured_ones(tmp_path: Path) -> None:
    assert [trace["name"] for trace in plot_accuracy(all_results()["comparison"]["models"]).traces] == ["ONNX Runtime"]
    write_report(tmp_path / "a.html", [all_results(), all_results()])
    assert (tmp_path / "a.html").read_text().count('"name":"YOLO + NMS"') == 1
    alone = all_results()
    alone["comparison"]["models"][0]["AP"] = None
    write_report(tmp_path / "a.html", [alone])
    assert "YOLO + NMS" not in (tmp_path / "a.html").read_text()


@pytest.mark.parametrize("box", ["#f6f7f9", "#1c2028"])
@pytest.mark.parametrize("color", COLORS)
def test_colors_of_plots_are_told_apart_from_the_page(color: str, box: str) -> None:
    assert box in (BROWSER_FILES / "page.css").read_text()
    one, other = sorted((_luminance(color), _luminance(box)))
    assert (other + 0.05) / (one + 0.05) >= 3.0  # WCAG 2.2, 1.4.11


def _luminance(color: str) -> float:
    values = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_reports_are_made_of_stored_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = all_results()
    files = []
    for index, name in enumerate(("comparison", "nms")):
        files.append(tmp_path / f"{index}.json")
        files[-1].write_text(json.dumps({**content, **dict.fromkeys(set(SECTIONS) - {name})}))
    command = ["report", *map(str, files), "--output", str(tmp_path / "a.html")]
    assert main(command) == 0
    text = (tmp_path / "a.html").read_text()
    assert text.count("on EPYC, 2 cores") == 2  # each result says where it was measured
    assert "What NMS costs" in text
    assert "Encoders" not in text
    with pytest.raises(SystemExit):
        main(command[:3])
    assert "the following arguments are required: --output" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 2, "machine": {}}', "[" * 100_000, '{"schema": NaN}', "\0"])
def test_files_that_hold_no_results_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(OptionError, match=r"a.json"):
        read_results(path)
    with pytest.raises(OptionError, match=r"none.json does not exist"):
        read_results(tmp_path / "none.json")


def test_results_of_schema_3_are_read_in_the_words_of_today(tmp_path: Path) -> None:
    """Then "decode" was to load an image file, and what is called decode now was "postprocess"."""
    new, old = all_results(), all_results()
    spans = {"load": "decode", "prepare": "resize", "decode": "postprocess"}
    new["comparison"]["models"][0]["milliseconds"]["load"] = dict.fromkeys(("p50", "p90", "p99", "mean", "min"), 7.0)
    new["comparison"]["models"][0]["samples"] = {"load": [7.0], "infer": [20.0], "decode": [0.5]}
    old["comparison"] = {"confidence" if key == "threshold" else key: value for key, value in new["comparison"].items()}
    old["comparison"]["models"] = [
        {
            **{"boxes_suppressed_from" if key == "nms_input_boxes" else key: value for key, value in model.items()},
            "milliseconds": {spans.get(span, span): value for span, value in model["milliseconds"].items()},
            "samples": {spans.get(span, span): value for span, value in model["samples"].items()},
        }
        for model in new["comparison"]["models"]
    ]
    for row in old["nms"]["rows"]:
        row["confidence"] = row.pop("threshold")
    flat = old["nms"].pop("rtdetr_by_threshold")
    old["nms"]["rtdetr_by_confidence"] = {
        key: {"postprocess_ms": row["decode_ms"], "AP": row["AP"]} for key, row in flat.items()
    }
    (tmp_path / "old.json").write_text(json.dumps({**old, "schema": 3}))
    (tmp_path / "new.json").write_text(json.dumps(new))
    assert read_results(tmp_path / "old.json") == {**read_results(tmp_path / "new.json"), "schema": 3}
    assert read_results(tmp_path / "old.json")["comparison"]["models"][0]["samples"]["decode"] == [0.5]


def test_the_results_that_are_kept_here_are_read(tmp_path: Path) -> None:
    folder = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
    names = (
        "latency-blood-cells",
        "nms-blood-cells",
        "latency-640",
        "decoder-blood-cells",
        "decoder-r50",
        "encoder-r50",
    )
    for name in names:
        content = read_results(folder / f"{name}.json")
        for model in (content.get("comparison") or {}).get("models", []):
            assert set(model["samples"]) <= set(SPANS)
            assert {"prepare", "infer", "decode"} <= set(model["samples"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_pipe_without_a_writer_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(OptionError, match="is a pipe or a device"):
        read_results(tmp_path / "pipe.json")


def test_a_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="nothing to show"):
        write_report(tmp_path / "a.html", [{**all_results(), **dict.fromkeys(SECTIONS)}])
    assert not (tmp_path / "a.html").exists()


def _remove(content: Any) -> None:
    del content["comparison"]["models"][0]["milliseconds"]


def _empty(content: Any) -> None:
    content["nms"]["rows"] = []


def _text(content: Any) -> None:
    content["decoder"]["rows"][0]["ratio"] = "1.0"


def _unknown(content: Any) -> None:
    content["encoder"]["rows"][1]["name"] = "F"


def test_scenarios_keep_their_columns_and_tell_no_number_twice(tmp_path: Path) -> None:
    (one,) = all_results()["scenarios"]
    few = one | {"scenario": "SingleStream", "value": 7.25, "images_per_second": 123.0}
    flow = one | {
        "scenario": "Offline",
        "metric": "images/s",
        "value": 456.0,
        "images_per_second": 456.0,
        "samples": [],
    }
    write_report(tmp_path / "a.html", [all_results() | {"comparison": None, "scenarios": [few, flow]}])
    text = (tmp_path / "a.html").read_text().split(">Scenarios</h2>")[1].split("</table>")[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in text.split("<tr>")[1:]]
    first, last = (dict(zip(rows[0], row, strict=True)) for row in rows[1:])
    assert (first["at most"], first["batch"], first["images/s"]) == ("-", "4", "123.0")
    assert (last["value"], last["images/s"], last["images"], last["queries"]) == ("456.00", "-", "16", "1")


def _list(content: Any) -> None:
    content["comparison"] = ["models"]


def _scenario(content: Any) -> None:
    content["scenarios"][0]["value"] = "8 ms"


def _machine(content: Any) -> None:
    content["machine"] = 5


@pytest.mark.parametrize("change", [_remove, _empty, _text, _unknown, _list, _machine, _scenario])
def test_edited_results_are_one_clear_line_that_names_the_file(
    change: Callable[[Any], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = all_results()
    change(content)
    unchanged = [name for name in SECTIONS if all_results().get(name) and content[name] == all_results()[name]]
    content |= dict.fromkeys(unchanged[1:])  # sections that would be drawn before the wrong one is found
    (tmp_path / "edited.json").write_text(json.dumps(content))
    assert main(["report", str(tmp_path / "edited.json"), "--output", str(tmp_path / "a.html")]) == 2
    error = capsys.readouterr().err
    assert "edited.json is not as rtdetr-bench writes results" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "a.html").exists()


@pytest.mark.parametrize(
    "name",
    slow_except(
        [r"$\frac{x$.onnx", "_hidden.onnx", "日本.onnx", "n" * 250 + ".onnx", "a\nb<b>&.onnx"],
        r"$\frac{x$.onnx",
        "a\nb<b>&.onnx",
    ),
)
@pytest.mark.filterwarnings("error")
def test_models_may_have_any_name(name: str, tmp_path: Path) -> None:
    content = all_results()
    content["comparison"]["models"] = [model_row(name, 1.0, 0.5), model_row(name, 2.0, 0.6)]
    content |= {"nms": {**content["nms"], "model": name, "rtdetr": name}, "decoder": None, "encoder": None}
    write_report(tmp_path / "a.html", [content])
    assert escape(name) in (tmp_path / "a.html").read_text()


def test_the_number_beside_a_bar_is_the_tables_and_the_page_says_why_parts_do_not_add_up() -> None:
    model = model_row("a.onnx", 1.0, None)
    model["milliseconds"]["whole call"]["p50"] = 77.7  # the medians of its spans add up to 21.5
    assert [title["text"] for title in plot_spans([model]).annotations] == ["a: 77.7"]
    comparison = {**all_results()["comparison"], "models": [model], "pairs": []}
    assert "medians of parts do not add up" in SECTIONS["comparison"](comparison)


def test_what_all_models_share_is_said_once_beside_the_table() -> None:
    page = SECTIONS["comparison"](all_results()["comparison"])
    assert "All rows: runtime ONNX Runtime, NMS cv2, batch 1." in page
    head = page[page.index("<table>") :].partition("</tr>")[0]
    assert "runtime" not in head
    assert "precision" not in head  # no model has one
    assert "AP" in head


def test_published_ratios_are_to_as_many_layers_as_the_measured_ones(capsys: pytest.CaptureFixture[str]) -> None:
    """The paper's R50: 9.3 ms with 6 layers, 7.9 with 3, 7.0 with 1."""
    assert published_decoder(6)[3].ratio == pytest.approx(7.9 / 9.3)
    assert published_decoder(3)[3].ratio == 1.0
    assert published_decoder(3)[1].ratio == pytest.approx(7.0 / 7.9)
    assert published_decoder(3)[1].change == pytest.approx(49.1 - 52.4)
    assert list(published_decoder(3)) == [3, 2, 1]
    assert published_decoder(7) == {}
    rows = all_results()["decoder"]["rows"]
    measured, change, time, ap = plot_decoder(rows)
    assert "relative to its own 3 layers" in SECTIONS["decoder"](all_results()["decoder"])
    assert [list(plot.traces[0]["x"]) for plot in (measured, change, time, ap)] == [[3, 2, 1]] * 4
    assert time.title.startswith("Published")
    assert ap.title.startswith("Published")
    seven = [{**rows[0], "name": f"{n} layers"} for n in range(7, 0, -1)]
    assert len(plot_decoder(seven)) == 2


def test_bars_of_encoders_begin_at_zero() -> None:
    for plot in plot_encoders(all_results()["encoder"]["rows"]):
        assert plot.x["rangemode"] == "tozero"
        assert plot.x.get("type") != "log"


def test_studies_of_precision_and_ablations_are_shown(tmp_path: Path) -> None:
    write_report(tmp_path / "a.html", [precision_study(), ablation_study()])
    elements = Elements((tmp_path / "a.html").read_text())
    kept, change, times = elements.plots()
    assert [trace["x"] for trace in kept["traces"]] == [[0.25, 0.25], [0.875, 0.875]]
    assert change["traces"][0]["x"] == pytest.approx([-0.0125, -0.02])
    cells = ["".join(told) for tag, _, told in elements.found if tag in ("th", "td")]
    assert "no kernel for <b>" in cells
    assert "1:100" in cells
    assert "-0.0125" in cells
    assert "0.900 [0.800, 1.000]" in cells
    assert times["labels"] == [[1.0, 0.5, "as exported"], [0.9, 0.4875, "cascade 1:100"]]


def test_accuracy_is_shown(tmp_path: Path) -> None:
    study = {**ablation_study(), "engine": HOSTILE, "detections": 1970, "resizer": "opencv"}
    del study["rows"]
    study |= {"metrics": {"AP": 0.6301}, "per_class": {"<b>": 0.75}}
    write_report(tmp_path / "a.html", [study])
    text = (tmp_path / "a.html").read_text()
    cells = ["".join(told) for tag, _, told in Elements(text).found if tag in ("th", "td")]
    assert cells == ["metric", "value", "AP", "0.6301", "class", "AP", "<b>", "0.7500"]
    assert len(text) < 50_000  # plotly.js is left out where nothing is drawn


@needs_browser
@pytest.mark.parametrize(("scheme", "dark"), [("0", True), ("1", False)])
def test_a_browser_shows_it_light_and_dark(scheme: str, dark: bool, tmp_path: Path) -> None:
    write_report(tmp_path / "a.html", [all_results()])
    picture = tmp_path / "a.png"
    take_picture(tmp_path / "a.html", picture, (1000, 1600), f"--blink-settings=preferredColorScheme={scheme}")
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape == (1600, 1000)
    assert (np.median(pixels) < 60) is np.bool_(dark)
    ink = np.abs(pixels.astype(int) - int(np.median(pixels))) > 100
    assert 0.01 < ink.mean() < 0.3
    assert ink[:, :20].mean() < 0.01  # nothing runs out of the page
