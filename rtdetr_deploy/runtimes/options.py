"""How a model is opened: the options that all runtimes share."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rtdetr_deploy.artifacts.input_size import check_input_size
from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.options import option

THREADS_PER_CORE = 4
"""More threads than this do nothing but wait for each other: 64 on two cores took five seconds per image."""

_DEVICE = re.compile(r"[a-z]+([:.][\w.:,()]+)?", re.IGNORECASE | re.ASCII)
_CPU_OR_CUDA = re.compile(r"(cpu|cuda)(?:(?<=cuda):(\d{1,4}))?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """Where a model runs, and on how many threads.

    `device` is "cpu", "cuda" or "cuda:1" (an NVIDIA GPU, by its number), or for OpenVINO one of its devices ("GPU",
    "NPU", "AUTO", in lower case too); None is the GPU for engines and the CPU for all else. A device is never replaced
    by another one. `threads` limits the runtime's own threads; None leaves their number to it. `size` (height, width)
    is the input size of a checkpoint (None: what it names, else 640x640); files have theirs.

    Raises `OptionError` for values that no runtime takes; each runtime refuses what it can't use.
    """

    device: str | None = option(
        None,
        "where the model runs: cpu, cuda, cuda:1, or a device of OpenVINO",
        metavar="DEVICE",
        default_help="engines on the GPU, all else on the CPU",
    )
    threads: int | None = option(
        None, "threads of the runtime", type=int, metavar="N", default_help="the runtime decides"
    )

    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            object.__setattr__(self, "size", check_input_size(self.size))
        if self.threads is not None:
            check_threads(self.threads)
        if self.device is not None and not (isinstance(self.device, str) and _DEVICE.fullmatch(self.device)):
            raise OptionError(f"`device` is {self.device!r}, expected cpu, cuda, cuda:1, or a device of OpenVINO")


def check_threads(threads: int) -> None:
    """Raise `OptionError` unless it is a number of threads that makes sense on this machine."""
    limit = THREADS_PER_CORE * (os.cpu_count() or 1)
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)) or not 1 <= threads <= limit:
        raise OptionError(f"`threads` is {threads!r}, expected a whole number from 1 to {limit} on this machine")


def cpu_or_cuda(device: str, runtime: str) -> tuple[Literal["cpu", "cuda"], int | None]:
    """Return "cpu" or "cuda" and the GPU's number, where one is given. Raises `OptionError` for other devices."""
    found = _CPU_OR_CUDA.fullmatch(device)
    if found is None:
        raise OptionError(f"`device` is {device!r}, but {runtime} runs on cpu, cuda or cuda:1 (a GPU by its number)")
    return ("cuda" if found[1].lower() == "cuda" else "cpu"), None if found[2] is None else int(found[2])
