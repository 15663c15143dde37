"""rtdetr-bench."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rtdetr_bench import TimingOptions, measure_latency
from rtdetr_bench.cli import main
from rtdetr_bench.machine import describe_state, gpu_memory, machine_text, state_text, visible_gpu
from yolo_files import write_yolo


def test_the_clients_command_prints_every_stage_and_writes_all_samples(
    small_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "latency.json"
    assert main(["--engine", str(small_onnx), "--runs", "7", "--warmup", "1", "--json", str(target)]) == 0
    text = capsys.readouterr().out
    for word in ("prepare", "infer", "decode", "paper's span", "whole call", "images per second", "onnxruntime"):
        assert word in text
    content = json.loads(target.read_text())
    assert content["schema"] == 4
    assert {"state", "machine", "options"} <= set(content)
    assert content["machine"]["affinity"]
    command = ["--engine", small_onnx.name, "--runs", "7", "--warmup", "1", "--json", "latency.json"]
    assert content["command"] == ["rtdetr-bench", *command]
    assert content["comparison"]["rounds"] == 7
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", content["date"])
    assert not re.search(r"[{}'\[\]]", text.splitlines()[0])  # a sentence about the machine, not Python
    (model,) = content["comparison"]["models"]
    assert {span: len(values) for span, values in model["samples"].items()} == {
        "prepare": 7, "infer": 7, "decode": 7,
    }  # fmt: skip
    rows = model["milliseconds"]
    assert rows["paper's span"]["p50"] >= rows["infer"]["p50"]
    assert rows["whole call"]["p99"] >= rows["whole call"]["p50"] >= rows["whole call"]["min"] > 0


def test_real_images_are_used_in_turn_and_loading_is_timed(
    dynamic_onnx: Path, picture: NDArray[np.uint8], tmp_path: Path
) -> None:
    for index in range(2):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    latency = measure_latency(dynamic_onnx, images=sorted(tmp_path.iterdir()), timing=TimingOptions(runs=3, warmup=1))
    assert set(latency.samples) == {"load", "prepare", "infer", "decode"}
    assert latency.throughput == pytest.approx(1000 / np.median(latency.total()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "none.onnx"], "none.onnx does not exist"),
        (["--engine", "model.engine"], "model.engine does not exist"),
        (["--engine", "{other}"], "not a model format known here"),
        (["--engine", "{model}", "--runs", "0"], "--runs is 0, expected a number from 1 to 1000000"),
        (["--engine", "{model}", "--images", "{model}.d"], "does not exist"),
        (["--engine", "{model}", "--batch", "4"], "takes 1 image at once, not 4"),
        (
            ["--engine", "{model}", "--batch", "1,1"],
            "--batch is 1,1, expected different numbers from 1 to 1024, like 1,4,8",
        ),
        (["--engine", "{model}", "--duration", "0"], "--duration is 0.0, expected seconds above 0"),
        (["--engine", "{model}", "--annotations", "a.json"], "--annotations needs --images with the folder"),
        (["--engine", "{model}", "--threshold", "2"], "--threshold is 2.0, expected a number from 0 to 1"),
        (["--engine", "{model}", "--runs", "9", "--duration", "2"], "--runs and --duration both say how long"),
        (["nms", "--engine", "{model}", "--images", "{folder}"], "holds no image"),
        (["nms", "--engine", "{model}"], "needs --images: NMS time depends on what is in them"),
        (["decoder", "--weights", "{model}"], "--weights is small.onnx, a model file; expected a checkpoint"),
        (["latncy"], "unknown verb 'latncy'; choose one of latency, accuracy"),
        ([], "nothing to do: name a verb, or --engine MODEL to time it"),
    ],
)
def test_wrong_input_gives_one_line_and_status_2(
    arguments: list[str], message: str, small_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    other = tmp_path / "model.tflite"
    other.write_bytes(b"TFL3")
    assert main([item.format(model=small_onnx, folder=empty, other=other) for item in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rtdetr-bench: ")
    assert message in error
    assert error.count("\n") == 1


def test_messages_name_the_file_and_not_what_runs_it(
    small_onnx: Path, r18_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = np.full((1, 300), np.nan, np.float32)
    labels, boxes = np.zeros((1, 300), np.int64), np.zeros((1, 300, 4), np.float32)
    broken = write_yolo(tmp_path / "broken.onnx", ("labels", labels), ("boxes", boxes), ("scores", scores))
    for path, line in (
        (small_onnx, ["--engine", str(small_onnx), "--resizer", "cuda"]),
        (r18_checkpoint, ["--engine", str(r18_checkpoint), "--resizer", "cuda"]),
        (broken, ["--engine", str(broken), "--runs", "1"]),
    ):
        assert main(line) == 2
        error = capsys.readouterr().err
        assert path.name in error
        assert error.count("ONNX Runtime 1") + error.count("torch 2") == (line[-1] == "cuda")


@pytest.mark.parametrize("name", ["threads", "size"])
def test_threads_and_size_of_a_checkpoint_are_checked(
    name: str, r18_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with suppress(SystemExit):  # argparse's, for the size
        assert main(["--engine", str(r18_checkpoint), f"--{name}", "-1"]) == 2
    error = capsys.readouterr().err
    assert re.match(f"rtdetr-bench.*: .*{name} ", error)
    assert error.count("\n") == 1


def test_the_machine_is_told_in_words() -> None:
    machine = {"processor": "EPYC", "cores": 3, "affinity": [0, 1, 5], "pinned": True, "system": "Linux"}
    text = machine_text({**machine, "python": "3.11", "packages": {"numpy": "2"}}, 1)
    assert text == "EPYC, 3 cores of more (numbers 0-1, 5), 1 thread, Linux, Python 3.11, numpy 2"
    assert state_text({"load": 1.5, "gpu": {"clock": "900", "memory": "3"}}) == "load 1.5, gpu: clock 900, memory 3"


NVIDIA_SMI = """#!/bin/sh
# Knows some fields, as the real one does: an unknown one fails the whole query.
echo "$*" >> "$(dirname "$0")/calls"
line=
for field in $(echo "$1" | sed 's/--query-gpu=//; s/,/ /g'); do
    case $field in
        name) value='Tesla T4' ;;
        driver_version) value=470.82 ;;
        clocks.sm) value=585 ;;
        clocks.max.sm) value='[N/A]' ;;
        temperature.gpu) value=41 ;;
        power.limit) value=70.00 ;;
        memory.used) value=3 ;;
        KNOWN) value=0x1 ;;
        *) echo "Field \\"$field\\" is not a valid field to query."; exit 2 ;;
    esac
    line="$line${line:+, }$value"
