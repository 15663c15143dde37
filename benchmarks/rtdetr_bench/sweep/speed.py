"""The third part of a sweep: candidates timed in turn, round by round, in MLPerf's scenarios.

A round asks each candidate a few queries of each scenario before the next round begins, so that what the machine does
meanwhile falls on all of them alike. All that fit in memory are open at once; the others make groups of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from rtdetr_bench.models.contestant import Contestant
from rtdetr_bench.models.open import open_timed_model
from rtdetr_bench.models.timed_model import TimedModel
from rtdetr_bench.options import RunOptions, TimingOptions
from rtdetr_bench.scenarios.bounds import latency_bound
from rtdetr_bench.scenarios.measure import batch_of, measure_scenario
from rtdetr_bench.scenarios.results import SCENARIOS
from rtdetr_bench.sweep.accuracy import run_arguments
from rtdetr_bench.sweep.axes import Candidate
from rtdetr_bench.sweep.files import attempt
from rtdetr_bench.sweep.options import SweepOptions
from rtdetr_bench.sweep.state import Json
from rtdetr_deploy.images.frame import ImageLike
from rtdetr_deploy.runtimes import RuntimeOptions

try:
    import psutil
except ImportError:  # groups are small then
    psutil = None  # type: ignore[assignment]

SINGLE, MULTI, OFFLINE = SCENARIOS
QUERIES = {SINGLE: 13, MULTI: 2, OFFLINE: 8}
"""Of a round; those of Offline are images. Five rounds of 13 are the 64 from which a bound of p90 can be told."""
SESSION, ROUNDS = "session", "single_stream_rounds"
QUICK_ROUNDS, QUICK_QUERIES = 2, 5
GROUP = 4
"""Candidates that are open at once where memory is not known."""
SHARE = 0.5
"""Of the free memory that a group may take."""
MEMORY_PER_BYTE, MEMORY = 4.0, 200e6
"""What a model takes: of its file's bytes, and besides; an R18 of 80 MB takes 310, an R50 of 170 MB 480 to 700."""

OnRound = Callable[[int], object]
"""Called after each round with its number."""


@dataclass(frozen=True)
class Contender:
    """A candidate that is timed, and the megabytes of its file."""

    candidate: Candidate
    megabytes: float


def time_briefly(
    group: Sequence[Contender], options: SweepOptions, images: Sequence[ImageLike], on_round: OnRound
) -> dict[str, Json]:
    """Return the milliseconds of few queries of SingleStream by candidate, or why it `failed`."""
    return _time_group(group, options, images, QUICK_ROUNDS, {SINGLE: QUICK_QUERIES}, on_round)


def time_fully(
    group: Sequence[Contender], options: SweepOptions, images: Sequence[ImageLike], on_round: OnRound
) -> dict[str, Json]:
    """Return all scenarios by candidate: milliseconds of each query, and Offline's images and seconds.

    Candidates that were timed together have the same `SESSION`.
    """
    found = _time_group(group, options, images, options.rounds, QUERIES, on_round)
    session = uuid4().hex[:12]
    return {name: one if "failed" in one else {**one, SESSION: session} for name, one in found.items()}


def make_groups(contenders: Sequence[Contender]) -> list[list[Contender]]:
    """Return the candidates in groups that fit in memory, in their order."""
    free = None if psutil is None else SHARE * psutil.virtual_memory().available
    groups: list[list[Contender]] = [[]]
    used = 0.0
    for one in contenders:
        needs = MEMORY + MEMORY_PER_BYTE * 1e6 * one.megabytes
        full = len(groups[-1]) >= GROUP if free is None else used + needs > free
        if groups[-1] and full:
            groups.append([])
            used = 0.0
        groups[-1].append(one)
        used += needs
    return [group for group in groups if group]


def _time_group(
    group: Sequence[Contender], options: SweepOptions, images: Sequence[ImageLike], rounds: int,
    queries: Mapping[str, int], on_round: OnRound,
) -> dict[str, Json]:  # fmt: skip
    """Time candidates in turn; one that fails leaves the others alone."""
    results: dict[str, Json] = {one.candidate.name: {} for one in group}
    models: dict[str, TimedModel] = {}
    with ExitStack() as stack:
        for one in group:
            results[one.candidate.name] |= attempt(partial(_open, one.candidate, options, stack, models))
        for turn in range(rounds):
            for name, model in models.items():
                if "failed" not in results[name]:
                    asked = partial(_ask, model, queries, images, results[name], first=turn == 0)
                    results[name] |= attempt(asked)
            on_round(turn + 1)
    return results


