"""The parity report must notice what is wrong and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rtdetr_deploy import Predictor  # noqa: E402
from rtdetr_deploy.artifact import ArtifactInfo  # noqa: E402
from rtdetr_export.verify import Parity, ParityReport, compare_detections, compare_raw  # noqa: E402

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (20, 3)).astype(np.float32)
BOXES = RNG.uniform(0.2, 0.6, (20, 4)).astype(np.float32)


@pytest.fixture
def info(small_onnx: Path) -> ArtifactInfo:
    stored = Predictor(small_onnx).info
    assert stored is not None
    return replace(stored, max_detections=30)


@pytest.fixture
def found() -> dict[str, Any]:
    """What a faithful file returns: the 30 best of the 60 pairs."""
    scores = 1 / (1 + np.exp(-LOGITS.ravel()))
    order = np.argsort(-scores)[:30]
    half = BOXES[:, 2:] / 2
    corners = np.concatenate([BOXES[:, :2] - half, BOXES[:, :2] + half], axis=1).clip(0, 1)
    return {"labels": order % 3, "boxes": corners[order // 3], "scores": scores[order]}


def test_equal_sets_in_any_order_agree(info: ArtifactInfo, found: dict[str, Any]) -> None:
    shuffled = {name: array[::-1] for name, array in found.items()}
    box, score, missing = compare_detections(shuffled, LOGITS, BOXES, info)
    assert box.max() < 1e-4
    assert score.max() < 1e-6
    assert missing == 0


def test_a_moved_box_is_measured_in_pixels(info: ArtifactInfo, found: dict[str, Any]) -> None:
    found["boxes"][4, 2] += 0.01
    box, _, missing = compare_detections(found, LOGITS, BOXES, info)
    assert box.max() == pytest.approx(0.01 * info.width, rel=1e-3)
    assert missing == 0


def test_a_wrong_score_label_or_lost_detection_is_noticed(info: ArtifactInfo, found: dict[str, Any]) -> None:
    lower = {**found, "scores": found["scores"] - 0.02}
    assert compare_detections(lower, LOGITS, BOXES, info)[1].max() == pytest.approx(0.02, rel=1e-3)
    doubled = {name: np.concatenate([array[:1], array[:1], array[2:]]) for name, array in found.items()}
    assert compare_detections(doubled, LOGITS, BOXES, info)[2] == 1
    found["labels"] = (found["labels"] + 1) % 3
    assert compare_detections(found, LOGITS, BOXES, info)[2] > 0


def test_raw_outputs_are_matched_in_any_order(info: ArtifactInfo) -> None:
    box, score, missing = compare_raw(LOGITS[::-1], BOXES[::-1], LOGITS, BOXES, info)
    assert (box.max(), score.max(), missing) == (0.0, 0.0, 0)
    repeated = np.concatenate([LOGITS[:1], LOGITS[:-1]])
    assert compare_raw(repeated, np.concatenate([BOXES[:1], BOXES[:-1]]), LOGITS, BOXES, info)[2] == 1


@pytest.mark.parametrize("value", [float("nan"), 0.2])
def test_nan_and_large_differences_fail(value: float) -> None:
    batch = Parity("noisy", np.array([0.0, value], np.float32), np.zeros(2, np.float32), 0)
    assert not ParityReport("test", 0.1, 1e-3, (batch,)).passed
    assert ParityReport("test", 0.3, 1e-3, (batch,)).passed == (value == 0.2)
