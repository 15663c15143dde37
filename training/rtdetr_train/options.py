"""What can be chosen for a training run, checked before any work is done."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rtdetr_deploy.artifacts.weights_file import find_weights
from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.files import check_writable, refuse_overwriting, require_file

STRIDE = 32
DEFAULT_VARIANT = "r18"
WRITTEN = ("last.pth", "best.pth")
"""Files in the output folder."""

# Smallest and largest value; seeds enter products that must fit 64 bits.
_WHOLE_NUMBERS: dict[str, tuple[int, int]] = {
    "size": (64, 8192),
    "epochs": (1, 10**6),
    "batch": (1, 10**6),
    "queries": (1, 10**5),
    "evaluate_every": (1, 10**6),
    "warmup": (0, 10**9),
    "plain_epochs": (0, 10**6),
    "workers": (0, 256),
    "seed": (0, 2**32 - 1),
}
_NUMBERS: dict[str, tuple[float, float]] = {
    "rate": (0, math.inf),
    "clip": (0, math.inf),
    "backbone_rate": (0, math.inf),
    "weight_decay": (0, math.inf),
    "expand": (1, 16),
    "average": (0, 1),
}
_POSITIVE = ("rate", "clip")


@dataclass(frozen=True)
class TrainOptions:
    """Options of `train`.

    `data` and `val` are COCO jsons, `images` and `val_images` the folders of their files (`val_images` None: the same
    folder). `output` is the folder of checkpoints; a run found there is continued. `variant` names the model (None:
    r18), `weights` a checkpoint to start from, of that variant if one is named (heads are reset where the number of
    classes differs). `size` of the input in pixels, varied from batch to batch by up to `scales` steps of 32. `rate` is
    AdamW's learning rate, `backbone_rate` a factor on it for the backbone; both are warmed up linearly over `warmup`
    steps (at most a tenth of the run) and go down as a cosine to 1 % of their value. `average` is the decay of the
    moving average, `clip` the largest norm of the gradient. `freeze` keeps the "backbone" of `weights`, or the "norms"
    in it (batch normalization: usual for pretrained R50 and larger). `expand` is the largest zoom out of the
    augmentation; the last `plain_epochs` have no colour jitter, zoom or crop (as RT-DETRv2 is trained), flips only.
    `bf16` None means on CUDA only. The average is evaluated on `val` every `evaluate_every` epochs.
    `encoder_iou_targets` False is an ablation (see `objective`).

    Raises `OptionError` for values outside their ranges, and for what would be ignored.
    """

    data: Path
    images: Path
    output: Path
    val: Path | None = None
    val_images: Path | None = None
    variant: str | None = None
    weights: Path | None = None
    layers: int | None = None
    queries: int = 300
    size: int = 640
    scales: int = 2
    epochs: int = 72
    batch: int = 16
    rate: float = 1e-4
    backbone_rate: float = 0.1
    weight_decay: float = 1e-4
    warmup: int = 2000
    average: float = 0.9999
    clip: float = 0.1
    any_orientation: bool = False
    expand: float = 4.0
    plain_epochs: int = 0
    freeze: Literal["backbone", "norms"] | None = None
    evaluate_every: int = 1
    device: str = "cpu"
    bf16: bool | None = None
    workers: int = 2
    seed: int = 0
    encoder_iou_targets: bool = True

    def __post_init__(self) -> None:
        for name, (least, most) in _WHOLE_NUMBERS.items():
            self._check_whole(name, least, most)
        if self.size % STRIDE:
            raise OptionError(f"size is {self.size}, expected a multiple of {STRIDE} from 64 to 8192")
        self._check_whole("scales", 0, (self.size - 64) // STRIDE)
        for name, bounds in _NUMBERS.items():
            self._check_number(name, *bounds)
        if self.average == 1:
            raise OptionError(f"average is {self.average}, expected a decay from 0 to below 1")
        if self.freeze not in (None, "backbone", "norms"):
            raise OptionError(f"freeze is {self.freeze!r}, expected backbone or norms")
        self._check_combination()

    def _check_whole(self, name: str, least: int, most: int) -> None:
        value = getattr(self, name)
        if type(value) is not int or not least <= value <= most:
            raise OptionError(f"{name} is {value}, expected a whole number from {least} to {most}")

    def _check_number(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        positive = value != 0 or name not in _POSITIVE
        if not isinstance(value, (int, float)) or not (math.isfinite(value) and least <= value <= most and positive):
            expected = f"from {least} to {most}" if most < math.inf else f"from {least} up"
            raise OptionError(f"{name} is {value}, expected a number {'above 0' if name in _POSITIVE else expected}")

    def _check_combination(self) -> None:
        """Raise `OptionError` for options that would be ignored, or keep random weights as they are."""
        if self.val is None and self.val_images is not None:
            raise OptionError("val_images is given without val; name the COCO json to evaluate on, or leave it out")
        if self.val is None and self.evaluate_every != 1:
            raise OptionError("evaluate_every is given without val; name the COCO json to evaluate on, or leave it out")
        if self.weights is None and self.freeze is not None:
            raise OptionError(f"freeze {self.freeze} would keep random weights; give the weights to start from")

        if self.freeze == "backbone" and self.backbone_rate != type(self).backbone_rate:
            raise OptionError("backbone_rate has no effect where freeze keeps the backbone; leave one of them out")
        cells = sum((self.size // stride) ** 2 for stride in (8, 16, 32))
        if self.queries > max(cells, type(self).queries):
            raise OptionError(f"queries is {self.queries}, but an input of {self.size} pixels has {cells} cells")

    def recipe(self) -> dict[str, str]:
        """Return every option that decides the result, as text; a run is continued with the same ones only."""
        free = {"device", "workers", "output", "val", "val_images", "evaluate_every"}
        used = {**asdict(self), "variant": self.variant or DEFAULT_VARIANT}
        return {name: str(value) for name, value in used.items() if name not in free}

    @property
    def use_bf16(self) -> bool:
        """Whether forward passes run under bfloat16 autocast."""
        return self.device.startswith("cuda") if self.bf16 is None else self.bf16


def check_paths(options: TrainOptions) -> None:
    """Raise for a missing file or an output that can't be written, before anything slow is done."""
    inputs = [path for path in (options.data, options.val) if path is not None]
    for path in inputs:
        require_file(path, OptionError)
    if options.weights is not None:
        inputs.append(find_weights(options.weights))
    refuse_overwriting({f"{name} in --output": options.output / name for name in WRITTEN}, inputs)
    check_writable(options.output, folder=True)
