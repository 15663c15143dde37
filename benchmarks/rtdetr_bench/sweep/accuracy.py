"""The second part of a sweep: AP of each candidate on the user's own images, and how much of the whole model it keeps.

An FP32 file gives the same detections in every runtime that computes in FP32. Such a candidate is compared with one
that is evaluated already on the first `SAMPLE` images, and where each detection agrees it shares that one's figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rtdetr_bench.sweep.axes import Candidate
from rtdetr_bench.sweep.options import SweepOptions
from rtdetr_bench.sweep.state import Json
from rtdetr_deploy import Detections, Predictor
from rtdetr_deploy.evaluate.coco import Annotations, average_precision
from rtdetr_deploy.files import atomic_write
from rtdetr_export.verify.agreement import CONFIDENT, compare
from rtdetr_export.verify.tolerances import FIXED, TOLERANCES, Limits

SAMPLE = 16
REFERENCE = "sweep-reference.npz"
EXACT = Limits((FIXED,), 1.0)


def open_candidate(candidate: Candidate, folder: Path, options: SweepOptions) -> Predictor:
    """Open a candidate's file as it is to be run."""
    return Predictor(folder / candidate.file.name, runtime=candidate.way.runtime, **run_arguments(candidate, options))


def run_arguments(candidate: Candidate, options: SweepOptions) -> dict[str, Any]:
    """Return the keyword arguments of `Predictor` but for the runtime: arithmetic, device, threads."""
    threads = options.where.threads if candidate.way.runtime != "tensorrt" else None
    given = {"device": options.where.device, "threads": threads}
    return {**candidate.way.where, **{name: value for name, value in given.items() if value is not None}}


def choose_images(truth: Annotations, count: int | None) -> Annotations:
    """Return the annotations of `count` images, spread evenly over all (None: all of them)."""
    total = len(truth.images)
    if count is None or count >= total:
        return truth
    rows = np.unique(np.linspace(0, total - 1, count).round().astype(int))
    images = tuple(truth.images[row] for row in rows)
    ids = {number for number, _ in images}
    content = {
        **truth.content,
        "images": [image for image in truth.content["images"] if image["id"] in ids],
        "annotations": [one for one in truth.content["annotations"] if one["image_id"] in ids],
    }
    return replace(truth, content=content, images=images)


class Evaluation:
    """Evaluates candidates on `truth`, and compares them with the detections of the whole model.

    The output folder holds the files, and the whole model's detections once `look_for` has found them. `made_of` tells
    the digests of the whole model's file and of the data. Without its detections `match_rate` is None.
    """

    def __init__(self, truth: Annotations, options: SweepOptions, made_of: str = "") -> None:
        self._truth, self._options, self._folder, self._made_of = truth, options, options.output, made_of
        self._expected: list[Detections] = []
        self._samples: dict[str, list[tuple[str, list[Detections], Json]]] = {}

    def look_for(self, reference: Candidate, on_image: Callable[[], object]) -> Json:
        """Evaluate the whole model, and keep what it detects."""
        found = self._detect(reference, on_image)
        self._expected = [one.filter(threshold=CONFIDENT) for one in found]
        self._save()
        return self._result(reference, found)

    def reopen(self) -> bool:
        """Take what `look_for` kept in an earlier call; tell whether it is there, of the same model and data."""
        path = self._folder / REFERENCE
        try:
            with np.load(path, allow_pickle=False) as content:
                if str(content["made_of"]) != self._made_of:
                    return False
                counts, boxes, scores, labels = (content[name] for name in ("counts", "boxes", "scores", "labels"))
            ends = np.cumsum(counts)[:-1]
            parts = zip(*(np.split(array, ends) for array in (boxes, scores, labels)), strict=True)
            self._expected = [Detections(box, score, label, ("",) * len(label)) for box, score, label in parts]
        except (OSError, ValueError, LookupError, TypeError):
            return False
        return len(self._expected) == len(self._truth.images)

    def evaluate(self, candidate: Candidate, on_image: Callable[[], object]) -> Json:
        """Return AP, AP50 and the share of the whole model's detections that are found."""
        same = self._find_same(candidate)
        return same if same is not None else self._result(candidate, self._detect(candidate, on_image))

    def _detect(self, candidate: Candidate, on_image: Callable[[], object]) -> list[Detections]:
        found = []
        with open_candidate(candidate, self._folder, self._options) as predictor:
            for detections in predictor.stream([path for _, path in self._truth.images], threshold=0.0):
                found.append(detections)
                on_image()
        return found

    def _result(self, candidate: Candidate, found: Sequence[Detections]) -> Json:
        accuracy = average_precision(found, self._truth, found[0].class_names)
        kept = None
        if self._expected:
            kept = round(compare(self._expected, found, TOLERANCES[-1:]).match_rate(), 4)
        result = {"AP": accuracy.metrics["AP"], "AP50": accuracy.metrics["AP50"], "match_rate": kept}
        if _is_exact(candidate):
            known = self._samples.setdefault(candidate.file.name, [])
            known.append((candidate.name, list(found[:SAMPLE]), result))
        return result

    def _find_same(self, candidate: Candidate) -> Json | None:
        """Return the figures of a candidate that detects the same; None where there is none, or few images."""
        known = self._samples.get(candidate.file.name, []) if _is_exact(candidate) else []
        if not known or len(self._truth.images) < 2 * SAMPLE:
            return None
        name, expected, result = known[0]
        with open_candidate(candidate, self._folder, self._options) as predictor:
            found = predictor.detect_batch([path for _, path in self._truth.images[:SAMPLE]], threshold=0.0)
        return {**result, "same_as": name} if compare(expected, found, (FIXED,)).keeps_to(EXACT) else None

    def _save(self) -> None:
        with atomic_write(self._folder / REFERENCE) as beside, beside.open("wb") as file:
            np.savez_compressed(
                file,
                made_of=np.array(self._made_of),
                counts=np.array([len(one) for one in self._expected]),
                boxes=_joined((one.boxes for one in self._expected), (0, 4)),
                scores=_joined((one.scores for one in self._expected), (0,)),
                labels=_joined((one.labels for one in self._expected), (0,)),
            )


def _joined(arrays: Iterable[np.ndarray], empty: tuple[int, ...]) -> np.ndarray:
    every = list(arrays)
    return np.concatenate(every) if every else np.empty(empty)


def _is_exact(candidate: Candidate) -> bool:
    return candidate.file.precision == "fp32" and candidate.way.arithmetic == "fp32"
