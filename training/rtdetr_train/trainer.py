"""The training run: one readable loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from rtdetr_deploy.artifacts.input_size import count_tokens
from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.evaluate.coco import Accuracy, Annotations, evaluate, read_annotations, require_evaluator
from rtdetr_deploy.files import write_bytes
from rtdetr_deploy.model import RTDETR
from rtdetr_deploy.model.decoder import ExtraQueries
from rtdetr_deploy.predictor import Predictor
from rtdetr_deploy.runtimes.eager import TorchRuntime
from rtdetr_train.checkpoint import BEST, LAST, restore_checkpoint, save_checkpoint
from rtdetr_train.data.coco import CocoData, read_coco
from rtdetr_train.data.loader import Batch, load_epoch
from rtdetr_train.denoising import make_denoising
from rtdetr_train.initialize import build_model, frozen_modules
from rtdetr_train.losses import objective
from rtdetr_train.optim import make_ema, make_optimizer, make_schedule
from rtdetr_train.options import TrainOptions, check_paths

CLASSES = "classes.txt"
"""Written before the first epoch, which also shows early that the folder can be written."""
EMA_RAMP = 2000
"""Steps in which the average comes to follow slowly; fewer in runs of short epochs."""
DIVERGED = "training diverged at step {step}; start anew with a lower `lr` and another `output` folder"
NO_OBJECTS = "no image of {path} showed an object in a whole epoch: do its boxes lie inside of the images, in pixels?"


@dataclass(frozen=True)
class Step:
    """Progress after a step: its epoch, its number in it (both from 0), steps per epoch, and losses by name.

    Losses are means of the epoch so far.
    """

    epoch: int
    step: int
    steps: int
    losses: dict[str, float]


@dataclass(frozen=True)
class Epoch:
    """An epoch that has ended; `accuracy` of the moving average where it was evaluated, and whether it is `best`."""

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
    """Train as `options` say and return the checkpoint to use: the best one, or the last without evaluation.

    A run in `options.output` is continued after its last whole epoch and gives the same weights as without the break.
    Raises `OptionError`, `CheckpointError` or `OutputError` for bad input.
    """
    watcher = watcher or Watcher()
    check_paths(options)
    check_device(options.device)
    data = read_coco(options.annotations, options.images)
    truth = _read_truth(options, data)
    run = _Run(options, data)
    last, best = options.output / LAST, options.output / BEST
    if last.exists():
        run.restore(last)
    write_bytes(options.output / CLASSES, "\n".join((*data.class_names, "")).encode())
    for epoch in range(run.epochs_done, options.epochs):
        losses = run.train_epoch(watcher.on_step)
        run.save(last)
        accuracy = _evaluate(run.average, data.class_names, truth, options, epoch)
        improved = accuracy is not None and accuracy.metrics["AP"] >= run.best_ap
        if accuracy is not None and improved:
            run.best_ap = accuracy.metrics["AP"]
            run.save(best, resumable=False)
            run.save(last)
        watcher.on_epoch(Epoch(epoch, losses, accuracy, improved))
    return best if options.val_annotations is not None and best.exists() else last


def check_device(name: str) -> None:
    """Raise `OptionError` unless torch can use the device `name`."""
    try:
        torch.zeros(1, device=name).item()  # which the device "meta" can't tell
    except (RuntimeError, AssertionError, TypeError) as error:
        raise OptionError(
            f"`device` {name!r} can't be used ({str(error).splitlines()[0]}); choose cpu, cuda or cuda:N"
        ) from error


def _read_truth(options: TrainOptions, data: CocoData) -> Annotations | None:
    """Return what is evaluated on, if anything, for labels as the training data counts them."""
    if options.val_annotations is None:
        return None
    require_evaluator()
    return read_annotations(options.val_annotations, options.val_images or options.images, data.class_names)


class _Run:
    """What changes in a run: the model, its moving average, the optimizer, the epochs done, the best AP so far."""

    def __init__(self, options: TrainOptions, data: CocoData) -> None:
        self._options = options
        self._data = data
        torch.manual_seed(options.seed)
        # Convolutions run about 15 % faster channels-last on CPUs with bfloat16; results are the same.
        self._model = build_model(options, data.class_names).to(options.device)
        self._model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._steps = math.ceil(len(data) / options.batch)
        self._ema = make_ema(self._model, options.ema_decay, ramp=min(EMA_RAMP, 10.0 * self._steps))
        self._optimizer = make_optimizer(self._model, options)
        self.epochs_done = 0
        self.best_ap = -1.0

    @property
    def average(self) -> RTDETR:
        """The moving average of the model."""
        return cast("RTDETR", self._ema.module)

    def restore(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        names, recipe = self._data.class_names, self._options.recipe()
        state = restore_checkpoint(path, self._model, self._ema, self._optimizer, names, recipe)
        self.epochs_done, self.best_ap = int(state["epoch"]), float(state["best"])

    def save(self, path: Path, *, resumable: bool = True) -> None:
        """Write a checkpoint, with or without what continuing needs."""
        state = {"epoch": self.epochs_done, "best": self.best_ap, "recipe": self._options.recipe()}
        if resumable:
            state["optimizer"] = self._optimizer.state_dict()
        save_checkpoint(path, self._model, self._ema, self._data.class_names, self._options.size, state)

    def train_epoch(self, on_step: Callable[[Step], None]) -> dict[str, float]:
        """Run the next epoch and return the mean of each loss of the last layer, and of their total.

        Raises `OptionError` when training diverges, or when there was nothing to learn.
        """
        options, epoch = self._options, self.epochs_done
        self._model.train()
        for module in frozen_modules(self._model, options):
            module.eval()
        first, steps = epoch * self._steps, self._steps * options.epochs
        schedule = make_schedule(self._optimizer, steps, options.warmup, done=first)
        sums: dict[str, float] = {}
        objects = 0
        for index, batch in enumerate(load_epoch(self._data, options, epoch)):
            losses = train_step(self._model, self._optimizer, batch, options, first + index)
            schedule.step()
            self._ema.update_parameters(self._model)
            objects += len(batch[1])
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value
            means = {name: value / (index + 1) for name, value in sums.items()}
            on_step(Step(epoch, index, self._steps, means))
        if objects == 0:
            raise OptionError(NO_OBJECTS.format(path=options.annotations))
        self.epochs_done += 1
        return means


def train_step(
    model: RTDETR, optimizer: torch.optim.Optimizer, batch: Batch, options: TrainOptions, step: int
) -> dict[str, float]:
    """Take one optimization step and return the last layer's losses and the total.

    Raises `OptionError` when the loss or its gradient is not finite.
    """
    device = torch.device(options.device)
    images, targets = batch[0].to(device), batch[1].to(device)
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
    embedding = model.decoder.denoising_class_embed
    queries = min(model.decoder.queries, count_tokens(*images.shape[2:]))
    denoising = make_denoising(batch[1], embedding, queries, generator=generator)
    extra = ExtraQueries(denoising.content, denoising.reference, denoising.mask) if denoising else None
    with torch.autocast(device.type, torch.bfloat16, enabled=options.use_bf16):
        output = model.forward_layers(images, extra)
    losses = objective(output, targets, denoising, iou_targets=options.encoder_iou_targets)
    total = torch.stack(list(losses.values())).sum()
    optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(model.parameters(), options.clip_max_norm)
    shown = {"total": total, **{name: losses[name] for name in ("vfl", "bbox", "giou")}, "norm": norm}
    values = torch.stack([value.detach() for value in shown.values()]).tolist()  # one copy from the device
    named = dict(zip(shown, values, strict=True))
    if not math.isfinite(named["total"]) or not math.isfinite(named.pop("norm")):
        raise OptionError(DIVERGED.format(step=step))
    optimizer.step()
    return named


def _evaluate(
    model: RTDETR, class_names: tuple[str, ...], truth: Annotations | None, options: TrainOptions, epoch: int
) -> Accuracy | None:
    """Return the accuracy on `truth` (Pillow's resizing), or None without it or when it is not this epoch's turn."""
    due = (epoch + 1) % options.evaluate_every == 0 or epoch + 1 == options.epochs
    if truth is None or not due:
        return None
    predictor = Predictor(TorchRuntime(model, class_names, *options.size), resizer="pillow")
    return evaluate(predictor, truth)
