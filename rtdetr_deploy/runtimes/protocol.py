"""What runs a model: the protocol of all runtimes, and what some of them can do besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rtdetr_deploy.artifacts.metadata import ArtifactInfo
    from rtdetr_deploy.images.gpu_array import GpuArray
    from rtdetr_deploy.images.gpu_frame import AnyFrame
    from rtdetr_deploy.images.preprocess_spec import PreprocessSpec

Array = NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """Name, NumPy dtype and shape of one input or output; None marks a dynamic axis.

    `classes` is the number of classes that an output of labels counts, where the file tells.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    classes: int | None = None

    def __str__(self) -> str:
        """Return the spec as messages show it, e.g. "images float32[?, 3, 640, 640]"."""
        return f"{self.name} {self.dtype}[{', '.join('?' if axis is None else str(axis) for axis in self.shape)}]"


@runtime_checkable
class DeviceBatch(Protocol):
    """An input that is not the CPU's: made by a runtime's own preprocessor, or an array that a `GpuRuntime` received.

    Only the runtime that it comes from takes it.
    """

    def __len__(self) -> int:
        """Rows of the batch."""


Feed = Mapping[str, "Array | DeviceBatch"]
"""Every input of a model by name."""


@runtime_checkable
class Runtime(Protocol):
    """A loaded model. `run` may be called from several threads at once."""

    @property
    def file(self) -> str:
        """The name of the model's file, for messages about it."""

    @property
    def name(self) -> str:
        """The runtime, its version and its device, for people."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` returns."""

    @property
    def info(self) -> ArtifactInfo | None:
        """What is stored with a model of ours; None for third-party ones."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Text entries of the model's file, as they are in it; empty for files that have none."""

    @property
    def min_batch(self) -> int:
        """The minimum number of images at once where the batch is dynamic."""

    @property
    def max_batch(self) -> int | None:
        """The maximum number of images at once where the batch is dynamic; None where there is no limit."""

    def run(self, feed: Feed) -> dict[str, Array]:
        """Return every output by name. The caller owns the arrays; those of `feed` are only read.

        Raises `ArtifactError` for inputs other than `inputs` says (names, dtypes, shapes), and after `close`.
        """

    def close(self) -> None:
        """Free the model; calling it twice is harmless."""


@runtime_checkable
class TimedRuntime(Runtime, Protocol):
    """A runtime that can tell the model's own time from that of copies."""

    def run_timed(self, feed: Feed, calls: int = 1) -> tuple[dict[str, Array], float]:
        """As `run`; also return the milliseconds that the model took on its device, copies excluded.

        With several `calls` the model is run so often, one right behind the other, and the time is their mean.
        """


class Preprocessor(Protocol):
    """Makes a model's input of frames."""

    def __call__(self, frames: Sequence[AnyFrame], rows: int) -> Array | DeviceBatch:
        """Return a batch of `rows` rows for `Runtime.run`, those without a frame being zero.

        Raises `ImageError` for frames on a GPU unless it works there.
        """


@runtime_checkable
class PreprocessingRuntime(Runtime, Protocol):
    """A runtime that can also prepare frames, where the model runs."""

    @property
    def resizers(self) -> AbstractSet[str]:
        """Names of the resizers that it offers besides those of the host."""

    def preprocessor(self, name: str, resizer: str, spec: PreprocessSpec) -> Preprocessor:
        """Return what makes the input `name` of frames by `resizer`, one of `resizers`, as the `PreprocessSpec` says.

        Raises `OptionError` for other resizers, and for inputs and specs that it can't make.
        """


class DeviceOutput(Protocol):
    """An output that was left on the GPU; `numpy.asarray` copies it to the CPU.

    It is computed and may be read by any stream: torch.as_tensor(x, device="cuda") and cupy.asarray(x) share its
    memory. It is valid as long as anything refers to it and the model is open.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The output's shape."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The output's type."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3; `stream` is None: there is nothing to wait for."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Return a copy in the CPU's memory."""


@runtime_checkable
class ParallelRuntime(Runtime, Protocol):
    """A runtime that gains by calls from several threads: it runs `slots` of them side by side."""

    @property
    def slots(self) -> int:
        """Calls that run at the same time; further ones wait."""

    def run_in_each_slot(self, feed: Feed) -> None:
        """Run once in each slot: what the first calls of a batch size prepare is then there for all."""


@runtime_checkable
class GpuRuntime(PreprocessingRuntime, ParallelRuntime, Protocol):
    """A runtime that reads arrays where they lie on its GPU, can leave outputs there, and runs calls side by side."""

    def receive(self, array: object, what: str) -> GpuArray:
        """Return an array of another library on the GPU as `run` takes it: as an input, or as the pixels of a frame.

        Work that the caller has queued for it so far, in this thread, is waited for on the GPU. Raises `ImageError`,
        which speaks of it as `what`, unless it lies on this runtime's GPU.
        """

    def run_on_device(self, feed: Feed) -> dict[str, DeviceOutput]:
        """As `run`, with the outputs left on the GPU."""

    def run_in_each_slot(self, feed: Feed, *, on_device: bool = False) -> None:
        """As `ParallelRuntime.run_in_each_slot`.

        With `on_device` as `run_on_device` does, which prepares something else.
        """
