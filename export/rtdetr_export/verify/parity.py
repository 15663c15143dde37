"""Parity report: an exported file against the torch model that it came from, as it was trained.

A difference is allowed up to a fixed tolerance. Where a file misses that, the model's own rounding is measured on the
same images (see `own_rounding`), and a few times that is allowed, quantile by quantile: rounding makes few differences
large. What half of the detections may differ by is bounded whatever the model does, and nearly all must be found, so
that a wrong graph, which moves everything, is refused also where rounding makes a model move a lot. All limits are in
`tolerances`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rtdetr_deploy.artifacts.metadata import ArtifactInfo
from rtdetr_deploy.model.family import family_of
from rtdetr_deploy.runtimes import Array, Runtime, open_runtime
from rtdetr_export.verify.differences import Differences, Floats, RawOutput, as_file_outputs, compare_outputs
from rtdetr_export.verify.own_rounding import Float64Reference
from rtdetr_export.verify.report import Report
from rtdetr_export.verify.synthetic_images import noisy_image, structured_image
from rtdetr_export.verify.tolerances import FIXED, MAX_MEDIAN_BOX, MAX_MEDIAN_SCORE, MAX_MISSING, OWN_ROUNDING_FACTOR

QUANTILES = (0.5, 0.9, 0.99, 1.0)
"""Shares of the detections for which differences are compared with what is allowed."""
MIN_MARGIN = 1e-4
"""Selection margin (logits) below which rounding alone may swap the last query for the first rejected one."""
MAX_SEEDS = 6
"""Images that are tried until the margin is wide enough."""

REMEDY = (
    "Something between the model and its file is wrong: try another version of ONNX Runtime or another opset, and "
    "please report it"
)
UNSTABLE = "No file of such a model can be told from a wrong one; `verify=False` writes it unverified"

ImageMaker = Callable[[int, int, int], NDArray[np.uint8]]
"""`(height, width, seed) -> uint8 (height, width, 3)`."""


@dataclass(frozen=True)
class Allowed:
    """Maximum difference of boxes (pixels) and scores at each of `QUANTILES`, and of missing detections.

    `unstable` is how far rounding alone moves half of the boxes (pixels), where that is too far to judge a file.
    """

    boxes: Floats
    scores: Floats
    missing: int
    unstable: float | None = None

    def admits(self, found: Differences) -> bool:
        """Whether `found` stays within all limits (NaN does not)."""
        boxes, scores = _quantiles(found.boxes) <= self.boxes, _quantiles(found.scores) <= self.scores
        return bool(boxes.all() and scores.all() and found.missing <= self.missing)


FIXED_ALLOWED = Allowed(
    np.full(len(QUANTILES), FIXED.pixels, np.float32), np.full(len(QUANTILES), FIXED.score, np.float32), 0
)
"""What a file may differ by where rounding moves its model little."""


@dataclass(frozen=True)
class Parity:
    """Comparison of one batch: what was `found`, what was `allowed`."""

    title: str
    found: Differences
    allowed: Allowed = FIXED_ALLOWED

    @property
    def passed(self) -> bool:
        """Whether everything lies within what is allowed."""
        return self.allowed.admits(self.found)

    def __str__(self) -> str:
        box, score = _max(self.found.boxes), _max(self.found.scores)
        return (
            f"{self.title:<22} {len(self.found.boxes):5d} detections   box {box:.1e} px   score {score:.1e}   "
            f"missing {self.found.missing}"
        )

    def explain(self) -> str:
        """Return what was allowed, beside what was found in the middle of the detections."""
        box, score = _quantiles(self.found.boxes)[0], _quantiles(self.found.scores)[0]
        source = "fixed tolerance" if self.allowed is FIXED_ALLOWED else "by the model's own rounding"
        text = (
            f"allowed, {source}: box {self.allowed.boxes[-1]:.2g} px, score {self.allowed.scores[-1]:.2g}, "
            f"{self.allowed.missing} missing; median {self.allowed.boxes[0]:.2g} px, {self.allowed.scores[0]:.2g} "
            f"(found {box:.1e} px, {score:.1e})"
        )
        if self.allowed.unstable is not None:
            text += f"; rounding alone moves half of this model's boxes by {self.allowed.unstable:.2g} px"
        return text


@dataclass(frozen=True)
class ParityReport(Report):
    """Comparison of all batches with torch. Pixels are those of the model's input."""

    verdict = "disagrees with the torch model"

    batches: tuple[Parity, ...]

    @property
    def max_box(self) -> float:
        """Maximum box difference in pixels of the model's input."""
        return max(_max(batch.found.boxes) for batch in self.batches)

    @property
    def max_score(self) -> float:
        """Maximum score difference."""
        return max(_max(batch.found.scores) for batch in self.batches)

    @property
    def missing(self) -> int:
        """Detections of the model that the file did not return."""
        return sum(batch.found.missing for batch in self.batches)

    def problems(self) -> list[str]:
        """Return what is wrong in the first batch that differs by more than is allowed, and what may help."""
        for batch in self.batches:
            if not batch.passed:
                remedy = REMEDY if batch.allowed.unstable is None else UNSTABLE
                return [" ".join(str(batch).split()), f"{batch.explain()}. {remedy}"]
        return []

    def __str__(self) -> str:
        lines = [f"parity with torch, run by {self.runtime}:"]
        for batch in self.batches:
            lines += [f"  {batch}"] if batch.allowed is FIXED_ALLOWED else [f"  {batch}", f"    {batch.explain()}"]
        lines.append(
            f"  maximum difference: box {self.max_box:.1e} px, score {self.max_score:.1e} (fixed tolerance: {FIXED})"
        )
        return "\n".join(lines)


