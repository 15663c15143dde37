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
    from rtdetr_deploy.images.frame import Frame
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
    """An input made by a runtime's own preprocessor; only the runtime that it comes from takes it."""

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

    def run_timed(self, feed: Feed) -> tuple[dict[str, Array], float]:
        """As `run`; also return the milliseconds that the model took on its device, copies excluded."""


class Preprocessor(Protocol):
    """Makes a model's input of frames."""

    def __call__(self, frames: Sequence[Frame], rows: int) -> Array | DeviceBatch:
        """Return a batch of `rows` rows for `Runtime.run`, those without a frame being zero."""


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
