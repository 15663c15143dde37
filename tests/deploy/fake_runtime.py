"""A runtime in NumPy for tests of what is around a model: its one detection tells the image's brightness."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rtdetr_deploy.artifacts.metadata import ArtifactInfo
from rtdetr_deploy.runtimes.protocol import Array, Feed, TensorSpec

SIDE = 8


@dataclass
class FakeRuntime:
    """Takes `batch` images (None: any number, up to `max_batch`); `batches` lists how many rows each run had."""

    batch: int | None = None
    max_batch: int | None = None
    min_batch: int = 1
    info: ArtifactInfo | None = None
    on_run: Callable[[], object] = lambda: None
    batches: list[int] = field(default_factory=list)
    file: str = "fake.onnx"
    name: str = "NumPy"
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("images", np.dtype(np.float32), (self.batch, 3, SIDE, SIDE)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec("labels", np.dtype(np.int64), (self.batch, 1), 3),
            TensorSpec("boxes", np.dtype(np.float32), (self.batch, 1, 4)),
            TensorSpec("scores", np.dtype(np.float32), (self.batch, 1)),
        )

    def run(self, feed: Feed) -> dict[str, Array]:
        images = feed["images"]
        assert isinstance(images, np.ndarray)
        assert images.shape[1:] == (3, SIDE, SIDE)
        self.batches.append(len(images))
        self.on_run()
        scores: NDArray[np.float32] = images.mean(axis=(1, 2, 3))[:, None]
        boxes = np.tile(np.array([0.25, 0.25, 0.75, 0.75], np.float32), (len(images), 1, 1))
        return {"labels": np.ones((len(images), 1), np.int64), "boxes": boxes, "scores": scores}

    def close(self) -> None:
        pass


def gray(level: int) -> NDArray[np.uint8]:
    """Return an image of one brightness, and of a size of its own."""
    return np.full((10 + level % 5, 12, 3), level, np.uint8)
