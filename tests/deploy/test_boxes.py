"""Boxes as NumPy arrays."""

from __future__ import annotations

import numpy as np
import pytest

from rtdetr_deploy.boxes import cxcywh_to_xyxy, pairwise_iou


def test_corners_lie_half_a_side_from_the_centre() -> None:
    boxes = np.array([[0.5, 0.5, 0.2, 0.4], [0.9, 0.1, 0.4, 0.4]], np.float32)
    corners = cxcywh_to_xyxy(boxes)
    assert corners.dtype == np.float32
    assert corners == pytest.approx(np.array([[0.4, 0.3, 0.6, 0.7], [0.7, -0.1, 1.1, 0.3]]), abs=1e-6)
    assert np.array_equal(cxcywh_to_xyxy(boxes[None]), corners[None])


def test_no_boxes_stay_no_boxes() -> None:
    none = np.zeros((0, 4), np.float32)
    assert cxcywh_to_xyxy(none).shape == (0, 4)
    assert pairwise_iou(none, np.ones((3, 4), np.float32)).shape == (0, 3)


def test_iou_of_each_pair() -> None:
    first = np.array([[0, 0, 2, 2], [5, 5, 6, 6]], np.float32)
    second = np.array([[1, 1, 3, 3], [0, 0, 2, 2], [2, 0, 4, 2]], np.float32)
    assert pairwise_iou(first, second) == pytest.approx(np.array([[1 / 7, 1, 0], [0, 0, 0]]))


def test_iou_of_empty_boxes_is_0_without_a_warning() -> None:
    point = np.array([[1, 1, 1, 1]], np.float32)
    with np.errstate(all="raise"):
        assert pairwise_iou(point, point).tolist() == [[0.0]]
