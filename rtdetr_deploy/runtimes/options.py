"""How a model is opened: the options that all runtimes share."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from rtdetr_deploy.artifacts.input_size import check_input_size
from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.options import option, path_argument
from rtdetr_deploy.words import listed

THREADS_PER_CORE = 4
"""More threads than this do nothing but wait for each other: 64 on two cores took five seconds per image."""
MAX_SLOTS = 64
"""More calls at once than this would wait for each other on any device."""
Arithmetic = Literal["fp32", "bf16", "fp16"]
"""What is computed in."""
Precision = Literal["fp32", "bf16", "fp16", "auto"]
Hint = Literal["latency", "throughput"]

_DEVICE = re.compile(r"[a-z]+([:.][-\w.:,()]+)?", re.IGNORECASE | re.ASCII)
_CPU_OR_CUDA = re.compile(r"(cpu|cuda)(?:(?<=cuda):(\d{1,4}))?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """Where a model runs, and on how many threads.

    `device` is "cpu", "cuda" or "cuda:1" (an NVIDIA GPU, by its number), or for OpenVINO one of its devices ("GPU",
    "NPU", "AUTO", in lower case too); None is the GPU for engines and the CPU for all else. A device is never replaced
    by another one. `threads` limits the threads that compute; None leaves their number to the runtime, or is the number
    of cores that this process may use (its affinity, and its container's limit), where those are not all. `size`
    (height, width) is the input size of a checkpoint (None: what it names, else 640x640); files have theirs.

    `precision` is what OpenVINO computes in where a file is in FP32: "fp32" (None: too, but for NPUs, which have none),
    "bf16" or "fp16" where the device has it, or "auto": BF16 where the processor has it and the export has found that
    it keeps the detections, else FP32. The runtime's `arithmetic` tells what runs. `hint` is what the cores are divided
    for: "latency" of one call, which has all of them, or "throughput" of several. `cache` is a folder where
    OpenVINO keeps compiled models, so that a file opens faster the next time; nobody else should write to it.

    `slots` is how many calls run side by side; further ones wait. On a CPU each needs a thread: OpenVINO runs no more
    than it has. Engines have 1 or 2: copies of one overlap with the
    work of the other, and each has GPU memory of its own for the maximum batch. None is two, or one, with a warning,
    where two would leave less than a tenth of the GPU's memory. For OpenVINO None is one, or as many as it finds best
    with `hint="throughput"`, which more than one imply; for ONNX Runtime one, or then one per thread. `spinning` lets
    ONNX Runtime's threads wait for their part of a call without sleeping: where a machine does nothing else, a call may
    be faster so, and beside other work it is much slower. `blocking_sync` lets threads sleep while an engine works
    (CUDA's blocking synchronization): cores are free for other work, as a Jetson may want, and each call takes a little
    longer.

    Raises `OptionError` for values that no runtime takes; each runtime refuses what it can't use.
    """

    device: str | None = option(
        None,
        "where the model runs: cpu, cuda, cuda:1, or a device of OpenVINO",
        metavar="DEVICE",
        default_help="engines on the GPU, all else on the CPU",
    )
    threads: int | None = option(
        None,
        "threads of the runtime",
        type=int,
        metavar="N",
        default_help="the runtime decides; in a container what it may use",
    )

    precision: Precision | None = option(
        None,
        "what OpenVINO computes in where the file is in FP32; auto: BF16 where the processor has it and it kept the "
        "detections in the file's export",
        choices=get_args(Precision),
        flag="--arithmetic",
        default_help="fp32",
    )
    hint: Hint | None = option(
        None,
        "what the cores are divided for: one call, or several at once",
        choices=get_args(Hint),
        default_help="latency; throughput with --slots",
    )
    cache: Path | None = option(
        None,
        "folder where OpenVINO keeps compiled models, to open them faster",
        type=path_argument,
        metavar="DIR",
        default_help="none",
    )
    slots: int | None = option(
        None,
        "calls that run side by side: 1 or 2 of an engine, any number on a CPU",
        type=int,
        metavar="N",
        default_help="engines: 2 where GPU memory suffices; CPUs: 1, or what fits --hint throughput",
    )
    spinning: bool = option(False, "ONNX Runtime's threads wait without sleeping: for machines that do nothing else")
    blocking_sync: bool = option(False, "sleep instead of spinning while an engine works: leaves cores to other work")
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            object.__setattr__(self, "size", check_input_size(self.size))
        if self.threads is not None:
            check_threads(self.threads)
        if self.slots is not None and not (type(self.slots) is int and 1 <= self.slots <= MAX_SLOTS):
            raise OptionError(f"`slots` is {self.slots!r}, expected a whole number from 1 to {MAX_SLOTS}")
        for name, choices in (("precision", get_args(Precision)), ("hint", get_args(Hint))):
            if getattr(self, name) not in (None, *choices):
                raise OptionError(f"`{name}` is {getattr(self, name)!r}, expected {listed(choices)}")
        if self.hint == "latency" and (self.slots or 1) > 1:
            raise OptionError(f'`slots` is {self.slots}, but `hint="latency"` gives all cores to one call')
        if self.threads is not None and self.threads < (self.slots or 1):
            raise OptionError(f"`slots` is {self.slots}, but `threads` is {self.threads}: each call needs a thread")
        if self.cache is not None:
            object.__setattr__(self, "cache", Path(self.cache))
        for name in ("spinning", "blocking_sync"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"`{name}` is {getattr(self, name)!r}, expected True or False")
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
