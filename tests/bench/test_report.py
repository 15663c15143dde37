"""The page: self-contained, right in both colour schemes, and shown by a real browser where there is one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import slow_except

pytest.importorskip("matplotlib")

from rtdetr_bench.cli import main
from rtdetr_bench.models.timed_model import SPANS
from rtdetr_bench.report.page import SECTIONS, write_report
from rtdetr_bench.report.plots import plot_decoder, plot_encoders, plot_spans
from rtdetr_bench.results import read_results
from rtdetr_deploy import OptionError
from rtdetr_deploy.evaluate.published import published_decoder

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def _model(name: str, scale: float, ap: float | None) -> dict[str, Any]:
    def spans(value: float) -> dict[str, float]:
        return dict.fromkeys(("p50", "p90", "p99", "mean", "min"), value * scale)

    times = {"prepare": spans(1), "infer": spans(20), "decode": spans(0.5)}
    times |= {"paper's span": spans(20.5), "whole call": spans(21.5)}
    facts = {"kind": "YOLO", "runtime": "ONNX Runtime", "NMS": "cv2"}
    return {
        "name": name, "facts": facts, "batch": 1, "opened_seconds": 0.1, "memory_mb": 100.0, "warmup_calls": 6,
        "images_per_second": 40.0, "AP": ap, "milliseconds": times, "samples": {}, "nms_input_boxes": None,
    }  # fmt: skip


def _content() -> dict[str, Any]:
    """Return what `--json` writes when everything is asked for at once."""
    ratio = {"value": 1.2, "low": 1.1, "high": 1.3}
    pair = {"name": "<script>alert(1)</script>", "base": "ours.onnx", "batch": 1, "paper": ratio, "whole": ratio}
    row = {"milliseconds": {"paper's span": {"p50": 5.0}}, "AP": 0.5, "parameters_million": 20.0, "samples": {}}
    nms = [
        {
            "threshold": c,
            "iou": i,
            "milliseconds": {"cv2": 1 / c, "numpy": 2 / c},
            "slowest": 3 / c,
            "kept": 9,
            "ap": 0.5,
        }
        for c in (0.001, 0.25)
        for i in (0.5, 0.7)
    ]
    models = [_model("ours.onnx", 1.0, 0.63), _model("<script>alert(1)</script>", 1.2, None)]
    return {
        "schema": 4,
        "date": "2026-11-24T06:54:02Z",
        "command": ["rtdetr-bench", "--engine", "my model.onnx"],
        "options": {"threads": None},
        "machine": {"processor": "EPYC", "cores": 2, "system": "Linux", "python": "3.11", "packages": {"numpy": "2"}},
        "state": {"load": 0.5},
        "comparison": {
            "threshold": 0.001, "rounds": 40, "models": models, "pairs": [pair], "state": {"load": 1.5},
            "real_images": False,
        },
        "nms": {
            "model": "yolo.onnx", "images": 3, "rounds": 3, "boxes_left": {"0.001": 500.0, "0.5": 0.0}, "rows": nms,
            "rtdetr": "ours.onnx", "rtdetr_by_threshold": {"0.001": {"decode_ms": 0.1, "AP": 0.6}},
        },
        "decoder": {
            "weights": "a.pth",
            "rounds": 60,
            "rows": [{"name": f"{n} layers", "ratio": [n / 3, n / 4, n / 2], **row} for n in (3, 2, 1)],
        },
        "encoder": {
            "variant": "r50", "rounds": 15, "rows": [{"name": n, "ratio": [1.0, 0.9, 1.1], **row} for n in ("A", "E")],
        },
        "scenarios": [
            {
                "model": "<script>", "scenario": "MultiStream", "metric": "p99 ms", "value": 8.125, "bound": None,
                "samples": [8.0, 9.0], "images": 16, "batch": 4, "threads": 2, "images_per_second": 900.0,
                "doubt": "a guess",
            }
        ],
        "roofline": {
            "gpu": {"name": "Tesla T4"}, "factors": {"compute": 0.4, "bandwidth": 0.8, "launch": 5.5},
            "max_error": 0.05,
            "models": [{
                "name": "<script>alert(1)</script>", "milliseconds": 5.0, "bound": 2.0, "in_fp16": 4.0, "gflops": 9.0,
                "megabytes": 8.0, "kernel_count": 1, "casts": 3, "cast_kernels": 1, "cast_milliseconds": 0.1,
                "all_fp32": False, "parts": [{"name": "backbone", "milliseconds": 5.0, "bound": 2.0, "sampler": 0.0}],
                "kernels": [{
                    "nodes": ["<i>", "b"], "part": "backbone", "flops": {"fp16": 9e9}, "read": 1, "written": 2,
                    "bound": 2.0, "ms": 5.0,
                }],
                "islands": [{"module": "decoder/<b>", "milliseconds": 1.0, "in_fp16": 0.5, "cost": 0.5, "casts": 3}],
            }],
        },
    }  # fmt: skip


def test_the_page_is_one_file_that_fetches_nothing(tmp_path: Path) -> None:
    write_report(tmp_path / "a.html", [_content()])
    text = (tmp_path / "a.html").read_text()
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)|url\((?!#)|@import|<script|<link""", text)
    assert "prefers-color-scheme: dark" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert text.count("<svg") == 7
    assert "#010203" not in text
    assert "currentColor" in text
    for words in (
        "Measured 2026-11-24 06:54:02 UTC on EPYC, 2 cores", "40 rounds.", "minimum of 3 rounds", "60 rounds.",
        "15 rounds.", "rtdetr-bench --engine &#x27;my model.onnx&#x27;", "Python 3.11, numpy 2",
    ):  # fmt: skip
        assert words in text
    for words in (
        "1.200 [1.100, 1.300]",
        "published: T4, TensorRT FP16",
        "load 1.5",
        "What NMS costs",
        "D_S5",
        "8.12",
        "a guess",
    ):
        assert words in text
    write_report(tmp_path / "b.html", [_content()])
    assert (tmp_path / "b.html").read_text() == text


