"""How far the outputs of one image lie from the model's, compared as sets.

Every detection of a file is matched to the model's query with the nearest box and score for that class, and every
detection of the model above the cut must be found again. Order is not compared: equal scores may be sorted either way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rtdetr_deploy.artifacts.metadata import ArtifactInfo
from rtdetr_deploy.boxes import cxcywh_to_xyxy
from rtdetr_deploy.postprocess import class_scores, decode_raw
from rtdetr_deploy.runtimes import Array

PIXELS_PER_SCORE = 100.0
"""How a score difference weighs against a box difference when looking for the matching query: 0.01 as one pixel."""
CUT_MARGIN = 1e-3
"""Detections of the model this close to the lowest score that is returned may be missing."""

Floats = NDArray[np.float32]


class RawOutput(NamedTuple):
    """One image's class `logits` (Q, K) and `boxes` (Q, 4), cxcywh in [0, 1]."""

    logits: Floats
    boxes: Floats


class Differences(NamedTuple):
    """Differences of each detection or query, and how many of the model's are `missing`.

    `boxes` (N,) is the largest difference of the four coordinates, in pixels of the model's input; `scores` (N,).
    """

    boxes: Floats
    scores: Floats
    missing: int

    @staticmethod
    def pooled(parts: Iterable[Differences]) -> Differences:
        """Return those of several images as one."""
        boxes, scores, missing = zip(*parts, strict=True)
        return Differences(np.concatenate(boxes), np.concatenate(scores), sum(missing))


def compare_outputs(found: Mapping[str, Array], expected: RawOutput, info: ArtifactInfo) -> Differences:
    """Compare a file's outputs for one image (rows of its arrays by name) with the model's."""
    if info.outputs == "raw":
        return compare_raw(RawOutput(found["logits"], found["boxes"]), expected, info)
    return compare_detections(found, expected, info)


def as_file_outputs(output: RawOutput, info: ArtifactInfo) -> dict[str, Array]:
    """Return what a faithful file with these raw outputs would give for the image."""
    if info.outputs == "raw":
        return output._asdict()
    labels, boxes, scores = decode_raw(output.logits, output.boxes, info.max_detections, info.decoding)
    return {"labels": labels, "boxes": boxes.clip(0.0, 1.0), "scores": scores}


def compare_detections(found: Mapping[str, Array], expected: RawOutput, info: ArtifactInfo) -> Differences:
    """Compare labels (N,), boxes (N, 4) xyxy and scores (N,) with the model's raw output."""
    scores = class_scores(expected.logits, info.decoding)
    pixels = _pixels(info)
    corners = cxcywh_to_xyxy(expected.boxes).clip(0.0, 1.0) * pixels
    labels, detected = found["labels"].astype(np.int64), found["boxes"] * pixels
    box = np.abs(detected[:, None] - corners[None]).max(axis=-1)  # (N, Q)
    score = np.abs(found["scores"][:, None] - scores[:, labels].T)
    query = (box + PIXELS_PER_SCORE * score).argmin(axis=1)
    rows = np.arange(len(labels))
    matched = set(zip(query.tolist(), labels.tolist(), strict=True))
    cut = np.sort(scores, axis=None)[-info.max_detections]
    wanted = np.argwhere(scores > cut + CUT_MARGIN)
    missing = sum((int(q), int(k)) not in matched for q, k in wanted)
    return Differences(box[rows, query], score[rows, query], missing)


def compare_raw(found: RawOutput, expected: RawOutput, info: ArtifactInfo) -> Differences:
    """Compare raw outputs query by query, in any order."""
    box = np.abs(found.boxes[:, None] - expected.boxes[None]).max(axis=-1) * _pixels(info).max()
    found_scores, scores = (class_scores(output.logits, info.decoding) for output in (found, expected))
    score = np.stack([np.abs(scores - row).max(axis=-1) for row in found_scores])
    query = (box + PIXELS_PER_SCORE * score).argmin(axis=1)
    rows = np.arange(len(found.boxes))
    return Differences(box[rows, query], score[rows, query], len(expected.boxes) - len(set(query.tolist())))


def _pixels(info: ArtifactInfo) -> Floats:
    return np.array([info.width, info.height, info.width, info.height], np.float32)