done
echo "$line"
"""


@pytest.mark.parametrize(
    ("known", "calls"),
    [("clocks_event_reasons.active", 2), ("clocks_throttle_reasons.active", 11), ("nothing", 11)],
)
def test_one_field_that_a_driver_calls_otherwise_costs_that_field_alone(
    known: str, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text(NVIDIA_SMI.replace("KNOWN", known))
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    expected = {"name": "Tesla T4", "driver": "470.82", "clock": "585", "temperature": "41", "power limit": "70.00"}
    reasons = {} if known == "nothing" else {"throttled by": "0x1"}
    assert describe_state("cuda:1")["gpu"] == {**expected, **reasons, "memory": "3"}
    asked = (tmp_path / "calls").read_text().splitlines()
    assert len(asked) == calls
    assert all(line.endswith("--id=1") for line in asked)
    assert gpu_memory("cuda:1") == 3 << 20
    assert len((tmp_path / "calls").read_text().splitlines()) == calls + 1  # what the driver knows is asked once


def test_a_machine_without_gpu_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho No devices were found\nexit 6\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert gpu_memory() is None
    assert "gpu" not in describe_state()


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        (None, None, "0"),
        ("cuda:1", None, "1"),
        ("cuda:1", "3, 5", "5"),
        ("cuda", "GPU-8a,GPU-9b", "GPU-8a"),
        ("cpu", "", "0"),
    ],
)
def test_the_gpu_that_is_looked_at_is_the_one_that_the_models_run_on(
    device: str | None, visible: str | None, expected: str
) -> None:
    assert visible_gpu(device, visible) == expected
