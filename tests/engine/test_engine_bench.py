"""rtdetr-bench over the doubles: the engine's own time, copies, and the precision that the inspector tells."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fake_tensorrt
from rtdetr_bench.cli import main
from rtdetr_bench.scenarios import measure
from rtdetr_deploy import open_runtime
from rtdetr_deploy.runtimes import TimedRuntime

pytest_plugins = ("engine_world",)
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "tensorrt.md"
FEED = {"images": np.random.default_rng(0).integers(0, 256, (2, 128, 160, 3), np.uint8)}


def test_timed_calls_return_the_same_and_the_engines_own_time(world: fake_tensorrt.World, engine: Path) -> None:
    runtime = open_runtime(engine)
    assert isinstance(runtime, TimedRuntime)
    expected = runtime.run(FEED)
    for _ in range(3):  # plain, then recorded
        outputs, milliseconds = runtime.run_timed(FEED)
        assert all(np.array_equal(outputs[name], expected[name]) for name in expected)
        assert 0.0 < milliseconds < 60_000
    assert world.cuda.launches >= 2
    runtime.close()


def test_calls_are_timed_in_a_row(world: fake_tensorrt.World, engine: Path) -> None:
    runtime = open_runtime(engine)
    assert isinstance(runtime, TimedRuntime)
    expected = runtime.run(FEED)
    for calls in (1, 5):
        before = world.executions
        outputs, milliseconds = runtime.run_timed(FEED, calls)
        assert world.executions - before == calls
        assert all(np.array_equal(outputs[name], expected[name]) for name in expected)
        assert milliseconds > 0.0
    runtime.close()


def test_rtdetr_bench_tells_copies_and_the_real_precision_of_engines(
    world: fake_tensorrt.World,
    engine: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "GPU_CALLS", 2)
    target = tmp_path / "a.json"
    command = ["--engine", str(engine), "--runs", "3", "--warmup", "1", "--batch", "1,4"]
    assert main([*command, "--json", str(target)]) == 0
    models = json.loads(target.read_text())["comparison"]["models"]
    assert [model["batch"] for model in models] == [1, 4]
    assert all(set(model["samples"]) == {"prepare", "copy", "infer", "decode"} for model in models)
    assert re.fullmatch(r"\d+ layers fp32", models[0]["facts"]["precision"])
    for model in models:  # two slots, each called by a thread of its own
        flow = model["back_to_back"]
        assert (flow["batch"], flow["threads"], flow["images"]) == (model["batch"], 2, 3 * model["batch"])
        assert flow["gpu_ms"] > 0.0
    assert "on the GPU alone" in capsys.readouterr().out
    assert main([*command[:-1], "5"]) == 2
    assert "takes up to 4 images at once, not 5" in capsys.readouterr().err
    assert world.plugins  # third-party engines may need EfficientNMS_TRT
    assert main([*command, "--resizer", "cuda", "--json", str(target)]) == 0
    models = json.loads(target.read_text())["comparison"]["models"]
    assert all(set(model["samples"]) == {"prepare", "copy", "infer", "decode"} for model in models)


def _documented(step: str) -> list[str]:
    """Return what docs/tensorrt.md shows that a step prints: its second block of code, `...` for anything at all."""
    _, _, text = DOCUMENT.read_text(encoding="utf-8").partition(f"**{step}**")
    blocks = re.findall(r"(?:^ {4}.+\n)+", text, re.MULTILINE)
    return _lines(blocks[1])


def _lines(text: str) -> list[str]:
    """Return the lines of a text; one space stands for any number, as columns are as wide as their figures."""
    return [" ".join(line.split()) for line in text.strip().splitlines()]


def _pattern(line: str) -> str:
    """Return a line of the document as a pattern; numbers are those of another machine and model."""
    return re.sub(r"\d[\d.]*", r"\\d[\\d.]*", re.escape(line).replace(r"\.\.\.", ".*").replace(r"\.", "."))


def test_measuring_an_engine_prints_what_the_document_shows(
    world: fake_tensorrt.World,
    engine: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "GPU_CALLS", 2)
    packages = {"rtdetr-deploy": "0.2.0.dev0", "numpy": "2.4.6", "tensorrt-cu12": "10.13.3.9"}
    machine = {
        "processor": "a processor",
        "cores": 4,
        "system": "Linux x86_64",
        "python": "3.12.1",
        "packages": packages,
    }
    monkeypatch.setattr("rtdetr_bench.commands.describe_machine", lambda: machine)
    monkeypatch.setattr(
        "rtdetr_bench.models.rtdetr.real_precision", lambda _: {"precision": "9 layers fp16, 8 layers fp32"}
    )
    for file in tmp_path.glob("dynamic.engine*"):
        file.rename(tmp_path / file.name.replace("dynamic", "cells"))
    Image.new("RGB", (80, 60)).save(tmp_path / "cells.png")
    command = ["--engine", str(tmp_path / "cells.engine"), "--images", str(tmp_path / "cells.png")]
    command += ["--json", str(tmp_path / "cells.json"), "--runs", "3", "--warmup", "2"]
    assert main(command) == 0
    printed = _lines(capsys.readouterr().out.replace("model custom", "model r18"))
    shown = _documented("5. Measure.")
    assert len(printed) == len(shown)
    for line, expected in zip(printed, shown, strict=True):
        assert re.fullmatch(_pattern(expected), line), f"{line!r} is shown as {expected!r}"
