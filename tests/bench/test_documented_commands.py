"""Documented commands are accepted, extras hold what messages and documents say, the demo fails in one line."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

from rtdetr_bench.verbs import parse
from rtdetr_deploy.runtimes import RUNTIMES

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (
    "README.md", "docs/benchmarks.md", "docs/measurements.md", "docs/pipeline.md", "docs/precision.md",
    "demo/blood-cells-r18.md",
)  # fmt: skip


def _commands() -> list[str]:
    """Return every rtdetr-bench command of the documents, once with and once without what is optional."""
    found = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        blocks = re.findall(r"^ {4}rtdetr-bench (.+)$", text, re.MULTILINE)
        quoted = re.findall(r"`rtdetr-bench ([^`]+)`", text)
        lines = [line.partition(" #")[0] for line in blocks + quoted if "..." not in line and "--help" not in line]
        found += [re.sub(r"\[.*?\]", "", line) for line in lines]
        found += [line.replace("[", "").replace("]", "") for line in lines if "[" in line]
    return found


def test_there_are_commands_in_the_documents() -> None:
    assert len(_commands()) > 15


@pytest.mark.parametrize("command", _commands())
def test_documented_commands_give_no_option_that_does_not_apply(command: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # documents show no old spelling
        parse(command.split())


def _extra(name: str) -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(rf"^{name} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    return "" if found is None else found[1]


def test_the_extra_of_the_benchmarks_holds_what_its_commands_need() -> None:
    for package in ("onnx>=", "plotly>=", "psutil>=", "faster-coco-eval>=", "rtdetr-deploy[cpu]"):
        assert f'"{package}' in _extra("bench")


def test_the_extra_of_every_runtime_is_offered() -> None:
    for name, known in RUNTIMES.items():
        assert _extra(known.extra), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "{file}"], "is not a folder"),
        (["--output", "{new}", "--size", ""], "size '' is not understood"),
        (["--output", "{new}", "--image", "{new}/none.jpg"], "none.jpg does not exist"),
    ],
)
def test_the_demo_says_what_is_wrong_in_one_line_before_it_exports(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    (tmp_path / "file").write_text("")
    line = [item.format(file=tmp_path / "file", new=tmp_path / "new") for item in arguments]
    assert runpy.run_path(str(ROOT / "demo" / "run_demo.py"))["main"](line) == 2
    streams = capsys.readouterr()
    assert message in streams.err
    assert streams.err.count("\n") == 1
    assert "export" not in streams.out


@pytest.mark.slow  # make demo does the same, which CI runs
def test_the_demo_runs_to_its_end(tmp_path: Path, small_checkpoint: Path) -> None:
    Image.new("RGB", (80, 60), (90, 160, 40)).save(tmp_path / "photo.png")
    command = [sys.executable, str(ROOT / "demo" / "run_demo.py"), "--weights", str(small_checkpoint), "--size", "64"]
    command += ["--image", str(tmp_path / "photo.png"), "--output", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "annotated picture" in result.stdout
    assert (tmp_path / "out" / "detections.png").is_file()
