"""What can be chosen for a training run, checked before any work is done."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rtdetr_deploy.artifacts.input_size import DEFAULT_INPUT_SIZE, MIN_SIDE, STRIDE, check_input_size, count_tokens
from rtdetr_deploy.artifacts.weights_file import find_weights
from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.files import check_writable, refuse_overwriting, require_file
from rtdetr_deploy.options import option, path_argument, size_argument

DEFAULT_VARIANT = "r18"
MULTISCALE_STEPS = 2
WRITTEN = ("last.pth", "best.pth")
"""Files in the output folder."""
"""Input pixels per cell of each feature level."""

# Minimum and maximum; seeds enter products that must fit 64 bits.
_WHOLE_NUMBERS: dict[str, tuple[int, int]] = {
    "epochs": (1, 10**6),
    "batch": (1, 10**6),
    "queries": (1, 10**5),
    "evaluate_every": (1, 10**6),
    "warmup": (0, 10**9),
    "no_aug_epochs": (0, 10**6),
    "workers": (0, 256),
    "seed": (0, 2**32 - 1),
}
_NUMBERS: dict[str, tuple[float, float]] = {
    "lr": (0, math.inf),
    "clip_max_norm": (0, math.inf),
    "backbone_lr_factor": (0, math.inf),
    "weight_decay": (0, math.inf),
    "max_zoom_out": (1, 16),
    "ema_decay": (0, 1),
}
_POSITIVE = ("lr", "clip_max_norm")


@dataclass(frozen=True)
class TrainOptions:
    """Options of `train`.

    `annotations` and `val_annotations` are COCO jsons, `images` and `val_images` the folders of their files
    (`val_images` None: the same folder). `output` is the folder of checkpoints; a run found there is continued.
    `variant` names the model (None: r18), `weights` a checkpoint to start from, of that variant if one is named (heads
    are reset where the number of classes differs). `size` (height, width) of the input in pixels; from batch to batch,
    up to `multiscale_steps` steps of 32 are added to or taken from both sides. `lr` is AdamW's learning rate,
    `backbone_lr_factor` a factor on it for the backbone; both are warmed up linearly over `warmup` steps (at most a
    tenth of the run) and go down as a cosine to 1 % of their value. `ema_decay` is the decay of the moving average,
    `clip_max_norm` the maximum norm of the gradient. `freeze` keeps the "backbone" of `weights`, or the "norms" in it
    (batch normalization: usual for pretrained R50 and larger). `max_zoom_out` is the maximum zoom out of the
    augmentation; the last `no_aug_epochs` have no colour jitter, zoom or crop (as RT-DETRv2 is trained), flips only.
    `bf16` None means on CUDA only. The moving average is evaluated on `val_annotations` every `evaluate_every` epochs.
    `encoder_iou_targets` False is an ablation (see `objective`).

    Raises `OptionError` for values outside their ranges, and for what would be ignored.
    """

    annotations: Path = option(help="COCO json to train on", metavar="JSON", type=path_argument, old=("--data",))
    images: Path = option(help="folder of its images", metavar="DIR", type=path_argument)
    output: Path = option(help="folder of last.pth, best.pth; continued if there", metavar="DIR", type=path_argument)
    val_annotations: Path | None = option(
        None, "COCO json to evaluate on", metavar="JSON", type=path_argument, old=("--val",)
    )
    val_images: Path | None = option(
        None, "folder of its images", metavar="DIR", type=path_argument, default_help="that of the training images"
    )
    variant: str | None = option(
        None, "model to train", default_help=f"{DEFAULT_VARIANT}, or that of the weights, which must agree"
    )
    weights: Path | None = option(
        None, "checkpoint to start from; its variant is used", metavar="FILE", type=path_argument
    )
    layers: int | None = option(None, "decoder layers", metavar="N", type=int, default_help="what the variant runs")
    queries: int = option(300, "queries", metavar="N", type=int)
    size: tuple[int, int] = option(
        DEFAULT_INPUT_SIZE, "input size: 640, or HEIGHTxWIDTH, both multiples of 32",
        type=size_argument, default_help="640",
    )  # fmt: skip
    multiscale_steps: int | None = option(
        None, "vary the size from batch to batch by up to this many steps of 32", metavar="N", type=int,
        old=("--scales",), default_help="2, or as many as the size leaves",
    )  # fmt: skip
    epochs: int = option(72, "epochs of the whole run", metavar="N", type=int)
    batch: int = option(16, "images per step", metavar="N", type=int)
    lr: float = option(1e-4, "learning rate of AdamW", type=float, old=("--rate",))
    backbone_lr_factor: float = option(
        0.1,
        "factor on the rate for the backbone; 1 when training from scratch",
        metavar="F",
        type=float,
        old=("--backbone-rate",),
    )
    weight_decay: float = option(1e-4, "decay of weights; norms and biases have none", metavar="D", type=float)
    warmup: int = option(2000, "steps of linear warm-up", metavar="STEPS", type=int)
    ema_decay: float = option(
        0.9999, "decay of the moving average of weights", metavar="D", type=float, old=("--average",)
    )
    clip_max_norm: float = option(0.1, "maximum norm of the gradient", metavar="NORM", type=float, old=("--clip",))
    any_orientation: bool = option(False, "also flip vertically and transpose")
    max_zoom_out: float = option(
        4.0, "maximum zoom out of the augmentation", metavar="F", type=float, old=("--expand",)
    )
    no_aug_epochs: int = option(
        0,
        "last epochs without colour jitter, zoom and crop, flips only",
        metavar="N",
        type=int,
        old=("--plain-epochs",),
    )
    freeze: Literal["backbone", "norms"] | None = option(
        None, "keep the backbone, or its batch norms, as they are", choices=("backbone", "norms")
    )
    evaluate_every: int = option(1, "epochs between evaluations", metavar="N", type=int)
    device: str = option("cpu", "cpu, cuda or cuda:N")
    bf16: bool | None = option(None, "bfloat16 autocast", type=bool, default_help="on CUDA only")
    workers: int = option(2, "threads that load images ahead", metavar="N", type=int)
    seed: int = option(0, "seed of everything random", metavar="N", type=int)
    encoder_iou_targets: bool = option(
        True, "ablation: reward selected encoder predictions alike instead of by IoU (see docs/measurements.md)"
    )

    def __post_init__(self) -> None:
        for name, bounds in _WHOLE_NUMBERS.items():
            self._check_whole(name, *bounds)
        object.__setattr__(self, "size", check_input_size(self.size))
        high = (min(self.size) - MIN_SIDE) // STRIDE
        if self.multiscale_steps is None:
            object.__setattr__(self, "multiscale_steps", min(MULTISCALE_STEPS, high))
        self._check_whole("multiscale_steps", 0, high)
        for name, limits in _NUMBERS.items():
            self._check_number(name, *limits)
        if self.ema_decay == 1:
            raise OptionError(f"`ema_decay` is {self.ema_decay}, expected a number from 0 to below 1")
        if self.freeze not in (None, "backbone", "norms"):
            raise OptionError(f"`freeze` is {self.freeze!r}, expected backbone or norms")
        self._check_combination()

    def _check_whole(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if type(value) is not int or not low <= value <= high:
            raise OptionError(f"`{name}` is {value}, expected a whole number from {low} to {high}")

    def _check_number(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        positive = value != 0 or name not in _POSITIVE
        if not isinstance(value, (int, float)) or not (math.isfinite(value) and low <= value <= high and positive):
            expected = f"from {low} to {high}" if high < math.inf else f"from {low} up"
            raise OptionError(f"`{name}` is {value}, expected a number {'above 0' if name in _POSITIVE else expected}")

    def _check_combination(self) -> None:
        """Raise `OptionError` for options that would be ignored, or keep random weights as they are."""
        remedy = "is given without `val_annotations`; name the COCO json to evaluate on, or leave it out"
        if self.no_aug_epochs > self.epochs:
            raise OptionError(f"`no_aug_epochs` is {self.no_aug_epochs}, but the run has {self.epochs} epochs")
        if self.val_annotations is None and self.val_images is not None:
            raise OptionError(f"`val_images` {remedy}")
        if self.val_annotations is None and self.evaluate_every != 1:
            raise OptionError(f"`evaluate_every` {remedy}")
        if self.weights is None and self.freeze is not None:
            raise OptionError(f'`freeze="{self.freeze}"` would keep random weights; give the `weights` to start from')
        if self.freeze == "backbone" and self.backbone_lr_factor != type(self).backbone_lr_factor:
            raise OptionError('`backbone_lr_factor` has no effect with `freeze="backbone"`; leave one of them out')
        cells = count_tokens(*self.size)
        if self.queries > max(cells, type(self).queries):
            height, width = self.size
            raise OptionError(f"`queries` is {self.queries}, but an input of {height}x{width} pixels has {cells} cells")

    def recipe(self) -> dict[str, str]:
        """Return every option that decides the result, as text; a run is continued with the same ones only."""
        free = {"device", "workers", "output", "val_annotations", "val_images", "evaluate_every"}
        used = {**asdict(self), "variant": self.variant or DEFAULT_VARIANT}
        return {name: str(value) for name, value in used.items() if name not in free}

    @property
    def use_bf16(self) -> bool:
        """Whether forward passes run under bfloat16 autocast."""
        return self.device.startswith("cuda") if self.bf16 is None else self.bf16


def check_paths(options: TrainOptions) -> None:
    """Raise for a missing file or an output that can't be written, before anything slow is done."""
    inputs = [path for path in (options.annotations, options.val_annotations) if path is not None]
    for path in inputs:
        require_file(path, OptionError)
    if options.weights is not None:
        inputs.append(find_weights(options.weights))
    refuse_overwriting({f"{name} in `output`": options.output / name for name in WRITTEN}, inputs)
    check_writable(options.output, folder=True)