def test_reports_are_made_of_stored_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = _content()
    files = []
    for index, name in enumerate(("comparison", "nms")):
        files.append(tmp_path / f"{index}.json")
        files[-1].write_text(json.dumps({**content, **dict.fromkeys(set(SECTIONS) - {name})}))
    command = ["report", *map(str, files), "--output", str(tmp_path / "a.html")]
    assert main(command) == 0
    text = (tmp_path / "a.html").read_text()
    assert text.count("EPYC") == 2  # each result says where it was measured
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
    new, old = _content(), _content()
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
        write_report(tmp_path / "a.html", [{**_content(), **dict.fromkeys(SECTIONS)}])
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
    (one,) = _content()["scenarios"]
    few = one | {"scenario": "SingleStream", "value": 7.25, "images_per_second": 123.0}
    flow = one | {
        "scenario": "Offline",
        "metric": "images/s",
        "value": 456.0,
        "images_per_second": 456.0,
        "samples": [],
    }
    write_report(tmp_path / "a.html", [_content() | {"comparison": None, "scenarios": [few, flow]}])
    text = (tmp_path / "a.html").read_text().split("<h2>Scenarios</h2>")[1].split("</table>")[0]
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
    content = _content()
    change(content)
    unchanged = [name for name in SECTIONS if content[name] == _content()[name]]
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
    content = _content()
    content["comparison"]["models"] = [_model(name, 1.0, 0.5), _model(name, 2.0, 0.6)]
    content |= {"nms": {**content["nms"], "model": name, "rtdetr": name}, "decoder": None, "encoder": None}
    write_report(tmp_path / "a.html", [content])
    assert escape(name) in (tmp_path / "a.html").read_text()


def test_the_number_beside_a_bar_is_the_tables_and_the_page_says_why_parts_do_not_add_up() -> None:
    model = _model("a.onnx", 1.0, None)
    model["milliseconds"]["whole call"]["p50"] = 77.7  # the medians of its spans add up to 21.5
    assert re.search(r">77\.7<", plot_spans([model]))
    content = {**_content()["comparison"], "models": [model], "pairs": []}
    assert "medians of parts do not add up" in SECTIONS["comparison"](content)


def test_what_all_models_share_is_said_once_beside_the_table() -> None:
    page = SECTIONS["comparison"](_content()["comparison"])
    assert "All models: runtime ONNX Runtime, NMS cv2, batch 1." in page
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
    rows = _content()["decoder"]["rows"]
    assert "published: R50 on a T4, to its own 3 layers" in plot_decoder(rows)
    seven = [{**rows[0], "name": f"{n} layers"} for n in range(7, 0, -1)]
    assert "published" not in plot_decoder(seven)


def test_bars_of_encoders_begin_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []

    def keep(figure: Any) -> str:
        figures.append(figure)
        return ""

    monkeypatch.setattr("rtdetr_bench.report.plots._to_svg", keep)
    plot_encoders(_content()["encoder"]["rows"])
    (axes,) = figures[0].axes
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim()[0] == 0.0


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize(("scheme", "dark"), [("0", True), ("1", False)])
def test_a_browser_shows_it_light_and_dark(scheme: str, dark: bool, tmp_path: Path) -> None:
    write_report(tmp_path / "a.html", [_content()])
    picture = tmp_path / "a.png"
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,1600",
        f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}",
        f"--screenshot={picture}", (tmp_path / "a.html").as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape == (1600, 1000)
    assert (np.median(pixels) < 60) is np.bool_(dark)
    ink = np.abs(pixels.astype(int) - int(np.median(pixels))) > 100
    assert 0.01 < ink.mean() < 0.3
    assert ink[:, :20].mean() < 0.01  # nothing runs out of the page
