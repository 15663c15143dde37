"""How far an export has come: told step by step to whoever shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """A step that runs, `detail` saying how far it has come, or that has ended after `seconds` (None while it runs)."""

    name: str
    detail: str = ""
    seconds: float | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}" if self.detail else self.name


Progress = Callable[[Step], None]
"""Called when a step begins, when it has come further, and when it has ended; perhaps from another thread."""


class Steps:
    """Times named steps and tells `progress` about them; None tells nobody."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._name = ""

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time the block as the step `name`; a block that fails has not ended."""
        start = time.perf_counter()
        self._name = name
        self._tell(Step(name))
        yield
        self._tell(Step(name, seconds=time.perf_counter() - start))

    def say(self, detail: str) -> None:
        """Tell how far the step that runs has come."""
        self._tell(Step(self._name, detail))

    def _tell(self, step: Step) -> None:
        if self._progress is not None:
            self._progress(step)
