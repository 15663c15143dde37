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
SLOTS = (1, 2)
"""A third call would wait for the GPU, which the second keeps busy."""

_DEVICE = re.compile(r"[a-z]+([:.][\w.:,()]+)?", re.IGNORECASE | re.ASCII)
_CPU_OR_CUDA = re.compile(r"(cpu|cuda)(?:(?<=cuda):(\d{1,4}))?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """Where a model runs, and on how many threads.

    `device` is "cpu", "cuda" or "cuda:1" (an NVIDIA GPU, by its number), or for OpenVINO one of its devices ("GPU",
    "NPU", "AUTO", in lower case too); None is the GPU for engines and the CPU for all else. A device is never replaced
    by another one. `threads` limits the runtime's own threads; None leaves their number to it. `size` (height, width)
    is the input size of a checkpoint (None: what it names, else 640x640); files have theirs.

    `slots` is how many calls an engine runs at once, 1 or 2: copies of one overlap with the work of the other, and each
    has GPU memory of its own for the maximum batch. None is two, or one, with a warning, where two would leave less
    than a tenth of the GPU's memory. `blocking_sync` lets threads sleep while an engine works (CUDA's blocking
    synchronization): cores are free for other work, as a Jetson may want, and each call takes a little longer.

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

    slots: int | None = option(
        None,
        "calls that an engine runs at once, 1 or 2",
        type=int,
        choices=SLOTS,
        metavar="N",
        default_help="2 where GPU memory suffices",
    )
    blocking_sync: bool = option(False, "sleep instead of spinning while an engine works: leaves cores to other work")
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            object.__setattr__(self, "size", check_input_size(self.size))
        if self.threads is not None:
            check_threads(self.threads)
        if self.slots is not None and (isinstance(self.slots, bool) or self.slots not in SLOTS):
            raise OptionError(f"`slots` is {self.slots!r}, expected 1 or 2")
        if not isinstance(self.blocking_sync, bool):
            raise OptionError(f"`blocking_sync` is {self.blocking_sync!r}, expected True or False")
        if self.device is not None and not (isinstance(self.device, str) and _DEVICE.fullmatch(self.device)):
            raise OptionError(f"`device` is {self.device!r}, expected cpu, cuda, cuda:1, or a device of OpenVINO")


def check_threads(threads: int) -> None:
    """Raise `OptionError` unless it is a number of threads that makes sense on this machine."""
    limit = THREADS_PER_CORE * (os.cpu_count() or 1)
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)) or not 1 <= threads <= limit:
        raise OptionError(f"`threads` is {threads!r}, expected a whole number from 1 to {limit} on this machine")


def cpu_or_cuda(device: str, runtime: str, *, cpu: bool = True) -> tuple[Literal["cpu", "cuda"], int | None]:
    """Return "cpu" or "cuda" and the GPU's number, where one is given. Raises `OptionError` for other devices.

    `cpu` False leaves the CPU out of what the error expects; the caller refuses "cpu" in words of its own.
    """
    found = _CPU_OR_CUDA.fullmatch(device)
    if found is None:
        known = "cpu, cuda" if cpu else "cuda"
        raise OptionError(f"`device` is {device!r}, but {runtime} runs on {known} or cuda:1 (a GPU by its number)")
    return ("cuda" if found[1].lower() == "cuda" else "cpu"), None if found[2] is None else int(found[2])
