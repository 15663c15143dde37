"""Accuracy of one model on a COCO json: any file that the Predictor opens, and torch checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rtdetr_deploy import Predictor
from rtdetr_deploy.artifacts.weights_file import is_checkpoint
from rtdetr_deploy.evaluate.coco import Accuracy, read_annotations, require_evaluator
from rtdetr_deploy.evaluate.coco import evaluate as evaluate_predictor
from rtdetr_deploy.images.preprocess import Resizer
from rtdetr_deploy.packages import needed_for
from rtdetr_deploy.runtimes import RuntimeOptions


def open_any(
    engine: Path, *, size: tuple[int, int] | None = None, resizer: Resizer = "opencv", threads: int | None = None
) -> Predictor:
    """Open a model file or a torch checkpoint for evaluation; `size` is (height, width).

    Without `size` a checkpoint is run at what it names, else at 640x640.
    """
    if not is_checkpoint(engine):
        return Predictor(engine, size=size, resizer=resizer, threads=threads)
    with needed_for("running a checkpoint", "export"):
        from rtdetr_deploy.runtimes.eager import open_checkpoint
    return Predictor(open_checkpoint(engine, size, options=RuntimeOptions(threads=threads)), resizer=resizer)


def evaluate(
    engine: Path,
    annotations: Path,
    images: Path,
    *,
    size: tuple[int, int] | None = None,
    resizer: Resizer = "opencv",
    threads: int | None = None,
    on_image: Callable[[int], object] | None = None,
) -> Accuracy:
    """Return COCO's figures of the model `engine` at the released protocol: threshold 0, top 300, no NMS.

    `on_image` is called with the number of images after each of them. Raises `OptionError` when annotations, images or
    classes don't fit, `ArtifactError` or `CheckpointError` when the model can't be opened.
    """
    require_evaluator()
    with open_any(engine, size=size, resizer=resizer, threads=threads) as predictor:
        truth = read_annotations(annotations, images, predictor.class_names)
        total = len(truth.images)
        return evaluate_predictor(predictor, truth, None if on_image is None else lambda: on_image(total))
