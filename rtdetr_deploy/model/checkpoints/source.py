"""What a source of checkpoints is: one module here, and one line in the table `SOURCES` of `load`.

A source is whoever writes checkpoints of a model that can be built here: a repository or library with names and files
of its own. Its module has two functions, `matches` and `convert`. `find_state` helps with weights that lie under other
keys or prefixes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from rtdetr_deploy.model.checkpoints.read import Content
from rtdetr_deploy.model.variants import Sampling

State = dict[str, Tensor]
"""Parameters and buffers by name."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights under the names of RT-DETRv2's released checkpoints, and what is stored beside them.

    `class_names` are a list, or a map from index to name or from name to index; `input_size` is (height, width) in
    pixels. None stands for what the file doesn't tell. With `runs_all_layers` every decoder layer in the file runs by
    default, else as many as in the released model of the same shapes.
    """

    state: State
    class_names: Any = None
    input_size: tuple[int, int] | None = None
    queries: int | None = None
    sampling: Sampling | None = None
    runs_all_layers: bool = False


class Source(Protocol):
    """What the module of a source has."""

    def matches(self, content: Content) -> bool:
        """Tell whether this source wrote `content`; raises nothing, and is cheap."""
        ...

    def convert(self, content: Content) -> Weights:
        """Return the weights in `content`, which matches. Raises `CheckpointError` for those that can't be used."""
        ...
