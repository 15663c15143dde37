"""Boxes as NumPy arrays `(..., 4)`: cxcywh (centre, width, height) and xyxy (two corners), and IoU.

The results have the arrays' own type; units are the caller's (shares of the image, or pixels).
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Boxes = TypeVar("Boxes", bound=NDArray[Any])


def cxcywh_to_xyxy(boxes: Boxes) -> Boxes:
    """Return cxcywh boxes `(..., 4)` as xyxy."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    result: Boxes = np.concatenate([centre - half, centre + half], axis=-1)  # type: ignore[assignment]
    return result


def pairwise_iou(first: Boxes, second: Boxes) -> Boxes:
    """Return the IoU `(N, M)` of each of the xyxy boxes `first (N, 4)` with each of `second (M, 4)`.

    It is 0 where both boxes are empty.
    """
    a, b = first[:, None], second[None]
    shared = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(0).prod(axis=-1)
    union = (a[..., 2:] - a[..., :2]).prod(axis=-1) + (b[..., 2:] - b[..., :2]).prod(axis=-1) - shared
    iou: Boxes = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return iou
