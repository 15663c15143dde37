"""COCO evaluation of detections: average precision as the published figures are computed.

Detections of all images are compared with the annotations of a COCO json (bbox, IoU 0.50:0.05:0.95, at most 100
detections per image and class, as COCO's own code does) by faster-coco-eval.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.packages import require
from rtdetr_deploy.predictor import Predictor

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
BATCH = 8


@dataclass(frozen=True)
class Annotations:
    """A COCO json: its content, image id and path per image, and the category id of each of the model's labels."""

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


def read_annotations(path: str | Path, images: str | Path, class_names: Sequence[str]) -> Annotations:
    """Read a COCO json whose image files lie in the folder `images`, for a model with these classes.

    Labels are matched to categories by name where the json knows all names; where it knows none, by order of category
    id, which needs equal numbers. Raises `OptionError` when the json or an image is missing, or classes don't fit.
    """
    path, folder = Path(path), Path(images)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = [(int(image["id"]), folder / image["file_name"]) for image in content["images"]]
        categories = sorted((int(category["id"]), str(category["name"])) for category in content["categories"])
        boxes = len({
            (int(item["id"]), int(item["image_id"]), int(item["category_id"]), tuple(item["bbox"]))
            for item in content["annotations"]
        })  # fmt: skip
    except OSError as error:
        raise OptionError(f"can't read annotations {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OptionError(f"{path} is no COCO json with images, annotations and categories: {error!r}") from error
    if not entries or not boxes:
        raise OptionError(f"{path} holds no {'annotations' if entries else 'images'}")
    _check_ids(content["annotations"], {number for number, _ in entries}, {number for number, _ in categories}, path)
    missing = [file for _, file in entries if not file.is_file()]
    if missing:
        raise OptionError(f"{len(missing)} images of {path} are not in {folder}, {missing[0].name} is the first")
    return Annotations(content, tuple(entries), _category_ids(categories, class_names, path))


def _check_ids(annotations: Sequence[Any], images: set[int], categories: set[int], path: Path) -> None:
    """Raise `OptionError` for objects of unknown images or categories, which would count as missed."""
    for key, known in (("image_id", images), ("category_id", categories)):
        strays = [item for item in annotations if int(item[key]) not in known]
        if strays:
            first = strays[0][key]
            raise OptionError(f"{len(strays)} annotations of {path} have an unknown {key}, {first} is the first")


def _category_ids(categories: Sequence[tuple[int, str]], class_names: Sequence[str], path: Path) -> tuple[int, ...]:
    by_name = {name: number for number, name in categories}
    if class_names and all(name in by_name for name in class_names):
        return tuple(by_name[name] for name in class_names)
    if len(categories) == len(class_names) and not any(name in by_name for name in class_names):
        return tuple(number for number, _ in categories)
    raise OptionError(
        f"the model's classes ({_some(class_names)}) are not the categories of {path} ({_some([*by_name])}); "
        "give the model the json's names"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def require_evaluator() -> None:
    """Raise `MissingPackageError` unless faster-coco-eval is installed."""
    require("faster_coco_eval", "accuracy", "bench")


def detect_all(
    predictor: Predictor, annotations: Annotations, on_image: Callable[[], object] | None = None
) -> list[dict[str, Any]]:
    """Return COCO result entries of all images at the released protocol: threshold 0, the model's top 300, no NMS."""
    require_evaluator()
    results: list[dict[str, Any]] = []
    step = predictor.batch or BATCH
    for start in range(0, len(annotations.images), step):
        part = annotations.images[start : start + step]
        found = predictor.detect_batch([path for _, path in part], threshold=0.0)
        for (number, _), detections in zip(part, found, strict=True):
            results += detections.to_coco(number, annotations.category_ids)
            if on_image is not None:
                on_image()
    return results


def score(results: Sequence[dict[str, Any]], annotations: Annotations, class_names: Sequence[str]) -> Accuracy:
    """Return the accuracy of COCO result entries (as `Detections.to_coco` makes them)."""
    require_evaluator()
    from faster_coco_eval import COCO, COCOeval_faster

    if not results:
        return Accuracy(dict.fromkeys(METRICS, 0.0), dict.fromkeys(class_names, 0.0), len(annotations.images), 0)
    truth = COCO(annotations.content)
    evaluation = COCOeval_faster(truth, truth.loadRes(list(results)), "bbox", print_function=_ignore)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    precision = np.asarray(evaluation.eval["precision"])  # (IoU, recall, class, area, most detections)
    per_class = {}
    numbers = list(evaluation.params.catIds)
    for name, number in zip(class_names, annotations.category_ids, strict=True):
        values = precision[:, :, numbers.index(number), 0, -1]
        per_class[name] = float(values[values > -1].mean()) if (values > -1).any() else -1.0
    metrics = {name: float(value) for name, value in zip(METRICS, evaluation.stats, strict=False)}
    return Accuracy(metrics, per_class, len(annotations.images), len(results))


def _ignore(*_: object, **__: object) -> None:
    """Swallow the evaluation's own table."""


def measure_accuracy(
    predictor: Predictor, annotations_file: str | Path, images: str | Path, on_image: Callable[[], object] | None = None
) -> Accuracy:
    """Evaluate a model on a COCO json and its folder of images."""
    annotations = read_annotations(annotations_file, images, predictor.class_names)
    return score(detect_all(predictor, annotations, on_image), annotations, predictor.class_names)
