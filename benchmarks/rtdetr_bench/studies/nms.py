"""What non-maximum suppression costs and how it depends on thresholds (arXiv 2304.08069, section 3).

Three questions, on the user's own images: how many boxes are left at each score threshold, how long suppression
takes at each pair of thresholds, and, with annotations, what AP each pair gives. RT-DETR is measured at the same
score thresholds: it has nothing to suppress.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rtdetr_bench.models.nms import METHODS, NmsOptions
from rtdetr_bench.models.open import check_applies, open_timed_model
from rtdetr_bench.models.rtdetr import RtDetrModel
from rtdetr_bench.models.timed_model import TimedModel
from rtdetr_bench.models.yolo import YoloModel
from rtdetr_bench.options import EvaluationSet, NmsStudyOptions, RunOptions
from rtdetr_deploy import Detections, OptionError
from rtdetr_deploy.evaluate.coco import Annotations, average_precision
from rtdetr_deploy.evaluate.published import NMS
from rtdetr_deploy.words import plural, printable

CURVE = (0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
THRESHOLDS = (0.001, 0.01, 0.05, 0.25)
IOUS = (0.5, 0.6, 0.7, 0.8)
ThresholdPair = tuple[float, float]

REPEATS = 3
"""Times that a suppression is run; the minimum counts, since others only add to it."""


@dataclass(frozen=True)
class NmsRow:
    """A pair of thresholds: mean milliseconds per image for each implementation of NMS, detections kept, AP.

    `slowest` is the slowest image of the first implementation.
    """

    threshold: float
    iou: float
    milliseconds: dict[str, float]
    slowest: float
    kept: float
    ap: float | None


@dataclass(frozen=True)
class NmsStudy:
    """Mean boxes left per image by score threshold, a row per pair of thresholds, and RT-DETR's flat line.

    `flat` holds RT-DETR's milliseconds of decoding and AP (None without annotations) by score threshold.
    """

    model: str
    images: int
    curve: dict[float, float]
    rows: tuple[NmsRow, ...]
    rtdetr: str | None
    flat: dict[float, tuple[float, float | None]]

    def to_json(self) -> dict[str, Any]:
        """Return the study for a JSON file."""
        return {
            "model": self.model,
            "images": self.images,
            "rounds": REPEATS,
            "boxes_left": {str(threshold): count for threshold, count in self.curve.items()},
            "rows": [vars(row) for row in self.rows],
            "rtdetr": self.rtdetr,
            "rtdetr_by_threshold": {
                str(threshold): {"decode_ms": milliseconds, "AP": ap}
                for threshold, (milliseconds, ap) in self.flat.items()
            },
        }


def study_nms(options: NmsStudyOptions, *, on_image: Callable[[], object] | None = None) -> NmsStudy:
    """Study a YOLO on images, or on those of the annotations, and RT-DETR beside it.

    `on_image` is called after each image of each model. Raises `OptionError` without images, or when the model has
    nothing to suppress.
    """
    run, evaluation, against = options.run, options.images.evaluation, options.against
    images = options.images.find()
    if not images:
        raise OptionError("the study needs `images`: NMS time depends on what is in them")
    run.check_runtime([options.engine] if against is None else [options.engine, against])
    models: list[TimedModel] = []
    if against is not None:
        models.append(_open_rtdetr(against, run))
        models[0].close()  # it was only opened to say first that it can't be shown beside
    yolo = open_timed_model(options.engine, run)
    try:
        check_applies([*models, yolo], run)
        if not isinstance(yolo, YoloModel) or not yolo.needs_nms:
            raise OptionError(
                f"`engine` is {options.engine.name}, which has no boxes left to suppress; expected a YOLO without NMS "
                "in its graph"
            )
        truth = None if evaluation is None else evaluation.read(yolo.class_names)
        if truth is not None:
            images = [path for _, path in truth.images]
        curve, rows = _study_yolo(yolo, images, truth, on_image)
    finally:
        yolo.close()
    flat = {} if against is None else _study_rtdetr(against, images, evaluation, run, on_image)
    name = None if against is None else printable(against.name)
    return NmsStudy(printable(options.engine.name), len(images), curve, rows, name, flat)


def _study_yolo(
    yolo: YoloModel, images: Sequence[Path], truth: Annotations | None, on_image: Callable[[], object] | None
) -> tuple[dict[float, float], tuple[NmsRow, ...]]:
    pairs = [(threshold, iou) for threshold in THRESHOLDS for iou in IOUS]
    first = next(iter(METHODS))
    counts = dict.fromkeys(CURVE, 0)
    times: dict[ThresholdPair, dict[str, list[float]]] = {pair: {method: [] for method in METHODS} for pair in pairs}
    found: dict[ThresholdPair, list[Detections]] = {pair: [] for pair in pairs}
    for path in images:
        outputs, to_image = yolo.outputs_of(path)
        for threshold in CURVE:
            counts[threshold] += yolo.count_boxes(outputs, threshold)
        for pair in pairs:
            for method in METHODS:
                nms = NmsOptions(*pair, method=method)
                results = [yolo.decode(outputs, 0, to_image, nms) for _ in range(REPEATS)]
                times[pair][method].append(min(elapsed for _, _, elapsed in results))
                if method == first:
                    found[pair].append(results[0][0])
        if on_image is not None:
            on_image()
    rows = [
        NmsRow(
            *pair,
            {method: float(np.mean(values)) for method, values in times[pair].items()},
            float(np.max(times[pair][first])),
            float(np.mean([len(one) for one in found[pair]])),
            None if truth is None else average_precision(found[pair], truth, yolo.class_names).ap,
        )
        for pair in pairs
    ]
    return {threshold: count / len(images) for threshold, count in counts.items()}, tuple(rows)


def _study_rtdetr(
    path: Path,
    images: Sequence[Path],
    evaluation: EvaluationSet | None,
    run: RunOptions,
    on_image: Callable[[], object] | None,
) -> dict[float, tuple[float, float | None]]:
    times: dict[float, list[float]] = {threshold: [] for threshold in THRESHOLDS}
    found: dict[float, list[Detections]] = {threshold: [] for threshold in THRESHOLDS}
    model = _open_rtdetr(path, run)
    try:
        names = model.class_names
        truth = None if evaluation is None else evaluation.read(names)
        for image in images:
            decode = model.run(image)
            for threshold in THRESHOLDS:
                result, milliseconds = _time_decoding(decode, threshold)
                times[threshold].append(milliseconds)
                found[threshold].append(result)
            if on_image is not None:
                on_image()
    finally:
        model.close()
    precisions = {
        threshold: None if truth is None else average_precision(found[threshold], truth, names).ap
        for threshold in THRESHOLDS
    }
    return {threshold: (float(np.mean(times[threshold])), precisions[threshold]) for threshold in THRESHOLDS}


def _time_decoding(decode: Callable[[float], Detections], threshold: float) -> tuple[Detections, float]:
    """Return the detections, and the minimum of the milliseconds that they took."""
    elapsed = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = decode(threshold)
        elapsed.append(1000.0 * (time.perf_counter() - start))
    return result, min(elapsed)


def _open_rtdetr(path: Path, run: RunOptions) -> RtDetrModel:
    model = open_timed_model(path, run)
    if not isinstance(model, RtDetrModel):
        model.close()
        raise OptionError(f"`against` is {path.name}, which is not an RT-DETR; it is what is shown beside the YOLO")
    return model


def format_nms(study: NmsStudy) -> str:
    """Return the tables of the study."""
    lines = [f"{study.model}, {plural(study.images, 'image')}; boxes left per image, by score threshold:"]
    lines += ["  " + "  ".join(f"{threshold:g}: {count:.0f}" for threshold, count in study.curve.items())]
    methods = list(study.rows[0].milliseconds)
    lines.append("NMS, mean milliseconds per image")
    heads = "".join(f"{method:>9}" for method in methods)
    lines.append(f"{'score':>7}{'IoU':>6}{heads}{'slowest':>9}{'kept':>7}{'AP':>9}   published (YOLOv8-L, T4): AP, ms")
    for row in study.rows:
        ap = "-" if row.ap is None else f"{row.ap:.4f}"
        published = NMS.get((row.threshold, row.iou))
        told = "" if published is None else f"   {published[0]:.1f}, {published[1]:.2f}"
        columns = "".join(f"{row.milliseconds[method]:>9.3f}" for method in methods)
        lines.append(f"{row.threshold:>7g}{row.iou:>6g}{columns}{row.slowest:>9.3f}{row.kept:>7.0f}{ap:>9}{told}")
    if study.rtdetr is not None:
        lines.append(f"{study.rtdetr}: no NMS; all of decode in milliseconds, and AP")
        for threshold, (milliseconds, precision) in study.flat.items():
            ap = "-" if precision is None else f"{precision:.4f}"
            lines.append(f"{threshold:>7g}{'':>6}{milliseconds:>9.3f}{'':>25}{ap:>9}")
    return "\n".join(lines)
