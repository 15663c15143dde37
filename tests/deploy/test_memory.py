"""What a process holds after ten thousand predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("psutil")

import psutil

from rtdetr_deploy import Predictor

CALLS = 10_000
SETTLED = 500
"""Calls after which allocators have what they need."""
ALLOWED = 5_000_000


@pytest.mark.slow
def test_ten_thousand_predictions_leave_no_memory_behind(small_options: Any, tmp_path: Path) -> None:
    from rtdetr_export import export_onnx

    path = tmp_path / "tiny.onnx"
    export_onnx(small_options("tiny.onnx", output=path, size=(64, 64), layers=1, queries=10, verify=False))
    frame = np.random.default_rng(0).integers(0, 256, (72, 128, 3), dtype=np.uint8)
    process = psutil.Process()
    with Predictor(path, 0.0, runtime="onnxruntime", threads=1) as predictor:
        for _ in range(SETTLED):
            predictor.detect(frame)
        before = process.memory_info().rss
        for _ in range(CALLS - SETTLED):
            predictor.detect(frame)
        assert process.memory_info().rss - before < ALLOWED
