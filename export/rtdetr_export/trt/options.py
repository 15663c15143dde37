"""What can be chosen for a TensorRT engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rtdetr_deploy.artifacts.hardware import HardwareCompatible, read_compatibility
from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.options import option, path_argument

TilingLevel = Literal["none", "fast", "moderate", "full"]

ENGINE_SUFFIXES = (".engine", ".plan")
DEFAULT_MAX_BATCH = 8
OPTIMIZATION_LEVELS = range(6)


@dataclass(frozen=True)
class EngineOptions:
    """Options of a TensorRT engine.

    With a dynamic batch the engine takes 1 to `max_batch` images (None: 8) and is tuned for `opt_batch` (None: 1); a
    fixed batch leaves nothing to choose. `device` is the GPU that it is built for and verified on ("cuda:1"; None: the
    current one). `workspace` limits the builder's scratch memory in GiB; `timing_cache` is a file that makes the next
    build faster. `optimization_level` 0 to 5 is how long the builder searches for fast kernels (None: TensorRT's 3),
    `max_aux_streams` how many streams it may add for work side by side (0: none, the least memory; None: TensorRT
    decides), `tiling_level` how hard it tries to keep data on the chip.

    `version_compatible` engines run on later TensorRT versions; `hardware_compatible` ones on other GPUs than the model
    that built them: "ampere+" on every GPU from Ampere on (not on a T4), "same-compute-capability" on those of the same
    capability, from Turing on. Both may be slower. True and False of version 0.1 are "ampere+" and "none".

    `reference` is an FP32 .onnx file or a checkpoint that the engine of an .onnx file is compared with, instead of that
    file. `accept` writes the engine in spite of a failed verification, with the report; `keep_log` keeps the builder's
    log and the inspector's layers beside an engine that passed, too.

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
    device: str | None = option(
        None, "GPU that it is built for and verified on: cuda, cuda:1", metavar="DEVICE", default_help="the current one"
    )
    workspace: float | None = option(
        None, "limit of the builder's scratch memory", type=float, metavar="GIB", default_help="TensorRT's"
    )
    timing_cache: Path | None = option(None, "makes the next build faster", type=path_argument, metavar="FILE")
    optimization_level: int | None = option(
        None, "0 to 5: how long the builder searches for fast kernels", type=int, metavar="N",
        default_help="TensorRT's, 3",
    )  # fmt: skip
    max_aux_streams: int | None = option(
        None, "streams that it may add for work side by side; 0 takes the least memory", type=int, metavar="N",
        default_help="TensorRT decides",
    )  # fmt: skip
    tiling_level: TilingLevel | None = option(
        None, "how hard the builder tries to keep data on the chip", choices=get_args(TilingLevel),
        default_help="TensorRT's, none",
    )  # fmt: skip
    version_compatible: bool = option(False, "also run on later versions 10.x or 11.x")
    hardware_compatible: HardwareCompatible = option(
        "none", "also run on other GPUs: on all from Ampere on (no T4), or on those of the same compute capability; "
        "without a value: ampere+", nargs="?", const="ampere+", choices=get_args(HardwareCompatible),
    )  # fmt: skip
    reference: Path | None = option(
        None, "FP32 .onnx or checkpoint that the engine of an .onnx file is compared with", type=path_argument,
        metavar="FILE", default_help="that file",
    )  # fmt: skip
    accept: bool = option(False, "write the engine although its verification failed; its .json file holds the report")
    keep_log: bool = option(False, "keep the builder's log and the inspector's layers beside the engine")

    def __post_init__(self) -> None:
        for name in ("timing_cache", "reference"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))
        check_whole_numbers(self, "max_batch", "opt_batch")
        _, opt, max_batch = self.profile(None)
        if opt > max_batch:
            raise OptionError(f"`opt_batch` is {opt}, expected 1 to `max_batch`, {max_batch}")
        if self.workspace is not None and not (isinstance(self.workspace, (int, float)) and self.workspace > 0):
            raise OptionError(f"`workspace` is {self.workspace!r}, expected GiB above 0")
        self._check_search()
        _ = self.gpu_number  # refuses what is not a GPU

    def _check_search(self) -> None:
        level, streams = self.optimization_level, self.max_aux_streams
        if level is not None and (type(level) is not int or level not in OPTIMIZATION_LEVELS):
            raise OptionError(f"`optimization_level` is {level!r}, expected a whole number from 0 to 5")
        if streams is not None and (type(streams) is not int or streams < 0):
            raise OptionError(f"`max_aux_streams` is {streams!r}, expected a whole number from 0 up")
        if self.tiling_level not in (None, *get_args(TilingLevel)):
            raise OptionError(f"`tiling_level` is {self.tiling_level!r}, expected none, fast, moderate or full")
        try:
            object.__setattr__(self, "hardware_compatible", read_compatibility(self.hardware_compatible))
        except ValueError as error:
            raise OptionError(
                f"`hardware_compatible` is {self.hardware_compatible!r}, expected none, ampere+ or "
                "same-compute-capability"
            ) from error

    @property
    def gpu_number(self) -> int | None:
        """The number of the GPU; None is the current one."""
        from rtdetr_deploy.runtimes.options import cpu_or_cuda  # numpy: loaded where an interrupt is handled

        if self.device is None:
            return None
        kind, number = cpu_or_cuda(str(self.device), "TensorRT", cpu=False)
        if kind == "cpu":
            raise OptionError('`device="cpu"` is not for engines: they are built on NVIDIA GPUs; leave it out')
        return number

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
