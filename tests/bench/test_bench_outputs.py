"""What rtdetr-bench writes: never over an input, into links and devices as they are, and checked before any work."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from rtdetr_bench import commands
from rtdetr_bench.cli import main
from rtdetr_bench.studies.graph_counts import GraphCounts
from rtdetr_bench.studies.precision import PrecisionRow
from rtdetr_bench.tools import random_models
from rtdetr_deploy import __version__
from rtdetr_export.verify.agreement import Agreement
from rtdetr_export.verify.tolerances import TOLERANCES
from yolo_files import channels, crowd, write_yolo

QUICK = ["--runs", "3", "--warmup", "1"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A YOLO that the test may lose."""
    return write_yolo(tmp_path / "yolo.onnx", channels(*crowd()))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--engine {m} --json {m}", "--json would overwrite the input"),
        ("--engine {m} --report {m}", "--report would overwrite the input"),
        ("--engine {m} --json {link}", "--json would overwrite the input"),
        ("--engine {m} --against {other} --json {other}", "--json would overwrite the input"),
        ("--engine {m} --json {f}/new --report {f}/new", "--json and --report both name"),
        ("--engine {m} --images {f} --json {f}/a.png", "--json would overwrite the input"),
        ("--engine {m} --images {f} --annotations {other} --report {other}", "--report would overwrite the input"),
        ("accuracy --engine {m} --images {f} --annotations {other} --json {other}", "--json would overwrite the input"),
        ("nms --engine {m} --images {f} --json {m}", "--json would overwrite the input"),
        ("decoder --weights {m} --json {m}", "--json would overwrite the input"),
        ("insert-nms --engine {m} --output {m}", "--output would overwrite the input"),
        ("report {other} {m} --output {m}", "--output would overwrite the input"),
        ("--engine {m} --json {f}", "a folder of that name exists"),
        ("--engine {m} --report {m}/a.html", "can't write"),
        ("insert-nms --engine {m} --output {m}/a.onnx", "can't write"),
    ],
)
def test_outputs_that_can_not_be_written_are_refused_before_any_work(
    line: str, message: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name in ("compare_models", "study_nms", "study_decoder", "evaluate", "insert_nms", "combine_results"):
        monkeypatch.setattr(commands, name, lambda *_, **__: pytest.fail("it worked first"))
    folder, other, link = tmp_path / "folder", tmp_path / "other.json", tmp_path / "link.json"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"a picture")
    other.write_text("{}")
    link.symlink_to(model)
    before = model.read_bytes()
    assert main(line.format(m=model, f=folder, other=other, link=link).split()) == 2
    assert message in capsys.readouterr().err
    assert model.read_bytes() == before
    assert (other.read_text(), (folder / "a.png").read_bytes()) == ("{}", b"a picture")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link.json", "other.json", "yolo.onnx"]


def test_a_report_without_plotly_is_refused_before_any_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "compare_models", lambda *_, **__: pytest.fail("it was measured"))
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert main(["--engine", str(model), "--report", str(tmp_path / "a.html")]) == 2
    error = capsys.readouterr().err
    assert "a report needs plotly" in error
    assert "rtdetr-deploy[" not in error


def test_a_link_is_followed_and_stays_a_link(model: Path, tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("old")
    link.symlink_to(real)
    assert main(["--engine", str(model), *QUICK, "--json", str(link)]) == 0
    assert link.is_symlink()
    assert json.loads(real.read_text())["schema"] == 4


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's /proc")
def test_json_to_standard_output_is_written_there_and_not_replaced(model: Path, tmp_path: Path) -> None:
    link, target = tmp_path / "stdout", tmp_path / "out.txt"
    link.symlink_to("/proc/self/fd/1")
    command = [sys.executable, "-m", "rtdetr_bench.cli", "--engine", str(model), *QUICK, "--json", str(link)]
    with target.open("w") as stdout:
        subprocess.run(command, check=True, stdout=stdout)
    assert link.is_symlink()
    text = target.read_text()
    content, end = json.JSONDecoder().raw_decode(text)
    assert content["machine"]["processor"] in text[end:]  # what was printed is there too


def test_the_studies_of_this_package_check_their_outputs_too(
    tmp_path: Path, r18_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rtdetr_bench.studies.precision.study_precision", lambda *_: pytest.fail("it worked first"))
    weights = tmp_path / "w.pth"
    shutil.copy(r18_checkpoint, weights)
    line = ["precision", "--weights", str(weights), "--annotations", str(tmp_path / "val.json")]
    line += ["--images", str(tmp_path)]
    assert main([*line, "--json", str(weights)]) == 2
    assert "--json would overwrite the input" in capsys.readouterr().err
    assert main([*line, "--json", str(weights / "a.json")]) == 2
    assert "can't write" in capsys.readouterr().err
    assert weights.read_bytes() == r18_checkpoint.read_bytes()
    assert random_models.main(["--output", str(weights), "--variants", "r18"]) == 2
    assert capsys.readouterr().err.startswith(f"rtdetr_bench.tools.random_models: can't write {weights}")


def test_random_models_tell_their_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        random_models.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"rtdetr_bench.tools.random_models {__version__}\n"


def test_the_help_of_random_models_is_not_a_wall_of_variants(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        random_models.main(["--help"])
    told = capsys.readouterr().out
    assert "--variants VARIANT" in told
    assert not re.search(r"\br34\b", told)


def test_the_json_of_precision_counts_expected_and_spurious_detections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = np.zeros(0, np.float32)
    counts = GraphCounts(7, 0, 0, 0, 0.0, 0, 0)
    row = PrecisionRow("FP32", counts, 1.0, 0.0, 0.5, Agreement(TOLERANCES, 10, (5, 8, 10), 2, none, none))
    refused = PrecisionRow("other", counts, 1.0, refused="other.onnx can't be loaded")
    rows = [row, refused]
    monkeypatch.setattr("rtdetr_bench.studies.precision.study_precision", lambda *_, **__: rows)
    files = [tmp_path / "w.pth", tmp_path / "val.json"]
    for file in files:
        file.write_bytes(b"x")
    line = ["precision", "--weights", str(files[0]), "--annotations", str(files[1]), "--images", str(tmp_path)]
    assert main([*line, "--json", str(tmp_path / "a.json")]) == 0
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["expected"] == 10
    assert [found.get("spurious") for found in content["rows"]] == [2, None]
    assert content["rows"][1]["refused"] == "other.onnx can't be loaded"
    assert content["rows"][1]["nodes"]["fp32"] == 7
    assert list(content["rows"][0]["matched"].values()) == [0.5, 0.8, 1.0]


def test_results_are_written_also_when_nobody_reads_the_table(model: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "rtdetr_bench.cli", "--engine", str(model), *QUICK, "--json", str(results)]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.returncode == 141, done.stderr
    assert "comparison" in json.loads(results.read_text())
