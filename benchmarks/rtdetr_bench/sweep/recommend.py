"""What to deploy, in words: one candidate, why that one, and how sure the figures are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rtdetr_bench.ratios import DRAWS, LEVEL, Ratio
from rtdetr_bench.sweep.front import CLEARLY
from rtdetr_bench.sweep.options import WITHIN, LimitOptions
from rtdetr_bench.sweep.rows import Row
from rtdetr_bench.sweep.speed import Speed

AP_STEP = 5e-5
"""APs that agree when they are printed."""
APART = "not timed together with it, so that the machine may explain the difference"
MIN_ROUNDS = 3
"""Rounds from which an interval is told: drawing one of one, or of two, tells nothing of noise."""


@dataclass(frozen=True)
class Recommendation:
    """The row to deploy (None: nothing keeps to the limits), and the `text` that says why."""

    row: Row | None
    text: str


@dataclass(frozen=True)
class Measured:
    """A row whose AP and speed are known."""

    row: Row
    ap: float
    speed: Speed


def recommend(rows: Sequence[Row], limits: LimitOptions) -> Recommendation:
    """Return what the `limits` ask for.

    By default that is the fastest within some AP of the best, with `budget` the most accurate within it, with `min_ap`
    the fastest that has it. Of candidates that were timed together and whose times the measurement can't tell apart,
    the most accurate.
    """
    found = _choose(rows, limits)
    return replace(found, text=found.text + _faster_briefly(found.row, rows))


def _choose(rows: Sequence[Row], limits: LimitOptions) -> Recommendation:
    known = [Measured(row, row.ap, row.speed) for row in rows if row.point and row.ap is not None and row.speed]
    if not known:
        return Recommendation(None, "Nothing was measured at length; the reasons are listed above.")
    best = max(known, key=lambda one: (one.ap, -one.speed.p90))
    if limits.budget is not None:
        return _within_budget(known, limits.budget)
    if limits.min_ap is not None:
        return _fastest(known, best, limits.min_ap, f"of at least AP {limits.min_ap:g}")
    within = WITHIN if limits.within is None else limits.within
    return _fastest(known, best, best.ap - within, f"within {within:g} AP of the best")


def _within_budget(known: Sequence[Measured], budget: float) -> Recommendation:
    fits = [one for one in known if one.speed.p90 <= budget]
    if not fits:
        fastest = min(known, key=lambda one: one.speed.p90)
        return Recommendation(
            None, f"Nothing answers within {budget:g} ms: the fastest is {fastest.row.name}, {_facts(fastest)}."
        )
    top = max(one.ap for one in fits)
    chosen = min((one for one in fits if one.ap >= top - AP_STEP), key=lambda one: one.speed.p90)
    text = f"{chosen.row.name} is the most accurate within {budget:g} ms: {_facts(chosen)}."
    bound = chosen.speed.bound
    if bound is not None and bound > budget:
        text += f" That is close: with 99 % confidence its p90 is at most {bound:.1f} ms."
    return Recommendation(chosen.row, text + _above(known, chosen, lambda one: one.ap > top))


def _fastest(known: Sequence[Measured], best: Measured, limit: float, told: str) -> Recommendation:
    """Return the fastest of at least the AP `limit`."""
    enough = [one for one in known if one.ap >= limit - 1e-9]
    if not enough:
        return Recommendation(None, f"Nothing is {told}: the best is {best.row.name}, {_facts(best)}.")
    fastest = min(enough, key=lambda one: one.speed.p90)
    near = [one for one in enough if one is fastest or is_as_fast(one, fastest)]
    equal = [one for one in near if one is fastest or one.speed.is_together(fastest.speed)]
    top = max(one.ap for one in equal)
    chosen = min((one for one in equal if one.ap >= top - AP_STEP), key=lambda one: one.speed.p90)
    text = f"{chosen.row.name} is the fastest {told}: {_facts(chosen)}."
    others = [one for one in equal if one is not chosen]
    if others:
        names = ", ".join(f"{one.row.name} ({_ratio_text(one, chosen)})" for one in others[:3])
        text += f" As fast within the noise of this measurement: {names}; of these it is the most accurate."
    apart = [one for one in near if one not in equal]
    if apart:
        names = ", ".join(f"{one.row.name} (AP {one.ap:.4f})" for one in apart[:3])
        text += f" About as fast, but {APART}: {names}."
    if chosen is not best:
        text += f" The most accurate, {best.row.name}, has AP {best.ap:.4f} and takes {_times_as_long(best, chosen)}."
    return Recommendation(chosen.row, text)


def _above(known: Sequence[Measured], chosen: Measured, more: Callable[[Measured], bool]) -> str:
    """Return what more time would buy; empty where nothing is more accurate."""
    better = [one for one in known if more(one)]
    if not better:
        return ""
    next_one = min(better, key=lambda one: one.speed.p90)
    return (
        f" The next more accurate, {next_one.row.name}, has AP {next_one.ap:.4f} and takes "
        f"{_times_as_long(next_one, chosen)}."
    )


def ratio(one: Measured, base: Measured, seed: int = 0) -> Ratio | None:
    """Return how many times as long `one` takes as `base`, by the medians of SingleStream, with 95 % confidence.

    Whole rounds are drawn: the queries of one share what the machine did then. Of two that were timed together the same
    rounds are. None where there are too few.
    """
    times, others = one.speed.by_round, base.speed.by_round
    if min(len(times), len(others)) < MIN_ROUNDS:
        return None
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(times), (DRAWS, len(times)))
    paired = one.speed.is_together(base.speed) and len(times) == len(others)
    other_draws = draws if paired else generator.integers(0, len(others), (DRAWS, len(others)))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(_medians(times, draws) / _medians(others, other_draws), [tail, 100 - tail])
    return Ratio(one.speed.median / base.speed.median, float(low), float(high))


def _medians(rounds: Sequence[NDArray[np.float64]], draws: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the median of the queries of each draw of rounds."""
    return np.array([np.median(np.concatenate([rounds[index] for index in draw])) for draw in draws])


