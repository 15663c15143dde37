"""Selection of detections from raw outputs, and their scaling."""

from __future__ import annotations

import numpy as np
import pytest

from rtdetr_deploy.errors import ArtifactError
from rtdetr_deploy.postprocess import check_finite, decode_raw, to_pixels

BOXES = np.array([[0.5, 0.5, 0.2, 0.4], [0.9, 0.1, 0.4, 0.4]], np.float32)


def test_query_class_pairs_are_selected_not_the_best_class_of_a_query() -> None:
    logits = np.array([[3.0, 2.0, -5.0], [1.0, -4.0, -6.0]], np.float32)
    labels, boxes, scores = decode_raw(logits, BOXES, 3)
    assert labels.tolist() == [0, 1, 0]
    assert scores == pytest.approx(1 / (1 + np.exp([-3.0, -2.0, -1.0])), abs=1e-6)
    assert boxes[0] == pytest.approx([0.4, 0.3, 0.6, 0.7], abs=1e-6)
    assert boxes[1] == pytest.approx(boxes[0])
    assert boxes[2] == pytest.approx([0.7, -0.1, 1.1, 0.3], abs=1e-6)


def test_fewer_pairs_than_asked_for_are_all_returned_sorted() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    labels, _, scores = decode_raw(logits, BOXES, 300)
    assert len(labels) == 8
    assert (np.diff(scores) <= 0).all()


def test_extreme_logits_give_scores_without_warnings() -> None:
    logits = np.array([[-200.0, 200.0]], np.float32)
    with np.errstate(all="raise"):
        _, _, scores = decode_raw(logits.repeat(2, axis=0), BOXES, 4)
    assert scores.tolist() == [1.0, 1.0, 0.0, 0.0]


def test_pixels_lie_inside_the_image() -> None:
    boxes = np.array([[-0.1, 0.2, 1.2, 0.9]], np.float32)
    assert to_pixels(boxes, 100, 200)[0] == pytest.approx([0.0, 20.0, 200.0, 90.0], abs=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_an_error(bad: float) -> None:
    scores = np.array([0.5, bad], np.float32)
    with pytest.raises(ArtifactError, match="m.onnx returned numbers that are not finite: its precision is broken"):
        check_finite(BOXES, scores, "m.onnx")
