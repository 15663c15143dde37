"""Parity report: an exported file against the torch model that it came from.

Detections are compared as sets: every detection of the file is matched to the reference's query with the nearest box
and score for that class, and every reference detection above the cut must be found again. Order is not compared,
because equal scores may be sorted either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rtdetr_deploy.artifact import ArtifactInfo
from rtdetr_deploy.errors import ExportError
from rtdetr_deploy.model import RTDETR
from rtdetr_deploy.model.query_selection import score_tokens
from rtdetr_deploy.runtimes import Array, Runtime, open_runtime
from rtdetr_export.probes import noisy_image, structured_image

TOLERANCES = {"gather": (0.1, 1e-3), "grid": (0.1, 1e-3), "discrete": (2.0, 1e-2)}
"""Allowed box difference (pixels of the model's input) and score difference per sampler. Discrete sampling rounds
locations to cells, so rounding errors of 1e-6 make a few samples jump to the neighbouring cell."""
PIXELS_PER_SCORE = 100.0
"""How a score difference weighs against a box difference when looking for the matching query: 0.01 as one pixel."""
MIN_GAP = 1e-4
"""Selection gap (logits) below which rounding alone may swap the last query for the first rejected one."""
SEED_TRIES = 6

Floats = NDArray[np.float32]
ProbeMaker = Callable[[int, int, int], NDArray[np.uint8]]
"""`(height, width, seed) -> uint8 (height, width, 3)`."""


@dataclass(frozen=True)
class Parity:
    """Comparison of one batch: differences of all matched detections and reference detections not found."""

    title: str
    boxes: Floats
    scores: Floats
    missing: int


@dataclass(frozen=True)
class ParityReport:
    """Comparison of all batches; `runtime` ran the file. Tolerances in pixels of the model's input and as score."""

    runtime: str
    box_tolerance: float
    score_tolerance: float
    batches: tuple[Parity, ...]

    @property
    def largest_box(self) -> float:
        """Largest box difference in pixels of the model's input."""
        return max(float(batch.boxes.max(initial=0.0)) for batch in self.batches)

    @property
    def largest_score(self) -> float:
        """Largest score difference."""
        return max(float(batch.scores.max(initial=0.0)) for batch in self.batches)

    @property
    def missing(self) -> int:
        """Reference detections that the file did not return."""
        return sum(batch.missing for batch in self.batches)

    @property
    def passed(self) -> bool:
        """Whether everything lies within tolerance (NaN does not)."""
        boxes, scores = self.largest_box <= self.box_tolerance, self.largest_score <= self.score_tolerance
        return self.missing == 0 and boxes and scores

    def require(self, name: str) -> None:
        """Raise `ExportError` unless the report passed."""
        if not self.passed:
            raise ExportError(
                f"{name} disagrees with the torch model and was not written: boxes differ by up to "
                f"{self.largest_box:.3g} px (allowed {self.box_tolerance}), scores by {self.largest_score:.2g} "
                f"(allowed {self.score_tolerance}), {self.missing} detections are missing; "
                "try another --sampler or --opset"
            )

    def __str__(self) -> str:
        lines = [f"parity with torch, run by {self.runtime}:"]
        lines += [
            f"  {batch.title:<22} {len(batch.boxes):5d} detections   box {batch.boxes.max(initial=0.0):.1e} px   "
            f"score {batch.scores.max(initial=0.0):.1e}   missing {batch.missing}"
            for batch in self.batches
        ]
        lines.append(
            f"  largest difference: box {self.largest_box:.1e} px (allowed {self.box_tolerance}), "
            f"score {self.largest_score:.1e} (allowed {self.score_tolerance})"
        )
        return "\n".join(lines)


def verify_file(path: Path, reference: RTDETR, info: ArtifactInfo) -> ParityReport:
    """Run the file and `reference` (unfolded, eval mode) on structured and noisy images and compare.

    A dynamic batch is run with one and with three images. Raises `ArtifactError` when the file can't be run.
    """
    runtime = open_runtime(path)
    try:
        plans: list[tuple[str, list[ProbeMaker]]] = [("structured", [structured_image]), ("noisy", [noisy_image])]
        if info.batch is None:
            plans.append(("mixed", [structured_image, noisy_image, structured_image]))
        batches = []
        for title, makers in plans:
            makers = [makers[index % len(makers)] for index in range(info.batch or len(makers))]
            batches.append(_compare_batch(f"{title}, batch {len(makers)}", makers, runtime, reference, info))
        return ParityReport(runtime.name, *TOLERANCES[info.sampler], tuple(batches))
    finally:
        runtime.close()


def _compare_batch(
    title: str,
    makers: Sequence[ProbeMaker],
    runtime: Runtime,
    reference: RTDETR,
    info: ArtifactInfo,
) -> Parity:
    chosen = [_choose(maker, reference, info, seed=100 * index) for index, maker in enumerate(makers)]
    images = np.stack([image for image, _, _ in chosen])
    feed = images if info.raw_input else to_input(images)
    outputs = runtime.run({runtime.inputs[0].name: feed})
    boxes, scores, missing = [], [], 0
    for row, (_, logits, expected) in enumerate(chosen):
        found = {name: output[row] for name, output in outputs.items()}
        if info.outputs == "raw":
            box, score, lost = compare_raw(found["logits"], found["boxes"], logits, expected, info)
        else:
            box, score, lost = compare_detections(found, logits, expected, info)
        boxes.append(box)
        scores.append(score)
        missing += lost
    return Parity(title, np.concatenate(boxes), np.concatenate(scores), missing)


def to_input(images: NDArray[np.uint8]) -> Floats:
    """uint8 `(B, H, W, 3)` -> float32 `(B, 3, H, W)` in [0, 1]."""
    scaled: Floats = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255.0)
    return scaled


