"""The training run: one readable loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.evaluate.coco import Accuracy, Annotations, detect_all, read_annotations, require_evaluator, score
from rtdetr_deploy.files import write_bytes
from rtdetr_deploy.model import RTDETR, load_checkpoint
from rtdetr_deploy.model.decoder import ExtraQueries
from rtdetr_deploy.model.variants import find_variant
from rtdetr_deploy.predictor import Predictor
from rtdetr_deploy.runtimes.eager import TorchRuntime
from rtdetr_train.checkpoint import BEST, LAST, restore_checkpoint, save_checkpoint
from rtdetr_train.data.coco import CocoData, read_coco
from rtdetr_train.data.loader import Batch, load_epoch
from rtdetr_train.denoising import make_denoising
from rtdetr_train.ema import Average
from rtdetr_train.initialize import initialize, initialize_class_heads
from rtdetr_train.objective import objective
from rtdetr_train.optimize import make_optimizer, rate_share, set_rate
from rtdetr_train.options import DEFAULT_VARIANT, TrainOptions, check_paths

LONGEST_WARMUP = 10
"""A run's warm-up takes at most one step in this many, so that short runs reach the full rate too."""
CLASSES = "classes.txt"
"""Written before the first epoch, which also shows early that the folder can be written."""
DIVERGED = "training diverged at step {step}; start anew with a lower --rate and another --output folder"
NO_OBJECTS = "no image of {data} showed an object in a whole epoch: do its boxes lie inside of the images, in pixels?"


@dataclass(frozen=True)
class Step:
    """Progress after a step: losses (means of the epoch so far) by name, and seconds left of the whole run."""

    epoch: int
    step: int
    steps: int
    losses: dict[str, float]
    seconds_left: float


@dataclass(frozen=True)
class Epoch:
    """An epoch that has ended; `accuracy` of the average where it was evaluated, `best` so far."""

    epoch: int
    losses: dict[str, float]
    accuracy: Accuracy | None
    best: bool


@dataclass(frozen=True)
class Watcher:
    """Called after every step and epoch."""

    on_step: Callable[[Step], None] = lambda step: None
    on_epoch: Callable[[Epoch], None] = lambda epoch: None


