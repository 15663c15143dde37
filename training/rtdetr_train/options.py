"""What can be chosen for a training run, checked before any work is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rtdetr_deploy.errors import OptionError

STRIDE = 32


@dataclass(frozen=True)
class TrainOptions:
    """Options of `train`.

    `data` and `val` are COCO jsons, `images` and `val_images` the folders of their files (`val_images` None: the same
    folder). `output` is the folder of checkpoints; a run found there is continued. `variant` names the model, `weights`
    a checkpoint to start from (its variant is used; heads are reset where the number of classes differs). `size` of
    the input in pixels, varied from batch to batch by up to `scales` steps of 32. `rate` is AdamW's learning rate,
    `backbone_rate` a factor on it for the backbone; both are warmed up linearly over `warmup` steps (at most a tenth of
    the run) and go down as a cosine to 1 % of their value. `average` is the decay of the moving average, `clip` the
    largest norm of the gradient. `freeze` keeps the "backbone", or the "norms" in it (batch normalization: usual for
    pretrained R50 and larger). `expand` is the largest zoom out of the augmentation; the last
    `plain_epochs` have no colour jitter, zoom or crop (as RT-DETRv2 is trained), flips only. `bf16` None means on CUDA
    only. The average is evaluated on `val` every `evaluate_every` epochs. `encoder_iou_targets` False is an ablation
    (see `objective`).

    Raises `OptionError` for values outside their ranges.
    """

    data: Path
    images: Path
    output: Path
    val: Path | None = None
    val_images: Path | None = None
    variant: str = "r18"
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
        if self.size < 64 or self.size % STRIDE:
            raise OptionError(f"size is {self.size}, expected a multiple of {STRIDE} from 64 up")
        smallest = {
            "seed": 0,
            "weight_decay": 0,
            "epochs": 1,
            "batch": 1,
            "queries": 1,
            "evaluate_every": 1,
            "warmup": 0,
            "plain_epochs": 0,
            "workers": 0,
        }
        for name, least in smallest.items():
            if getattr(self, name) < least:
                raise OptionError(f"{name} is {getattr(self, name)}, expected a number from {least} up")
        most = (self.size - 64) // STRIDE
        if not 0 <= self.scales <= most:
            raise OptionError(f"scales is {self.scales}; with size {self.size} choose 0 to {most}")
        for name in ("rate", "clip"):
            if not getattr(self, name) > 0:
                raise OptionError(f"{name} is {getattr(self, name)}, expected a number above 0")
        if self.expand < 1:
            raise OptionError(f"expand is {self.expand}, expected a factor from 1 up")
        if not 0 <= self.average < 1:
            raise OptionError(f"average is {self.average}, expected a decay from 0 to below 1")

    def recipe(self) -> dict[str, str]:
        """Return every option that decides the result, as text; a run is continued with the same ones only."""
        free = {"device", "workers", "output", "val", "val_images", "evaluate_every"}
        return {name: str(value) for name, value in asdict(self).items() if name not in free}

    @property
    def use_bf16(self) -> bool:
        """Whether forward passes run under bfloat16 autocast."""
        return self.device.startswith("cuda") if self.bf16 is None else self.bf16