def is_as_fast(one: Measured, base: Measured) -> bool:
    """Tell whether the measurement can't tell that `one` is slower; what takes much longer never is as fast."""
    found = ratio(one, base)
    value = one.speed.median / base.speed.median
    if CLEARLY * value >= 1.0 or CLEARLY * one.speed.p90 >= base.speed.p90:
        return False
    return found is None or not found.differs or not one.speed.is_together(base.speed)


def _ratio_text(one: Measured, base: Measured) -> str:
    found = ratio(one, base)
    return (
        f"{one.speed.median / base.speed.median:.3f}, too few rounds for an interval" if found is None else str(found)
    )


def _times_as_long(one: Measured, base: Measured) -> str:
    together = one is base or one.speed.is_together(base.speed)
    return f"{_ratio_text(one, base)} times as long" + ("" if together else f" ({APART})")


def _faster_briefly(chosen: Row | None, rows: Sequence[Row]) -> str:
    """Return what was faster in a brief measurement alone and is as accurate; empty where nothing was."""
    if chosen is None or chosen.ap is None or chosen.speed is None:
        return ""
    limit, median = chosen.ap - AP_STEP, chosen.speed.median
    found = [
        row for row in rows
        if row.speed is None and not row.failed and row.brief is not None and row.brief < median
        and row.ap is not None and row.ap >= limit
    ]  # fmt: skip
    if not found:
        return ""
    names = ", ".join(f"{row.name} (about {row.brief:.1f} ms)" for row in found[:3])
    return f" Not timed at length, but faster when timed briefly: {names}; `time_all=True` times them, too."


def _facts(one: Measured) -> str:
    row = one.row
    kept = (
        ""
        if row.match_rate is None
        else f", {100 * row.match_rate:.1f} % of the whole model's detections found within 2 px"
    )
    return f"p90 {one.speed.p90:.1f} ms, AP {one.ap:.4f}{kept}"