def verify_file(path: Path, reference: nn.Module, info: ArtifactInfo) -> ParityReport:
    """Run the file and `reference` (unfolded, eval mode) on structured and noisy images and compare.

    A dynamic batch is run with one and with three images. Raises `ArtifactError` when the file can't be run.
    """
    runtime = open_runtime(path, "onnxruntime" if path.suffix.lower() == ".onnx" else None)
    try:
        plans: list[tuple[str, list[ImageMaker]]] = [("structured", [structured_image]), ("noisy", [noisy_image])]
        if info.batch is None:
            plans.append(("mixed", [structured_image, noisy_image, structured_image]))
        comparison = _Comparison(runtime, reference, info)
        batches = []
        for title, makers in plans:
            makers = [makers[index % len(makers)] for index in range(info.batch or len(makers))]
            batches.append(comparison.compare(f"{title}, batch {len(makers)}", makers))
        return ParityReport(runtime.name, tuple(batches))
    finally:
        runtime.close()


class _Comparison:
    """A file and its model, compared batch by batch."""

    def __init__(self, runtime: Runtime, reference: nn.Module, info: ArtifactInfo) -> None:
        self._runtime, self._reference, self._info = runtime, reference, info

    def compare(self, title: str, makers: Sequence[ImageMaker]) -> Parity:
        """Compare on one image of each of `makers`: with float32 first, by own rounding where that isn't enough."""
        chosen = [_choose(maker, self._reference, self._info, seed=100 * index) for index, maker in enumerate(makers)]
        images = np.stack([image for image, _ in chosen])
        feed = images if self._info.raw_input else to_input(images)
        outputs = self._runtime.run({self._runtime.inputs[0].name: feed})
        rows = [{name: output[row] for name, output in outputs.items()} for row in range(len(images))]
        found = self._differences(rows, [expected for _, expected in chosen])
        parity = Parity(title, found, FIXED_ALLOWED)
        return parity if parity.passed else self._compare_by_own_rounding(title, images, rows)

    def _compare_by_own_rounding(
        self, title: str, images: NDArray[np.uint8], rows: Sequence[dict[str, Array]]
    ) -> Parity:
        measured = [self._float64.measure(torch.from_numpy(to_input(image[None]))) for image in images]
        exact = [own.exact for own in measured]
        rounded = [
            self._differences([as_file_outputs(output, self._info) for output in outputs], exact)
            for outputs in zip(*(own.rounded for own in measured), strict=True)
        ]
        longer_side = max(self._info.height, self._info.width)
        return Parity(title, self._differences(rows, exact), allow(rounded, longer_side))

    @cached_property
    def _float64(self) -> Float64Reference:
        return Float64Reference(self._reference)

    def _differences(self, rows: Iterable[dict[str, Array]], expected: Iterable[RawOutput]) -> Differences:
        return Differences.pooled(compare_outputs(*pair, self._info) for pair in zip(rows, expected, strict=True))


def allow(rounded: Sequence[Differences], longer_side: int) -> Allowed:
    """Return what a file may differ by: the fixed tolerance, or a few times what `rounded` runs of the model do.

    `longer_side` of the input in pixels bounds the median.
    """
    own_boxes = np.max([_quantiles(run.boxes) for run in rounded], axis=0)
    own_scores = np.max([_quantiles(run.scores) for run in rounded], axis=0)
    boxes = np.maximum(FIXED_ALLOWED.boxes, OWN_ROUNDING_FACTOR * own_boxes)
    scores = np.maximum(FIXED_ALLOWED.scores, OWN_ROUNDING_FACTOR * own_scores)
    bound = max(MAX_MEDIAN_BOX * longer_side, FIXED.pixels)
    boxes[0], scores[0] = min(boxes[0], bound), min(scores[0], MAX_MEDIAN_SCORE)
    missing = min(
        OWN_ROUNDING_FACTOR * max(run.missing for run in rounded), MAX_MISSING * max(len(run.boxes) for run in rounded)
    )
    return Allowed(boxes, scores, int(missing), float(own_boxes[0]) if own_boxes[0] > bound else None)


def _quantiles(values: Floats) -> Floats:
    return np.quantile(values, QUANTILES).astype(np.float32) if len(values) else np.zeros(len(QUANTILES), np.float32)


def _max(values: Floats) -> float:
    return float(values.max(initial=0.0))


def to_input(images: NDArray[np.uint8]) -> Floats:
    """uint8 `(B, H, W, 3)` -> float32 `(B, 3, H, W)` in [0, 1]."""
    scaled: Floats = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255.0)
    return scaled


@torch.no_grad()
def _choose(
    maker: ImageMaker, reference: nn.Module, info: ArtifactInfo, seed: int
) -> tuple[NDArray[np.uint8], RawOutput]:
    """Return an image whose selected queries are separated from the rejected by more than rounding, and the output."""
    best: tuple[float, NDArray[np.uint8], RawOutput] | None = None
    family = family_of(reference)
    for attempt in range(MAX_SEEDS):
        image = maker(info.height, info.width, seed + attempt)
        maps = family.encode(reference, torch.from_numpy(to_input(image[None])))
        margin = family.selection_margin(reference, maps)
        if best is None or margin > best[0]:
            logits, boxes = family.decode(reference, maps)
            best = (margin, image, RawOutput(logits[0].numpy(), boxes[0].numpy()))
        if margin >= MIN_MARGIN:
            break
    assert best is not None
    return best[1:]
