"""Accuracy of one model on a COCO json: any file that the Predictor opens, and torch checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rtdetr_bench.options import AccuracyOptions, RunOptions
from rtdetr_deploy import Predictor
from rtdetr_deploy.evaluate.coco import Accuracy
from rtdetr_deploy.evaluate.coco import evaluate as evaluate_predictor
from rtdetr_deploy.words import plural, printable


def open_any(engine: Path, options: RunOptions | None = None) -> Predictor:
    """Open a model file or a torch checkpoint; without a size, a checkpoint is run at what it names, else at 640x640.

    Raises `ArtifactError` or `CheckpointError` when it can't be opened, `OptionError` for options that don't fit it.
    """
    run = options or RunOptions()
    run.check_runtime([engine])
    where = run.where
    return Predictor(
        engine,
        runtime=run.runtime_of(engine),
        device=where.device,
        threads=where.threads,
        precision=where.precision,
        hint=where.hint,
        slots=where.slots,
        cache=where.cache,
        spinning=where.spinning,
        blocking_sync=where.blocking_sync,
        size=run.size,
        resizer=run.resizer,
    )


def evaluate(options: AccuracyOptions, *, on_image: Callable[[int], object] | None = None) -> Accuracy:
    """Return COCO's figures of a model at the released protocol: threshold 0, top 300, no NMS.

    `on_image` is called with the number of images after each of them. Raises `OptionError` when annotations, images or
    classes don't fit, `ArtifactError` or `CheckpointError` when the model can't be opened.
    """
    with open_any(options.engine, options.run) as predictor:
        truth = options.data.read(predictor.class_names)
        total = len(truth.images)
        return evaluate_predictor(predictor, truth, None if on_image is None else lambda: on_image(total))


def format_accuracy(engine: Path, accuracy: Accuracy) -> str:
    """Return COCO's figures as lines; -1 where no object qualifies."""
    counts = f"{plural(accuracy.images, 'image')}, {plural(accuracy.detections, 'detection')}"
    values = (f"{printable(name)} {value:.4f}" for name, value in accuracy.per_class.items())
    return "\n".join(
        [
            f"{printable(engine.name)}: {counts} (threshold 0, no NMS)",
            "  ".join(f"{name} {value:.4f}" for name, value in accuracy.metrics.items()),
            "AP per class: " + "  ".join(values),
        ]
    )
