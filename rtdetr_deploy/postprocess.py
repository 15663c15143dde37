"""Model outputs to detections in pixels of the original image. NumPy only, the same for every runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdetr_deploy.artifacts.decoding import RTDETR_DECODING, ScoreDecoding
from rtdetr_deploy.boxes import cxcywh_to_xyxy
from rtdetr_deploy.errors import ArtifactError

Floats = NDArray[np.float32]
Numbers = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]


def decode_raw(
    logits: Floats, boxes: Floats, max_detections: int, decoding: ScoreDecoding = RTDETR_DECODING
) -> tuple[Labels, Floats, Floats]:
    """Select the best detections of one image.

    `logits (Q, K)` and `boxes (Q, 4)` cxcywh in [0, 1] -> labels `(N,)`, boxes `(N, 4)` xyxy, scores `(N,)`, sorted by
    score; N is `max_detections` or as many as there are. Raises `ArtifactError` where `decoding` doesn't fit.
    """
    if decoding.kind == "sigmoid":
        queries, labels, scores = _best_pairs(logits, max_detections)
    else:
        softmax = decoding.kind == "softmax"
        rated = _softmax(logits, decoding) if softmax else logits
        best, ranks = rated.argmax(axis=1), rated.max(axis=1)
        queries = np.argsort(-ranks, kind="stable")[:max_detections]
        labels, scores = best[queries], ranks[queries] if softmax else _sigmoid(ranks[queries])
    return labels.astype(np.int64), cxcywh_to_xyxy(boxes[queries]), scores.astype(np.float32)


def class_scores(logits: Floats, decoding: ScoreDecoding = RTDETR_DECODING) -> Floats:
    """Return the score in [0, 1] of every class of each query: `(Q, K)`, with softmax `(Q, K - 1)`."""
    exact = logits.astype(np.float64)
    scores = _softmax(exact, decoding) if decoding.kind == "softmax" else _sigmoid(exact)
    return scores.astype(np.float32)


def _best_pairs(logits: Floats, max_detections: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Return queries, classes and scores of the best pairs, as the released models do."""
    flat = logits.reshape(-1)
    count = min(max_detections, flat.size)
    best = np.argpartition(-flat, count - 1)[:count]
    best = best[np.argsort(-flat[best], kind="stable")]
    queries, labels = np.divmod(best, logits.shape[1])
    return queries, labels, _sigmoid(flat[best])


def _sigmoid(logits: Numbers) -> Numbers:
    with np.errstate(over="ignore", under="ignore"):  # exp of a logit far from 0: the score is 0 or 1
        scores: Numbers = 1 / (1 + np.exp(-logits))
    return scores


def _softmax(logits: Numbers, decoding: ScoreDecoding) -> Numbers:
    """Return the probability of each class `(Q, K - 1)`, without the no-object class."""
    decoding.count_classes(logits.shape[1])
    with np.errstate(under="ignore"):
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    result: Numbers = np.delete(shares, -1 if decoding.no_object is None else decoding.no_object, axis=1)
    return result


def decode_outputs(
    outputs: Mapping[str, NDArray[Any]], max_detections: int, decoding: ScoreDecoding, name: str
) -> tuple[Labels, Floats, Floats]:
    """Return labels, boxes (xyxy in [0, 1] of the input) and scores of one image of the model `name`.

    `outputs` are its rows by role: labels, boxes and scores, or raw logits and boxes (see `decode_raw`).
    """
    raw = "logits" in outputs
    check_finite(outputs["boxes"], outputs["logits" if raw else "scores"], name)
    if not raw:
        return outputs["labels"], outputs["boxes"], outputs["scores"]
    logits, boxes = (outputs[role].astype(np.float32, copy=False) for role in ("logits", "boxes"))
    return decode_raw(logits, boxes, max_detections, decoding)


def keep_best(
    labels: Labels, boxes: Floats, scores: Floats, threshold: float, wanted: frozenset[int] | None
) -> tuple[Labels, Floats, Floats]:
    """Return the detections with scores from `threshold` up and labels in `wanted` (None: all), best first."""
    keep: NDArray[np.bool_] = scores >= threshold
    if wanted is not None:
        keep &= np.isin(labels, list(wanted))
    order = np.flatnonzero(keep)
    order = order[np.argsort(-scores[order], kind="stable")]
    return labels[order].astype(np.int64), boxes[order], scores[order].astype(np.float32)


def check_finite(boxes: Floats, scores: Floats, name: str) -> None:
    """Raise `ArtifactError` when the model `name` returned NaN or infinity, which would look like 'nothing found'."""
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ArtifactError(
            f"{name} returned numbers that are not finite: its precision is broken (an overflow in FP16?); "
            "export it again in FP32"
        )
