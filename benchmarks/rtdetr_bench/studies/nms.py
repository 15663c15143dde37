"""What non-maximum suppression costs and how it depends on thresholds (arXiv 2304.08069, section 3).

Three questions, on the user's own images: how many boxes are left at each confidence threshold, how long suppression
takes at each pair of thresholds, and, with annotations, what AP each pair gives. RT-DETR is measured at the same
confidence thresholds: it has nothing to suppress.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rtdetr_bench.models.contestants import Contestant, Detr, Entry, Yolo, check_applies, open_contestant
from rtdetr_bench.models.nms import METHODS, NmsOptions
from rtdetr_deploy import Detections, OptionError
from rtdetr_deploy.evaluate.coco import Annotations, average_precision, read_annotations, require_evaluator
from rtdetr_deploy.evaluate.published import NMS
from rtdetr_deploy.words import plural, printable

CURVE = (0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CONFIDENCES = (0.001, 0.01, 0.05, 0.25)
IOUS = (0.5, 0.6, 0.7, 0.8)
Pair = tuple[float, float]

REPEATS = 3
"""Times that a suppression is run; the least time counts, since it is what others disturb."""


@dataclass(frozen=True)
class NmsRow:
    """A pair of thresholds: mean milliseconds per image for each implementation of NMS, detections kept, AP.

    `slowest` is the slowest image of the first implementation.
    """

    confidence: float
    iou: float
    milliseconds: dict[str, float]
    slowest: float
    kept: float
    ap: float | None


@dataclass(frozen=True)
class NmsStudy:
    """Mean boxes left per image by confidence threshold, a row per pair of thresholds, and RT-DETR's flat line.

    `flat` holds RT-DETR's postprocess milliseconds and AP (None without annotations) by confidence threshold.
    """

    model: str
    images: int
    curve: dict[float, float]
    rows: tuple[NmsRow, ...]
    detr: str | None
    flat: dict[float, tuple[float, float | None]]

    def to_json(self) -> dict[str, Any]:
        """Return the study for a JSON file."""
        return {
            "model": self.model,
            "images": self.images,
            "rounds": REPEATS,
            "boxes_left": {str(confidence): count for confidence, count in self.curve.items()},
            "rows": [vars(row) for row in self.rows],
            "rtdetr": self.detr,
            "rtdetr_by_confidence": {
                str(confidence): {"postprocess_ms": milliseconds, "AP": ap}
                for confidence, (milliseconds, ap) in self.flat.items()
            },
        }


def study_nms(
    model: Path,
    images: Sequence[Path],
    *,
    detr: Path | None = None,
    annotations: Path | None = None,
    folder: Path | None = None,
    entry: Entry | None = None,
    on_image: Callable[[], object] | None = None,
) -> NmsStudy:
    """Study the YOLO `model` on `images`, or on those of `annotations` in `folder`; RT-DETR `detr` beside it.

    Raises `OptionError` without images, or when the model has nothing to suppress.
    """
    entry = entry or Entry()
    if annotations is not None:
        require_evaluator()
    opened: list[Contestant] = []
    if detr is not None:
        opened.append(_open_detr(detr, entry))
        opened[0].close()  # it was only opened to say first that it can't be shown beside
    yolo = open_contestant(model, entry)
    try:
        check_applies([*opened, yolo], entry)
        if not isinstance(yolo, Yolo) or not yolo.needs_nms:
            raise OptionError(
                f"{model.name} has no boxes left to suppress; --nms-study takes a YOLO without NMS in its graph"
            )
        truth = None
        if annotations is not None and folder is not None:
            truth = read_annotations(annotations, folder, yolo.class_names)
            images = [path for _, path in truth.images]
        if not images:
            raise OptionError("--nms-study needs --images: NMS time depends on what is in them")
        curve, rows = _study_yolo(yolo, images, truth, on_image)
    finally:
        yolo.close()
    flat = {} if detr is None else _study_detr(detr, images, annotations, folder, entry, on_image)
    return NmsStudy(
        printable(model.name), len(images), curve, rows, printable(detr.name) if detr is not None else None, flat
    )


def _study_yolo(
    yolo: Yolo, images: Sequence[Path], truth: Annotations | None, on_image: Callable[[], object] | None
) -> tuple[dict[float, float], tuple[NmsRow, ...]]:
    pairs = [(confidence, iou) for confidence in CONFIDENCES for iou in IOUS]
    first = next(iter(METHODS))
    counts = dict.fromkeys(CURVE, 0)
    times: dict[Pair, dict[str, list[float]]] = {pair: {method: [] for method in METHODS} for pair in pairs}
    found: dict[Pair, list[Detections]] = {pair: [] for pair in pairs}
    for path in images:
        outputs, to_image = yolo.outputs_of(path)
        for confidence in CURVE:
            counts[confidence] += yolo.count_boxes(outputs, confidence)
        for pair in pairs:
            options = NmsOptions(*pair)
            for method in METHODS:
                results = [yolo.decode(outputs, 0, to_image, replace(options, method=method)) for _ in range(REPEATS)]
                times[pair][method].append(min(elapsed for _, _, elapsed in results))
                if method == first:
                    found[pair].append(results[0][0])
        if on_image is not None:
            on_image()
    rows = []
    for pair in pairs:
        by_method = times[pair]
        rows.append(
            NmsRow(
                *pair,
                {method: float(np.mean(values)) for method, values in by_method.items()},
                float(np.max(by_method[first])),
                float(np.mean([len(one) for one in found[pair]])),
                None if truth is None else average_precision(found[pair], truth, yolo.class_names).ap,
            )
        )
    return {confidence: count / len(images) for confidence, count in counts.items()}, tuple(rows)


def _study_detr(
    path: Path,
    images: Sequence[Path],
    annotations: Path | None,
    folder: Path | None,
    entry: Entry,
    on_image: Callable[[], object] | None,
) -> dict[float, tuple[float, float | None]]:
    detr = _open_detr(path, entry)
    try:
        truth = None
        if annotations is not None and folder is not None:
            truth = read_annotations(annotations, folder, detr.class_names)
        times: dict[float, list[float]] = {confidence: [] for confidence in CONFIDENCES}
        found: dict[float, list[Detections]] = {confidence: [] for confidence in CONFIDENCES}
        for image in images:
            decode = detr.prepare_decode(image)
            for confidence in CONFIDENCES:
                elapsed = []
                for _ in range(REPEATS):
                    start = time.perf_counter()
                    result = decode(confidence)
                    elapsed.append(1000.0 * (time.perf_counter() - start))
                times[confidence].append(min(elapsed))
                found[confidence].append(result)
            if on_image is not None:
                on_image()
        names = detr.class_names
    finally:
        detr.close()
    return {
        confidence: (
            float(np.mean(times[confidence])),
            None if truth is None else average_precision(found[confidence], truth, names).ap,
        )
        for confidence in CONFIDENCES
    }


def _open_detr(path: Path, entry: Entry) -> Detr:
    model = open_contestant(path, entry)
    if not isinstance(model, Detr):
        model.close()
        raise OptionError(f"{path.name} is not an RT-DETR; --engine names the model that is shown beside the YOLO")
    return model


def format_nms(study: NmsStudy) -> str:
    """Return the tables of the study."""
    lines = [f"{study.model}, {plural(study.images, 'image')}; boxes left per image, by confidence threshold:"]
    lines += ["  " + "  ".join(f"{confidence:g}: {count:.0f}" for confidence, count in study.curve.items())]
    methods = list(study.rows[0].milliseconds)
    lines.append("NMS, mean milliseconds per image")
    heads = "".join(f"{method:>9}" for method in methods)
    lines.append(f"{'conf':>7}{'IoU':>6}{heads}{'slowest':>9}{'kept':>7}{'AP':>9}   published (YOLOv8-L, T4): AP, ms")
    for row in study.rows:
        ap = "-" if row.ap is None else f"{row.ap:.4f}"
        published = NMS.get((row.confidence, row.iou))
        told = "" if published is None else f"   {published[0]:.1f}, {published[1]:.2f}"
        columns = "".join(f"{row.milliseconds[method]:>9.3f}" for method in methods)
        lines.append(f"{row.confidence:>7g}{row.iou:>6g}{columns}{row.slowest:>9.3f}{row.kept:>7.0f}{ap:>9}{told}")
    if study.detr is not None:
        lines.append(f"{study.detr}: no NMS; whole postprocess in milliseconds, and AP")
        for confidence, (milliseconds, precision) in study.flat.items():
            ap = "-" if precision is None else f"{precision:.4f}"
            lines.append(f"{confidence:>7g}{'':>6}{milliseconds:>9.3f}{'':>25}{ap:>9}")
    return "\n".join(lines)
