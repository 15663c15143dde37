"""What runs a model file: one protocol, one module per engine, chosen by the file's suffix."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rtdetr_deploy.errors import ArtifactError, OptionError
from rtdetr_deploy.files import require_file

if TYPE_CHECKING:
    from rtdetr_deploy.images.frame import Frame

Array = NDArray[Any]
Device = Literal["cpu", "cuda"]
THREADS_PER_CORE = 4
"""More threads than this do nothing but wait for each other: 64 on two cores took five seconds per image."""
DEVICES: tuple[Device, ...] = ("cpu", "cuda")


@dataclass(frozen=True)
class TensorSpec:
    """Name, NumPy dtype and shape of one input or output; None marks a dynamic axis.

    `classes` is the number of classes that an output of labels counts, where the file tells.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    classes: int | None = None


@runtime_checkable
class Runtime(Protocol):
    """A loaded model. `run` may be called from several threads at once."""

    @property
    def file(self) -> str:
        """The name of the model's file, for messages about it."""

    @property
    def name(self) -> str:
        """The engine and its version, for people."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` returns."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Text entries stored with the model."""

    @property
    def max_batch(self) -> int | None:
        """The most images at once where the batch is dynamic; None where there is no limit."""

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name. The caller owns the arrays."""

    def close(self) -> None:
        """Free the model; calling it twice is harmless."""


@runtime_checkable
class FrameRuntime(Runtime, Protocol):
    """A runtime that can also prepare frames, where the model runs."""

    def run_frames(self, name: str, frames: Sequence[Frame], feed: Mapping[str, Array]) -> dict[str, Array]:
        """As `run`, with the input `name` made of `frames` (resized, RGB, scaled) and the others given by `feed`.

        Rows of a fixed batch without a frame are zero; the outputs have them too.
        """


@runtime_checkable
class TimedRuntime(Runtime, Protocol):
    """A runtime that can tell the model's own time from that of copies."""

    def run_timed(
        self, feed: Mapping[str, Array], name: str | None = None, frames: Sequence[Frame] = ()
    ) -> tuple[dict[str, Array], float]:
        """As `run`; also return the milliseconds that the model took on its device, copies excluded.

        With a `name`, that input is made of `frames`, where the runtime can (see `FrameRuntime`).
        """


_MODULES = {".onnx": "ort", ".engine": "trt.runtime", ".plan": "trt.runtime"}
_HINTS = dict.fromkeys(
    (".pth", ".pt", ".safetensors"), "export it first: rtdetr-export --weights {name} writes an .onnx file"
)


def open_runtime(path: str | Path, *, threads: int | None = None, device: Device | None = None) -> Runtime:
    """Open the model file `path` with the engine that its suffix names; `threads` None leaves their number to it.

    `device` None is the CPU for ONNX files and the GPU for engines. A device is never replaced by another one: what
    can't run there is an error.

    Raises `ArtifactError` when the file is missing, is not a model, has an unknown suffix, or can't run on `device`,
    `MissingPackageError` when the engine's package is not installed, and `OptionError` for other arguments.
    """
    if threads is not None:
        check_threads(threads)
    if device is not None and device not in DEVICES:
        raise OptionError(f"unknown device {device!r}; choose one of {', '.join(DEVICES)}")
    if path == "":
        raise ArtifactError("the name of the model file is empty; is a shell variable not set?")
    path = Path(path)
    module = _MODULES.get(path.suffix.lower())
    if module is None:
        if path.is_dir():
            raise ArtifactError(f"{path} is a folder; name the model file in it")
        hint = _HINTS.get(path.suffix.lower(), "expected one of: {known}").format(
            name=path.name, known=", ".join(_MODULES)
        )
        found = f"{path.suffix} is not a model format known here" if path.suffix else "its name has no suffix"
        raise ArtifactError(f"can't run {path.name}: {found}; {hint}")
    if require_file(path, ArtifactError) == 0:
        raise ArtifactError(f"{path} is empty; export the model again")
    engine = import_module(f"{__name__}.{module}")
    return cast("Runtime", engine.open_model(path, threads, device))


def check_threads(threads: int) -> None:
    """Raise `OptionError` unless it is a number of threads that makes sense on this machine."""
    most = THREADS_PER_CORE * (os.cpu_count() or 1)
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)) or not 1 <= threads <= most:
        raise OptionError(f"threads is {threads!r}, expected a whole number from 1 to {most} on this machine")