def train(options: TrainOptions, watcher: Watcher | None = None) -> Path:
    """Train as `options` say and return the checkpoint to use: the best on `val`, or the last without one.

    A run in `options.output` is continued after its last whole epoch and gives the same weights as without the break.
    Raises `OptionError`, `CheckpointError` or `OutputError` for bad input.
    """
    watcher = watcher or Watcher()
    check_paths(options)
    check_device(options.device)
    data = read_coco(options.data, options.images)
    truth = None
    if options.val is not None:
        require_evaluator()
        truth = read_annotations(options.val, options.val_images or options.images, data.class_names)
    torch.manual_seed(options.seed)
    # Convolutions run about 15 % faster channels-last on CPUs with bfloat16; results are the same.
    model = build_model(options, data.class_names).to(options.device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps_per_epoch = math.ceil(len(data) / options.batch)
    average = Average(model, options.average, ramp=min(2000.0, 10.0 * steps_per_epoch))
    optimizer = make_optimizer(model, options)
    last, best = options.output / LAST, options.output / BEST
    state: dict[str, Any] = {"epoch": 0, "best": -1.0}
    if last.exists():
        state = restore_checkpoint(last, model, average, optimizer, data.class_names, options.recipe())
    write_bytes(options.output / CLASSES, "\n".join((*data.class_names, "")).encode())
    clock = _Clock(steps_per_epoch * (options.epochs - int(state["epoch"])))
    for epoch in range(int(state["epoch"]), options.epochs):
        losses = _train_epoch(model, average, optimizer, data, options, epoch, clock, watcher)
        facts = {"epoch": epoch + 1, "best": state["best"], "recipe": options.recipe()}
        state = {**facts, "optimizer": optimizer.state_dict()}
        save_checkpoint(last, model, average, data.class_names, options.size, state)
        accuracy = _evaluate(average.module, data.class_names, truth, options, epoch)
        improved = accuracy is not None and accuracy.metrics["AP"] >= float(state["best"])
        if accuracy is not None and improved:
            facts["best"] = state["best"] = accuracy.metrics["AP"]
            save_checkpoint(best, model, average, data.class_names, options.size, facts)
            save_checkpoint(last, model, average, data.class_names, options.size, state)
        watcher.on_epoch(Epoch(epoch, losses, accuracy, improved))
    return best if options.val is not None and best.exists() else last


def check_device(name: str) -> None:
    """Raise `OptionError` unless torch can use the device `name`."""
    try:
        torch.zeros(1, device=name).item()  # which the device "meta" can't tell
    except (RuntimeError, AssertionError, TypeError) as error:
        raise OptionError(
            f"device {name!r} can't be used ({str(error).splitlines()[0]}); choose cpu, cuda or cuda:N"
        ) from error


def build_model(options: TrainOptions, class_names: tuple[str, ...]) -> RTDETR:
    """Return the model to train: new, or from `options.weights` with its heads reset for other numbers of classes."""
    if options.weights is None:
        variant = replace(
            find_variant(options.variant or DEFAULT_VARIANT), classes=len(class_names), queries=options.queries
        )
        model = RTDETR(variant, options.layers)
        initialize(model)
    else:
        source = load_checkpoint(options.weights, variant=options.variant, layers=options.layers).model
        model = RTDETR(replace(source.variant, classes=len(class_names), queries=options.queries), source.layers)
        own, given = model.state_dict(), source.state_dict()
        fitting = {name: value for name, value in given.items() if value.shape == own[name].shape}
        model.load_state_dict({**own, **fitting}, strict=True)
        if source.variant.classes != len(class_names):
            initialize_class_heads(model.decoder)
    for module in _frozen_modules(model, options):
        for parameter in module.parameters():
            parameter.requires_grad_(False)
    return model


def _frozen_modules(model: RTDETR, options: TrainOptions) -> list[nn.Module]:
    """Return what `options.freeze` keeps as it is: the backbone, or its batch normalization."""
    if options.freeze == "backbone":
        return [model.backbone]
    if options.freeze == "norms":
        return [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    return []


def _set_mode(model: RTDETR, options: TrainOptions) -> None:
    model.train()
    for module in _frozen_modules(model, options):
        module.eval()


def _train_epoch(
    model: RTDETR,
    average: Average,
    optimizer: torch.optim.Optimizer,
    data: CocoData,
    options: TrainOptions,
    epoch: int,
    clock: _Clock,
    watcher: Watcher,
) -> dict[str, float]:
    """Run one epoch and return the mean of each loss of the last layer, and of their total.

    Raises `OptionError` when training diverges, or when there was nothing to learn.
    """
    _set_mode(model, options)
    steps = math.ceil(len(data) / options.batch)
    sums: dict[str, float] = {}
    objects = 0
    for index, batch in enumerate(load_epoch(data, options, epoch)):
        step = epoch * steps + index
        total = steps * options.epochs
        set_rate(optimizer, options.rate * rate_share(step, total, min(options.warmup, total // LONGEST_WARMUP)))
        losses = train_step(model, optimizer, batch, options, step)
        average.update(model)
        objects += sum(len(target.labels) for target in batch[1])
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value
        means = {name: value / (index + 1) for name, value in sums.items()}
        watcher.on_step(Step(epoch, index, steps, means, clock.tick()))
    if objects == 0:
        raise OptionError(NO_OBJECTS.format(data=options.data))
    return means


def train_step(
    model: RTDETR, optimizer: torch.optim.Optimizer, batch: Batch, options: TrainOptions, step: int
) -> dict[str, float]:
    """Take one optimization step and return the last layer's losses and the total.

    Raises `OptionError` when the loss is not finite.
    """
    device = torch.device(options.device)
    images, targets = batch[0].to(device), [target.to(device) for target in batch[1]]
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
    embedding = model.decoder.denoising_class_embed
    tokens = sum((images.shape[2] // stride) * (images.shape[3] // stride) for stride in (8, 16, 32))
    denoising = make_denoising(targets, embedding, min(model.decoder.queries, tokens), generator=generator)
    extra = ExtraQueries(denoising.content, denoising.reference, denoising.mask) if denoising else None
    with torch.autocast(device.type, torch.bfloat16, enabled=options.use_bf16):
        output = model.forward_layers(images, extra)
    losses = objective(output, targets, denoising, iou_targets=options.encoder_iou_targets)
    total = torch.stack(list(losses.values())).sum()
    if not math.isfinite(total.item()):
        raise OptionError(DIVERGED.format(step=step))
    optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    if not math.isfinite(float(nn.utils.clip_grad_norm_(model.parameters(), options.clip))):
        raise OptionError(DIVERGED.format(step=step))
    optimizer.step()
    return {"total": total.item(), **{name: losses[name].item() for name in ("vfl", "bbox", "giou")}}


def _evaluate(
    model: RTDETR, class_names: tuple[str, ...], truth: Annotations | None, options: TrainOptions, epoch: int
) -> Accuracy | None:
    """Return the accuracy on `truth` (Pillow's resizing), or None without it or when it is not this epoch's turn."""
    due = (epoch + 1) % options.evaluate_every == 0 or epoch + 1 == options.epochs
    if truth is None or not due:
        return None
    predictor = Predictor(TorchRuntime(model, class_names, options.size, options.size), resizer="pillow")
    return score(detect_all(predictor, truth), truth, class_names)


class _Clock:
    """Estimates how long the remaining steps take, evaluation included."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._done = 0
        self._start = time.perf_counter()

    def tick(self) -> float:
        """Count one step and return the seconds that are left."""
        self._done += 1
        elapsed = time.perf_counter() - self._start
        return elapsed / self._done * (self._steps - self._done)
