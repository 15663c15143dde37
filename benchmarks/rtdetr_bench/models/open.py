"""Opens whatever is timed: an RT-DETR where it is one, else a third-party detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rtdetr_bench.accuracy import open_any
from rtdetr_bench.models.rtdetr import RtDetrModel
from rtdetr_bench.models.timed_model import SpanRuntime, TimedModel
from rtdetr_bench.models.yolo import YoloModel
from rtdetr_bench.options import RunOptions
from rtdetr_deploy import OptionError, Predictor
from rtdetr_deploy.runtimes import open_runtime
from rtdetr_deploy.signature import has_detections
from rtdetr_deploy.words import printable


def open_timed_model(path: Path, options: RunOptions | None = None) -> TimedModel:
    """Open a model file or a checkpoint: an RT-DETR where it is one, else a third-party detector.

    The runtime of `options` is used where it opens such a file.

    Raises `ArtifactError` when it is neither, or can't be run, `CheckpointError` for checkpoints.
    """
    run = options or RunOptions()
    threshold, name = run.nms.threshold, printable(path.name)
    if run.runtime_of(path) == "torch":
        return RtDetrModel(open_any(path, replace(run, runtime="torch")), None, name, threshold)
    runtime = SpanRuntime(open_runtime(path, run.runtime_of(path), run.where))
    try:
        size = run.size if None in runtime.inputs[0].shape[1:] else None  # the file knows better where it knows
        if not has_detections(runtime):
            return YoloModel(runtime, name, run.nms, size)
        predictor, untimed = (Predictor(one, resizer=run.resizer, size=size) for one in (runtime, runtime.runtime))
        return RtDetrModel(predictor, runtime, name, threshold, untimed)
    except BaseException:
        runtime.close()
        raise


def check_applies(models: Sequence[TimedModel], run: RunOptions) -> None:
    """Raise `OptionError` for a size, a resizer or a setting of NMS that none of the models would use."""
    usual, wanted = RunOptions(), "" if run.size is None else "x".join(map(str, run.size))
    inputs = {model.name: model.facts["input"] for model in models}
    unused = []
    if wanted and wanted not in inputs.values():
        fixed = ", ".join(f"{name} is fixed at {size}" for name, size in inputs.items())
        raise OptionError(
            f'`size="{wanted}"` would be ignored: {fixed}; leave it out, or export the model at that size'
        )
    if run.resizer != usual.resizer and not any(isinstance(model, RtDetrModel) for model in models):
        unused.append(f'`resizer="{run.resizer}"` (third-party models are resized by OpenCV)')
    if not any(isinstance(model, YoloModel) and model.needs_nms for model in models):
        told = "(no model here needs NMS outside its graph)"
        unused += [f"`iou={run.nms.iou:g}` {told}"] * (run.nms.iou != usual.nms.iou)
        unused += [f'`method="{run.nms.method}"` {told}'] * (run.nms.method != usual.nms.method)
    if unused:
        raise OptionError(f"{unused[0]} would be ignored; leave it out")
