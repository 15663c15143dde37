"""The Pareto front: what nothing else beats in accuracy and speed at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

CLEARLY = 0.8
"""Share of a candidate's time that another one takes which beats it clearly: noise of a few queries stays below."""

Point = tuple[float, float]
"""(cost, AP): less of the first and more of the second are better."""


def is_beaten(point: Point, others: Sequence[Point], factor: float = 1.0) -> bool:
    """Tell whether one of the `others` is at least as good in both and better in one.

    With a `factor` below 1 it must take less than that share of the cost, too.
    """
    cost, ap = point
    return any(
        other_cost <= factor * cost and other_ap >= ap and (other_cost < cost or other_ap > ap)
        for other_cost, other_ap in others
    )


def find_front(points: Mapping[str, Point]) -> frozenset[str]:
    """Return the names of the points that no other beats; equal points are all on the front."""
    best, front = float("-inf"), set()
    ordered = sorted(points.items(), key=lambda item: (item[1][0], -item[1][1]))
    for name, point in ordered:
        if point[1] > best:
            best, corner = point[1], point
            front.add(name)
        elif point == corner:
            front.add(name)
    return frozenset(front)


def beats_clearly(name: str, points: Mapping[str, Point]) -> str | None:
    """Return the name of what beats `name` by a margin that noise doesn't explain, the fastest such; None: nothing."""
    beating = [other for other, point in points.items() if other != name and is_beaten(points[name], [point], CLEARLY)]
    return min(beating, key=lambda other: points[other][0], default=None)
