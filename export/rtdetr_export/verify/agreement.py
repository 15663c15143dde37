"""How far a file of lower precision, or an engine, detects what the FP32 model detects.

"AP hardly moves" hides moved boxes, so detections are compared one by one: a reference detection counts as matched when
the other side has one of the same class, not claimed by another, within a tolerance in pixels and score.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtdetr_deploy import Detections
from rtdetr_deploy.words import plural
from rtdetr_export.verify.tolerances import MAX_ALLOWANCE_SHARE, TOLERANCES, Limits, Tolerance

Floats = NDArray[np.float32]

CONFIDENT = 0.3
"""Detections of the reference with at least this score are looked for."""


@dataclass(frozen=True)
class Agreement:
    """`expected` detections of the reference, the number `matched` at each of `tolerances`, and `spurious` ones.

    `spurious` counts confident detections that no reference detection matches at the widest tolerance, whatever its
    score. `boxes` and `scores` are differences of those matched at the widest tolerance.
    """

    tolerances: tuple[Tolerance, ...]
    expected: int
    matched: tuple[int, ...]
    spurious: int
    boxes: Floats
    scores: Floats

    def match_rate(self, index: int = 0) -> float:
        """Share of the expected detections that are matched at tolerance `index`; 1 when there are none."""
        return self.matched[index] / self.expected if self.expected else 1.0

    def keeps_to(self, limits: Limits) -> bool:
        """Whether enough are matched within the widest tolerance and few enough are spurious."""
        spared = min(limits.allowance, MAX_ALLOWANCE_SHARE * self.expected)
        few = limits.max_spurious is None or self.spurious <= max(limits.max_spurious * self.expected, spared)
        enough = self.match_rate(-1) >= limits.min_match_rate or self.expected - self.matched[-1] <= spared
        return enough and few

    def __str__(self) -> str:
        parts = [f"{self.match_rate(i):.4f} within {tolerance}" for i, tolerance in enumerate(self.tolerances)]
        found = f"{'; '.join(parts)}; {plural(self.spurious, 'extra detection')}"
        return f"{plural(self.expected, 'detection')} with score >= {CONFIDENT}: {found}"


def compare(
    reference: Iterable[Detections],
    found: Iterable[Detections],
    tolerances: Sequence[Tolerance] = TOLERANCES,
    *,
    at_least: int = 0,
) -> Agreement:
    """Compare detections image by image; both sides hold all their detections (threshold 0), best first.

    `tolerances` go from narrow to wide. The best `at_least` detections of an image are looked for even where they are
    not confident. Raises `ValueError` when the numbers of images differ.
    """
    count, spurious = 0, 0
    matched = [0] * len(tolerances)
    boxes: list[Floats] = []
    scores: list[Floats] = []
    for expected, other in zip(reference, found, strict=True):
        sure = (expected.scores >= CONFIDENT) | (np.arange(len(expected)) < at_least)
        count += int(sure.sum())
        for index, tolerance in enumerate(tolerances):
            pairs = _pairs(expected, other, tolerance, np.flatnonzero(sure))
            matched[index] += len(pairs)
        boxes.append(np.array([np.abs(expected.boxes[i] - other.boxes[j]).max() for i, j in pairs], np.float32))
        scores.append(np.array([abs(expected.scores[i] - other.scores[j]) for i, j in pairs], np.float32))
        also = np.flatnonzero(other.scores >= CONFIDENT)
        spurious += len(also) - len(_pairs(other, expected, tolerances[-1], also))
    return Agreement(tuple(tolerances), count, tuple(matched), spurious, np.concatenate(boxes), np.concatenate(scores))


def _pairs(one: Detections, other: Detections, tolerance: Tolerance, rows: NDArray[np.intp]) -> list[tuple[int, int]]:
    """Match `rows` of `one`, best score first, each with the nearest detection of `other` that is free."""
    pairs: list[tuple[int, int]] = []
    free = np.ones(len(other), bool)
    for row in rows:
        box = np.abs(other.boxes - one.boxes[row]).max(axis=1, initial=0.0)
        score = np.abs(other.scores - one.scores[row])
        fits = free & (other.labels == one.labels[row]) & (box <= tolerance.pixels) & (score <= tolerance.score)
        if fits.any():
            best = int(np.where(fits, box / tolerance.pixels + score / tolerance.score, np.inf).argmin())
            free[best] = False
            pairs.append((int(row), best))
    return pairs
