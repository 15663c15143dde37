"""What is around a model: the parts of a call, the stream beside the runtime alone, memory."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")

from rtdetr_bench.cli import main
from rtdetr_bench.options import PipelineOptions
from rtdetr_bench.report.sections.pipeline import pipeline_section
from rtdetr_deploy import OptionError

QUICK = ("--runs", "3", "--calls", "2", "--seconds", "0.05")


def test_the_command_tells_parts_rates_and_memory(
    dynamic_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "pipeline.json"
    options = ("--engine", str(dynamic_onnx), "--slots", "2", "--batch", "2", "--runtime", "onnxruntime")
    assert main(["pipeline", *options, *QUICK, "--json", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "2 at once, batch 2" in printed
    assert "all but infer" in printed
    found = json.loads(target.read_text())["pipeline"]
    assert set(found["parts"]) == {"load", "prepare", "infer", "decode"}
    assert set(found["rates"]) == {"runtime", "stream of frames", "stream of JPEG files"}
    assert min(found["rates"].values()) > 0
    parts = found["parts"]
    assert found["around_ms"] == pytest.approx(sum(parts[name][0] for name in ("load", "prepare", "decode")))
    assert 0 < found["before"] < found["opened"] <= found["peak"]


def study(**changes: Any) -> dict[str, Any]:
    """Return what the command writes of a study."""
    parts = {"load": [0.0625, 0.125], "prepare": [0.5, 0.75], "infer": [300.0, 310.0], "decode": [0.25, 0.375]}
    return {
        "engine": "<b>.onnx", "runtime": "ONNX Runtime 1.31.1 (CPU)", "slots": 2, "batch": 1, "parts": parts,
        "rates": {"runtime": 4.0, "stream of frames": 3.9}, "before": 100_000_000, "opened": 240_000_000,
        "peak": 281_000_000, "grown": 1_250_000, "calls": 200, "around_ms": 0.8125, **changes,
    }  # fmt: skip


def test_the_page_has_parts_rates_and_memory() -> None:
    page = pipeline_section(study())
    assert "Around the model: &lt;b&gt;.onnx" in page
    assert "2 calls at once, batch 1" in page
    assert "All but the model takes 0.81 ms" in page
    for name, *cells in (
        ("prepare", "0.500", "0.750"), ("infer", "300.000", "310.000"), ("runtime", "4.00", "1.00"),
        ("stream of frames", "3.90", "0.97"), ("at its peak", "281"), ("grown by 200 calls", "+1.2"),
    ):  # fmt: skip
        assert re.search(rf">{name}</th>" + "".join(rf"<td>{re.escape(cell)}</td>" for cell in cells), page), name
    untold = pipeline_section(study(**dict.fromkeys(("before", "opened", "peak", "grown"))))
    assert "Memory" not in untold
    assert "prepare" in untold


def test_results_that_were_kept_make_a_page(dynamic_onnx: Path, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    kept, page, later = tmp_path / "pipeline.json", tmp_path / "page.html", tmp_path / "later.html"
    words = ["--engine", str(dynamic_onnx), "--runtime", "onnxruntime", *QUICK, "--json", str(kept)]
    assert main(["pipeline", *words, "--report", str(page)]) == 0
    assert main(["report", str(kept), "--output", str(later)]) == 0
    assert page.read_text() == later.read_text()
    assert "Around the model: dynamic.onnx" in later.read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": 0}, "`runs` is 0, expected a number from 1 to"),
        ({"calls": -1}, "`calls` is -1, expected a number from 1 to"),
        ({"batch": 0}, "`batch` is 0, expected a number from 1 to"),
        ({"seconds": 0.0}, r"`seconds` is 0.0, expected seconds above 0"),
    ],
)
def test_numbers_that_measure_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PipelineOptions(engine=Path("m.onnx"), **changes)
