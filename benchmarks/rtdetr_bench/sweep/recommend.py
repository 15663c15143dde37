"""What to deploy, in words: one candidate, why that one, and how sure the figures are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rtdetr_bench.ratios import Ratio, compare_medians
from rtdetr_bench.sweep.options import WITHIN, LimitOptions
from rtdetr_bench.sweep.rows import Row
from rtdetr_bench.sweep.speed import Speed

AP_STEP = 5e-5
"""APs that agree when they are printed."""


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
    the fastest that has it. Of candidates whose times the measurement can't tell apart, the most accurate.
    """
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
    equal = [one for one in enough if one is fastest or not ratio(one, fastest).differs]
    chosen = max(equal, key=lambda one: (one.ap, -one.speed.p90))
    text = f"{chosen.row.name} is the fastest {told}: {_facts(chosen)}."
    others = [one for one in equal if one is not chosen]
    if others:
        names = ", ".join(f"{one.row.name} ({ratio(one, chosen)})" for one in others[:3])
        text += f" As fast within the noise of this measurement: {names}; of these it is the most accurate."
    if chosen is not best:
        text += (
            f" The most accurate, {best.row.name}, has AP {best.ap:.4f} and takes {ratio(best, chosen)} times as long."
        )
    return Recommendation(chosen.row, text)


def _above(known: Sequence[Measured], chosen: Measured, more: Callable[[Measured], bool]) -> str:
    """Return what more time would buy; empty where nothing is more accurate."""
    better = [one for one in known if more(one)]
    if not better:
        return ""
    next_one = min(better, key=lambda one: one.speed.p90)
    return (
        f" The next more accurate, {next_one.row.name}, has AP {next_one.ap:.4f} and takes {ratio(next_one, chosen)} "
        "times as long."
    )


def ratio(one: Measured, base: Measured) -> Ratio:
    """Return how many times as long `one` takes as `base`, by the medians of SingleStream, with 95 % confidence."""
    count = min(len(one.speed.single), len(base.speed.single))
    return compare_medians(np.array(one.speed.single[:count]), np.array(base.speed.single[:count]))


def _facts(one: Measured) -> str:
    row = one.row
    kept = (
        ""
        if row.match_rate is None
        else f", {100 * row.match_rate:.1f} % of the whole model's detections found within 2 px"
    )
    return f"p90 {one.speed.p90:.1f} ms, AP {one.ap:.4f}{kept}"
