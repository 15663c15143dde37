"""Labels of points in a plot, placed so that they cover neither each other nor a point, and stay inside the axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
DISTANCES = (6.0, 12.0, 20.0, 30.0, 42.0, 56.0, 72.0)
"""How far from its point a label is tried, in typographic points; nearest first."""
FAR = 10.0
"""A label farther away than this gets a line to its point."""
MARKER = 4.0
"""Half the width of a point's mark, in typographic points."""

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Label:
    """A point in data coordinates and what is written beside it, in this font size."""

    x: float
    y: float
    text: str
    size: float = 9.0


def place_labels(axes: Axes, labels: Sequence[Label]) -> None:
    """Write each label at the first place that is free, or else where it covers least.

    The limits and scales of the axes must be final.
    """
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    unit = axes.figure.dpi / 72
    inside = axes.get_window_extent()
    points = axes.transData.transform([(label.x, label.y) for label in labels])
    taken = [Bbox([point - MARKER * unit, point + MARKER * unit]) for point in points]
    for label, point in zip(labels, points, strict=True):
        extent = _extent(axes, label)
        tries = [(d * np.array(side), side) for d in DISTANCES for side in DIRECTIONS]
        boxes = [_box(point + offset * unit, side, extent) for offset, side in tries]
        costs = [_covered(box, taken) + _outside(box, inside) for box in boxes]
        best = int(np.argmin(costs))  # the first of equals, so the nearest
        taken.append(boxes[best])
        _write(axes, label, *tries[best])


def _extent(axes: Axes, label: Label) -> Vector:
    """Return width and height of the label's text in pixels."""
    text = axes.text(label.x, label.y, label.text, fontsize=label.size)
    box = text.get_window_extent()
    text.remove()
    return np.array([box.width, box.height]) + 2.0


def _box(anchor: Vector, side: tuple[int, int], extent: Vector) -> Bbox:
    """Return where text of this extent lies when it is moved off its anchor to a side: -1, 0 or 1 in x and y."""
    low = anchor + (np.array(side) - 1) / 2 * extent
    return Bbox([low, low + extent])


def _covered(box: Bbox, taken: Sequence[Bbox]) -> float:
    shared = (Bbox.intersection(box, other) for other in taken)
    return sum(one.width * one.height for one in shared if one is not None)


def _outside(box: Bbox, inside: Bbox) -> float:
    """Return the area outside the axes, which is worse than covering something."""
    shared = Bbox.intersection(box, inside)
    return 10.0 * (box.width * box.height - (0.0 if shared is None else shared.width * shared.height))


def _write(axes: Axes, label: Label, offset: Vector, side: tuple[int, int]) -> None:
    line = {"arrowstyle": "-", "linewidth": 0.5, "alpha": 0.5, "shrinkA": 0, "shrinkB": MARKER}
    note = axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=(offset[0], offset[1]),
        textcoords="offset points",
        fontsize=label.size,
        ha={-1: "right", 0: "center", 1: "left"}[side[0]],
        va={-1: "top", 0: "center", 1: "bottom"}[side[1]],
        arrowprops=line if np.abs(offset).max() > FAR else None,
    )
    note.set_in_layout(False)
