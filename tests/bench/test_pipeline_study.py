"""What is around a model: the parts of a call, the stream beside the runtime alone, memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")

from rtdetr_bench.cli import main
from rtdetr_bench.options import PipelineOptions
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
