"""rtdetr-bench."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rtdetr_bench import measure_latency
from rtdetr_bench.cli import main
from rtdetr_deploy import OptionError


def test_the_clients_command_prints_every_stage_and_writes_all_samples(
    small_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "latency.json"
    assert main(["--engine", str(small_onnx), "--runs", "7", "--warmup", "1", "--json", str(target)]) == 0
    text = capsys.readouterr().out
    for word in ("prepare", "infer", "decode", "paper's span", "whole call", "images per second", "onnxruntime"):
        assert word in text
    content = json.loads(target.read_text())
    assert {stage: len(values) for stage, values in content["samples"].items()} == {
        "prepare": 7, "infer": 7, "decode": 7,
    }  # fmt: skip
    rows = content["milliseconds"]
    assert rows["paper's span"]["p50"] >= rows["infer"]["p50"]
    assert rows["whole call"]["p99"] >= rows["whole call"]["p50"] >= rows["whole call"]["min"] > 0


def test_real_images_are_used_in_turn_and_decoding_is_timed(
    dynamic_onnx: Path, picture: NDArray[np.uint8], tmp_path: Path
) -> None:
    for index in range(2):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    latency = measure_latency(dynamic_onnx, images=sorted(tmp_path.iterdir()), runs=3, warmup=1)
    assert set(latency.samples) == {"load", "prepare", "infer", "decode"}
    assert latency.throughput == pytest.approx(1000 / np.median(latency.total()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "none.onnx"], "none.onnx does not exist"),
        (["--engine", "model.engine"], "model.engine does not exist"),
        (["--engine", "model.tflite"], "no model format known here"),
        (["--engine", "{model}", "--runs", "0"], "runs is 0, expected a number from 1 up"),
        (["--engine", "{model}", "--images", "{model}.d"], "does not exist"),
    ],
)
def test_wrong_input_gives_one_line_and_status_2(
    arguments: list[str], message: str, small_onnx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([item.format(model=small_onnx) for item in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rtdetr-bench: ")
    assert message in error
    assert error.count("\n") == 1


def test_warmup_must_be_positive(small_onnx: Path) -> None:
    with pytest.raises(OptionError, match="warmup is 0"):
        measure_latency(small_onnx, warmup=0)
