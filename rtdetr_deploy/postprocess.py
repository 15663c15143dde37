"""Model outputs to detections in pixels of the original image. NumPy only, the same for every runtime."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rtdetr_deploy.errors import ArtifactError

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


def decode_raw(logits: Floats, boxes: Floats, max_detections: int) -> tuple[Labels, Floats, Floats]:
    """Select the best query-class pairs of one image, as the released models do.

    `logits (Q, K)` and `boxes (Q, 4)` cxcywh in [0, 1] -> labels `(N,)`, boxes `(N, 4)` xyxy, scores `(N,)`, sorted by
    score; N = min(max_detections, Q * K). One query may give several detections of different classes.
    """
    classes = logits.shape[1]
    flat = logits.reshape(-1)
    count = min(max_detections, flat.size)
    best = np.argpartition(-flat, count - 1)[:count]
    best = best[np.argsort(-flat[best], kind="stable")]
    queries, labels = np.divmod(best, classes)
    with np.errstate(over="ignore", under="ignore"):  # exp of a logit far from 0: the score is 0 or 1
        scores = 1.0 / (1.0 + np.exp(-flat[best]))
    chosen = boxes[queries]
    half = chosen[:, 2:] * np.float32(0.5)
    corners = np.concatenate([chosen[:, :2] - half, chosen[:, :2] + half], axis=1)
    return labels.astype(np.int64), corners, scores.astype(np.float32)


def to_pixels(boxes: Floats, height: int, width: int) -> Floats:
    """Scale xyxy boxes `(N, 4)` in [0, 1] to an image of `height` x `width` pixels; they end inside the image."""
    scale = np.array([width, height, width, height], np.float32)
    return np.clip(boxes, 0.0, 1.0).astype(np.float32) * scale


def check_finite(boxes: Floats, scores: Floats, name: str) -> None:
    """Raise `ArtifactError` when the model `name` returned NaN or infinity, which would look like 'nothing found'."""
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ArtifactError(
            f"{name} returned numbers that are not finite: its precision is broken (an overflow in FP16?); "
            "export it again in FP32"
        )
