"""The whole path on real photographs: checkpoint, export, command, pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import shared_folder

pytest.importorskip("torch")

from rtdetr_deploy import Predictor
from rtdetr_deploy.cli.detect import main as detect
from rtdetr_export.cli import main as export


def test_blood_smears_go_through_export_and_detection(small_checkpoint: Path, tmp_path: Path) -> None:
    images = sorted((shared_folder("data") / "bccd" / "val").glob("*.jpg"))[:3]
    assert len(images) == 3
    model, output, lines = tmp_path / "cells.onnx", tmp_path / "out", tmp_path / "found.jsonl"
    command = ["--weights", str(small_checkpoint), "--size", "192x192", "--batch", "dynamic", "--output", str(model)]
    assert export(command) == 0
    arguments = [str(model), *map(str, images), "--output", str(output), "--json", str(lines), "--threshold", "0"]
    assert detect(arguments) == 0
    entries = [json.loads(line) for line in lines.read_text().splitlines()]
    for entry, image in zip(entries, images, strict=True):
        assert (entry["width"], entry["height"]) == Image.open(image).size
        assert len(entry["detections"]) == 300
        for found in entry["detections"]:
            x1, y1, x2, y2 = found["box"]
            assert 0 <= x1 <= x2 <= entry["width"]
            assert 0 <= y1 <= y2 <= entry["height"]
        assert Image.open(output / image.name).size == Image.open(image).size
    with Predictor(model, threshold=0.0) as predictor:
        together = predictor.detect_batch(images)
        for found, image in zip(together, images, strict=True):
            assert np.abs(found.scores - predictor.detect(image).scores).max() < 1e-4