def _open(candidate: Candidate, options: SweepOptions, stack: ExitStack, models: dict[str, TimedModel]) -> Json:
    """Open a candidate's file among the `models` until the `stack` is left."""
    model = open_timed_model(options.output / candidate.file.name, run_options(candidate, options))
    stack.callback(model.close)
    models[candidate.name] = model
    return {}


def run_options(candidate: Candidate, options: SweepOptions) -> RunOptions:
    """Return how a candidate is opened to be timed."""
    arguments: dict[str, Any] = run_arguments(candidate, options)
    path = options.output / candidate.file.name
    return Contestant(path, candidate.way.runtime, arguments).apply(RunOptions(where=RuntimeOptions()))


def _ask(
    model: TimedModel, queries: Mapping[str, int], images: Sequence[ImageLike], kept: Json, *, first: bool
) -> Json:
    """Ask a round's queries of each scenario; return them behind those of earlier rounds."""
    found: Json = {}
    for name, count in queries.items():
        calls = max(2, count // batch_of(model)) if name == OFFLINE else count
        result = measure_scenario(name, model, TimingOptions(runs=calls, warmup=None if first else 1), images)
        if name == OFFLINE:
            flow, before = result.throughput, kept.get(name, [])
            found[name] = [*before, [flow.images, round(flow.seconds, 6)]]
        else:
            found[name] = [*kept.get(name, []), *result.milliseconds.round(3).tolist()]
        if name == SINGLE:
            before = kept.get(ROUNDS, [])
            found[ROUNDS] = [*before, *[before[-1] + 1 if before else 0] * len(result.milliseconds)]
    return found


@dataclass(frozen=True)
class Speed:
    """What was measured of a candidate: milliseconds of each query, and images and seconds of Offline's rounds.

    `rounds` has the round of each query of `single`; times of one `session` were taken in turn, round by round.
    """

    single: tuple[float, ...]
    multi: tuple[float, ...] = ()
    offline: tuple[tuple[int, float], ...] = ()
    rounds: tuple[int, ...] = ()
    session: str = ""

    @classmethod
    def of(cls, kept: Json) -> Speed:
        """Return what a sweep's state keeps."""
        flows = tuple((int(images), float(seconds)) for images, seconds in kept.get(OFFLINE, []))
        rounds, session = tuple(kept.get(ROUNDS, [])), str(kept.get(SESSION, ""))
        return cls(tuple(kept[SINGLE]), tuple(kept.get(MULTI, [])), flows, rounds, session)

    @property
    def by_round(self) -> tuple[NDArray[np.float64], ...]:
        """Milliseconds of SingleStream's queries, an array per round."""
        single, rounds = np.array(self.single), np.array(self.rounds, int)
        return tuple(single[rounds == one] for one in np.unique(rounds))

    def is_together(self, other: Speed) -> bool:
        """Tell whether both were timed in turn, so that what the machine did meanwhile fell on both alike."""
        return bool(self.session) and self.session == other.session

    @property
    def median(self) -> float:
        """Milliseconds of half of SingleStream's queries."""
        return float(np.median(self.single))

    @property
    def p90(self) -> float:
        """SingleStream's metric, milliseconds."""
        return float(np.percentile(self.single, SCENARIOS[SINGLE].percentile or 0))

    @property
    def bound(self) -> float | None:
        """What the p90 is at most, with 99 % confidence; None for too few queries."""
        return latency_bound(np.array(self.single), SCENARIOS[SINGLE].percentile or 0)

    @property
    def p99(self) -> float | None:
        """MultiStream's metric, milliseconds; None where it wasn't measured."""
        return float(np.percentile(self.multi, SCENARIOS[MULTI].percentile or 0)) if self.multi else None

    @property
    def images_per_second(self) -> float | None:
        """Offline's metric; None where it wasn't measured."""
        seconds = sum(seconds for _, seconds in self.offline)
        return sum(images for images, _ in self.offline) / seconds if seconds else None
