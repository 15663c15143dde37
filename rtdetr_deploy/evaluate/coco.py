"""COCO evaluation of detections: average precision as the published figures are computed.

Detections of all images are compared with the annotations of a COCO json (bbox, IoU 0.50:0.05:0.95, at most 100
detections per image and class, as COCO's own code does) by faster-coco-eval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rtdetr_deploy.detections import Detections
from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.evaluate.coco_json import CocoJson, read_coco_json
from rtdetr_deploy.packages import require
from rtdetr_deploy.predictor import Predictor

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class Annotations:
    """What evaluation needs of a COCO json.

    `content` is the json as COCO's code expects it (annotations numbered from 1, with area and iscrowd), `images` the
    id and path per image, `category_ids` the category of each of the model's labels.
    """

    content: dict[str, Any]
    images: tuple[tuple[int, Path], ...]
    category_ids: tuple[int, ...]


@dataclass(frozen=True)
class Accuracy:
    """`metrics` by COCO's names in [0, 1] (-1 where no object qualifies), AP `per_class`, and counts."""

    metrics: dict[str, float]
    per_class: dict[str, float]
    images: int
    detections: int

    @property
    def ap(self) -> float:
        """AP at IoU 0.50:0.05:0.95 over all classes and sizes."""
        return self.metrics["AP"]


def read_annotations(path: str | Path, images: str | Path, class_names: Sequence[str]) -> Annotations:
    """Read a COCO json whose image files lie in the folder `images`, for a model with these classes.

    Labels are matched to categories by name where the json knows all names; where it knows none, by order of category
    id, which needs equal numbers. What is left out and refused is said in `read_coco_json`; `OptionError` too where
    classes don't fit.
    """
    truth = read_coco_json(path, images)
    return Annotations(_as_coco(truth), truth.images, _category_ids(truth.categories, class_names, truth.path))


def _as_coco(truth: CocoJson) -> dict[str, Any]:
    """Return the json that is evaluated. The evaluation marks matches by annotation id, with 0 for none."""
    return {
        "images": [{"id": number, "file_name": file.name} for number, file in truth.images],
        "categories": [{"id": number, "name": name} for number, name in truth.categories],
        "annotations": [
            {
                "id": index,
                "image_id": thing.image_id,
                "category_id": thing.category_id,
                "bbox": list(thing.bbox),
                "area": thing.area,
                "iscrowd": int(thing.crowd),
            }
            for index, thing in enumerate(truth.objects, start=1)
        ],
    }


def _category_ids(categories: Sequence[tuple[int, str]], class_names: Sequence[str], path: Path) -> tuple[int, ...]:
    known = [name for _, name in categories]
    if list(class_names) == known or (len(known) == len(class_names) and not set(known) & set(class_names)):
        return tuple(number for number, _ in categories)
    repeated = [name for name in class_names if known.count(name) > 1 or list(class_names).count(name) > 1]
    if repeated:
        raise OptionError(f"{path} or the model has several classes called {repeated[0]!r}; give each its own name")
    by_name = {name: number for number, name in categories}
    if class_names and all(name in by_name for name in class_names):
        return tuple(by_name[name] for name in class_names)
    raise OptionError(
        f"the model's classes ({_some(class_names)}) are not the categories of {path} ({_some(known)}); "
        "give the model the json's names"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def require_evaluator() -> None:
    """Raise `MissingPackageError` unless faster-coco-eval is installed."""
    require("faster_coco_eval", "accuracy", "bench")


def average_precision(found: Iterable[Detections], truth: Annotations, class_names: Sequence[str]) -> Accuracy:
    """Return the accuracy of what was `found` in each of the images of `truth`, in their order.

    `found` is read once and may be a stream; for the released protocol it holds the model's top 300 at threshold 0,
    without NMS. Raises `OptionError` when it does not hold a result per image.
    """
    results: list[dict[str, Any]] = []
    images = 0
    for images, detections in enumerate(found, start=1):
        if images > len(truth.images):
            break
        results += detections.to_coco(truth.images[images - 1][0], truth.category_ids)
    expected = len(truth.images)
    if images != expected:
        count = images if images < expected else "more"
        raise OptionError(f"`found` holds {count} results, expected {expected}, one per image")
    return score_results(results, truth, class_names)


def evaluate(predictor: Predictor, truth: Annotations, on_image: Callable[[], object] | None = None) -> Accuracy:
    """Return the accuracy of a model at the released protocol; `on_image` is called after each image.

    Raises what `Predictor.stream` does.
    """
    found = predictor.stream([path for _, path in truth.images], threshold=0.0)
    return average_precision(_counted(found, on_image), truth, predictor.class_names)


def _counted(found: Iterable[Detections], on_image: Callable[[], object] | None) -> Iterator[Detections]:
    for detections in found:
        yield detections
        if on_image is not None:
            on_image()


def score_results(results: Sequence[dict[str, Any]], truth: Annotations, class_names: Sequence[str]) -> Accuracy:
    """Return the accuracy of COCO result entries, as `Detections.to_coco` makes them of any of the images."""
    require_evaluator()
    if not results:
        return Accuracy(dict.fromkeys(METRICS, 0.0), dict.fromkeys(class_names, 0.0), len(truth.images), 0)
    from faster_coco_eval import COCO, COCOeval_faster

    known = COCO(truth.content)
    evaluation = COCOeval_faster(known, known.loadRes(list(results)), "bbox", print_function=_ignore)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    precision = np.asarray(evaluation.eval["precision"])  # (IoU, recall, class, area, maximum detections)
    per_class = {}
    numbers = list(evaluation.params.catIds)
    for name, number in zip(class_names, truth.category_ids, strict=True):
        values = precision[:, :, numbers.index(number), 0, -1]
        per_class[name] = float(values[values > -1].mean()) if (values > -1).any() else -1.0
    metrics = {name: float(value) for name, value in zip(METRICS, evaluation.stats, strict=False)}
    return Accuracy(metrics, per_class, len(truth.images), len(results))


def _ignore(*_: object, **__: object) -> None:
    """Swallow the evaluation's own table."""
