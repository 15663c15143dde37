"""What can be chosen for a TensorRT engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.options import option, path_argument

ENGINE_SUFFIXES = (".engine", ".plan")
DEFAULT_MAX_BATCH = 8


@dataclass(frozen=True)
class EngineOptions:
    """Options of a TensorRT engine.

    With a dynamic batch the engine takes 1 to `max_batch` images (None: 8) and is tuned for `opt_batch` (None: 1); a
    fixed batch leaves nothing to choose. `workspace` limits the builder's scratch memory in GiB; `timing_cache` is a
    file that makes the next build faster; `version_compatible` engines run on later TensorRT versions,
    `hardware_compatible` ones on every GPU from Ampere on (not on a T4), both somewhat slower.

    Raises `OptionError` for values outside their ranges.
    """

    max_batch: int | None = option(
        None, "maximum images at once, with --batch dynamic", type=int, metavar="N",
        default_help=str(DEFAULT_MAX_BATCH), old=("--largest-batch",),
    )  # fmt: skip
    opt_batch: int | None = option(
        None, "batch that it is tuned for, with --batch dynamic", type=int, metavar="N", default_help="1",
        old=("--best-batch",),
    )  # fmt: skip
    workspace: float | None = option(
        None, "limit of the builder's scratch memory", type=float, metavar="GIB", default_help="TensorRT's"
    )
    timing_cache: Path | None = option(None, "makes the next build faster", type=path_argument, metavar="FILE")
    version_compatible: bool = option(False, "also run on later versions 10.x or 11.x")
    hardware_compatible: bool = option(False, "run on every GPU from Ampere on (no T4)")

    def __post_init__(self) -> None:
        if self.timing_cache is not None:
            object.__setattr__(self, "timing_cache", Path(self.timing_cache))
        check_whole_numbers(self, "max_batch", "opt_batch")
        _, opt, max_batch = self.profile(None)
        if opt > max_batch:
            raise OptionError(f"`opt_batch` is {opt}, expected 1 to `max_batch`, {max_batch}")
        if self.workspace is not None and not (isinstance(self.workspace, (int, float)) and self.workspace > 0):
            raise OptionError(f"`workspace` is {self.workspace!r}, expected GiB above 0")

    def profile(self, batch: int | None) -> tuple[int, int, int]:
        """Return the (min, opt, max) batch of an engine whose ONNX file takes `batch` images (None: any number)."""
        if batch is not None:
            return batch, batch, batch
        return 1, self.opt_batch or 1, self.max_batch or DEFAULT_MAX_BATCH

    def check_batch(self, batch: int | None, name: str) -> None:
        """Raise `OptionError` when a batch is chosen that the model called `name`, which takes `batch`, rules out."""
        for chosen in ("max_batch", "opt_batch"):
            if batch is not None and getattr(self, chosen) is not None:
                raise OptionError(f'`{chosen}`: {name} takes batch {batch} alone; export it with `batch="dynamic"`')


def check_whole_numbers(options: Any, *names: str) -> None:
    """Raise `OptionError` unless these options are None or whole numbers from 1 up."""
    for name in names:
        value = getattr(options, name)
        if value is not None and (type(value) is not int or value < 1):
            raise OptionError(f"`{name}` is {value!r}, expected a whole number from 1 up")