@torch.no_grad()
def _choose(
    maker: ProbeMaker, reference: RTDETR, info: ArtifactInfo, seed: int
) -> tuple[NDArray[np.uint8], Floats, Floats]:
    """Return an image whose query selection is no toss-up, and the reference's logits (Q, K) and boxes (Q, 4)."""
    best: tuple[float, NDArray[np.uint8], Floats, Floats] | None = None
    for attempt in range(SEED_TRIES):
        image = maker(info.height, info.width, seed + attempt)
        maps = reference.encoder(reference.backbone(torch.from_numpy(to_input(image[None]))))
        gap = selection_gap(reference, maps)
        if best is None or gap > best[0]:
            output = reference.decoder(maps)
            best = (gap, image, output.logits[-1][0].numpy(), output.boxes[-1][0].numpy())
        if gap >= MIN_GAP:
            break
    assert best is not None
    return best[1:]


def selection_gap(reference: RTDETR, maps: list[torch.Tensor]) -> float:
    """Return the score difference (logits) between the last selected and the first rejected token of one image."""
    decoder = reference.decoder
    memory, shapes = decoder.flatten(maps)
    _, scores = score_tokens(memory, shapes, project=decoder.enc_output, score=decoder.enc_score_head)
    best = scores[0].amax(dim=-1)
    if len(best) <= decoder.queries:
        return float("inf")
    kept, rejected = best.topk(decoder.queries + 1).values[-2:]
    return float(kept - rejected)


def compare_detections(
    found: dict[str, Array], logits: Floats, boxes: Floats, info: ArtifactInfo
) -> tuple[Floats, Floats, int]:
    """Compare one image's labels, boxes, scores with the reference's logits (Q, K) and boxes (Q, 4) cxcywh.

    Returns box differences (pixels) and score differences, one per detection, and the number of reference detections
    that are missing; those within the score tolerance of the cut may be.
    """
    expected_scores = _sigmoid(logits)
    pixels = _pixels(info)
    corners = _corners(boxes) * pixels
    labels, detected = found["labels"].astype(np.int64), found["boxes"] * pixels
    box = np.abs(detected[:, None] - corners[None]).max(axis=-1)  # (N, Q)
    score = np.abs(found["scores"][:, None] - expected_scores[:, labels].T)
    query = (box + PIXELS_PER_SCORE * score).argmin(axis=1)
    rows = np.arange(len(labels))
    matched = set(zip(query.tolist(), labels.tolist(), strict=True))
    cut = np.sort(expected_scores, axis=None)[-info.max_detections]
    wanted = np.argwhere(expected_scores > cut + TOLERANCES[info.sampler][1])
    missing = sum((int(q), int(k)) not in matched for q, k in wanted)
    return box[rows, query], score[rows, query], missing


def compare_raw(
    found_logits: Floats, found_boxes: Floats, logits: Floats, boxes: Floats, info: ArtifactInfo
) -> tuple[Floats, Floats, int]:
    """Compare one image's queries with the reference's, in any order; differences per query, and queries not found."""
    pixels = _pixels(info)
    box = np.abs(found_boxes[:, None] - boxes[None]).max(axis=-1) * pixels.max()
    found_scores, scores = _sigmoid(found_logits), _sigmoid(logits)
    score = np.stack([np.abs(scores - row).max(axis=-1) for row in found_scores])
    query = (box + PIXELS_PER_SCORE * score).argmin(axis=1)
    rows = np.arange(len(found_boxes))
    return box[rows, query], score[rows, query], len(boxes) - len(set(query.tolist()))


def _pixels(info: ArtifactInfo) -> Floats:
    return np.array([info.width, info.height, info.width, info.height], np.float32)


def _corners(boxes: Floats) -> Floats:
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=1).clip(0.0, 1.0)


def _sigmoid(logits: Floats) -> Floats:
    return (1.0 / (1.0 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
