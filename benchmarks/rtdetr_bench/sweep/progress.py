"""How far a sweep has come, and how long the rest takes: told on standard error, a line for each step that is done."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from rtdetr_bench.sweep.plan import show_seconds
from rtdetr_deploy.words import printable

WIDTH = 60


class Progress:
    """Counts the steps of a sweep: `expected` are the seconds that each is thought to take, by kind and name.

    What steps of a kind really take corrects what is expected of the others.
    """

    def __init__(self, expected: Mapping[tuple[str, str], float]) -> None:
        self._left = dict(expected)
        self._total = len(expected)
        self._thought: defaultdict[str, float] = defaultdict(float)
        self._took: defaultdict[str, float] = defaultdict(float)

    @property
    def seconds_left(self) -> float:
        """What the steps that aren't done will take."""
        return sum(seconds * self._factor(kind) for (kind, _), seconds in self._left.items())

    def _factor(self, kind: str) -> float:
        return self._took[kind] / self._thought[kind] if self._thought[kind] else 1.0

    @contextmanager
    def step(self, kind: str, name: str) -> Iterator[Any]:
        """Time a step; yields the line that shows it on a terminal. A step that fails is not told."""
        with self.steps(kind, [name]) as line:
            yield line

    @contextmanager
    def steps(self, kind: str, names: Sequence[str]) -> Iterator[Any]:
        """As `step`, for several that are done side by side and share the time."""
        name = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        start, expected = time.perf_counter(), sum(self._left.get((kind, one), 0.0) for one in names)
        with tqdm(
            total=0, bar_format="  {desc}", leave=False, file=sys.stderr, disable=not sys.stderr.isatty()
        ) as line:
            line.set_description_str(f"{kind} {name} ...")
            yield line
        took = time.perf_counter() - start
        self._thought[kind] += expected
        self._took[kind] += took if expected else 0.0
        for one in names:
            self.skip(kind, one)
        self.say(f"{f'{kind} {name}':<{WIDTH}} {took:7.1f} s", counted=True)

    def expect(self, kind: str, name: str, seconds: float) -> None:
        """Replace what a step is thought to take, unless it is done."""
        if (kind, name) in self._left:
            self._left[kind, name] = seconds

    def skip(self, kind: str, name: str) -> None:
        """Take a step out: it is done already, or not needed."""
        self._left.pop((kind, name), None)

    def say(self, text: str, *, counted: bool = False) -> None:
        """Print a line, with the number of steps and the time left where it is `counted`."""
        if counted:
            done = f"[{self._total - len(self._left):>{len(str(self._total))}}/{self._total}]"
            left = f", about {show_seconds(self.seconds_left)} left" if self._left else ""
            text = f"{done} {text}{left}"
        for line in text.splitlines():
            tqdm.write(printable(line), file=sys.stderr)
        sys.stderr.flush()
