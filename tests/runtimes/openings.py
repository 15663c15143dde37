"""Every runtime over one tiny model, for the contract suite: how each is opened here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rtdetr_deploy.runtimes import Array, Runtime, RuntimeOptions, open_runtime

HEIGHT, WIDTH = 128, 160


@dataclass(frozen=True)
class Opening:
    """A model file, the runtime that opens it (None: by its suffix), and what that runtime can do here.

    `how` are the fields of `RuntimeOptions` with which it is opened.
    """

    path: Path
    runtime: str | None
    device: str
    other_device: str
    takes_threads: bool
    max_batch: int | None = None
    how: dict[str, Any] = field(default_factory=dict)

    def open(self, **options: Any) -> Runtime:
        """Return the opened runtime; whoever asks closes it."""
        settings = RuntimeOptions(**{**self.how, **options})
        if self.runtime == "torch":  # of as many layers as the exported files have
            from rtdetr_deploy.runtimes.eager import open_checkpoint

            return open_checkpoint(self.path, layers=2, options=settings)
        return open_runtime(self.path, self.runtime, settings)


def feed_of(runtime: Runtime, rows: int = 1, seed: int = 0) -> dict[str, Array]:
    """Return random images for a runtime."""
    (spec,) = runtime.inputs
    shape = (rows, *(axis or 1 for axis in spec.shape[1:]))
    values = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return {spec.name: values if spec.dtype == np.uint8 else (values / np.float32(255)).astype(spec.dtype)}


Change = Callable[[dict[str, Array]], dict[str, Any]]

WRONG_FEEDS: dict[str, Change] = {
    "another name": lambda feed: {"pictures": feed["images"]},
    "nothing": lambda feed: {},
    "one more": lambda feed: {**feed, "sizes": np.ones((1, 2), np.float32)},
    "another type": lambda feed: {"images": feed["images"].astype(np.float64)},
    "a list": lambda feed: {"images": feed["images"].tolist()},
    "another height": lambda feed: {"images": np.repeat(feed["images"], 2, axis=feed["images"].shape.index(HEIGHT))},
    "no batch": lambda feed: {"images": feed["images"][0]},
    "no row": lambda feed: {"images": feed["images"][:0]},
}
