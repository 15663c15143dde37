"""A plot of the page: what plotly.js draws, as plain values, and the labels that the page places where they fit.

Colours that begin with "@" are the page's own ("@ink", "@line"), so that a plot follows its light and dark scheme.
plotly.js reads tags and entities in texts: `plain` writes those of names so that they are shown as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

Json = dict[str, Any]
COLORS = ("#3d7ff0", "#cf6b1c", "#2b965c", "#d9534f", "#9265d8", "#2492a5", "#a27a10", "#c85a9c")
"""Have a contrast of 3 at least with the page, light and dark."""
INK, LINE = "@ink", "@line"
MAX_NAME = 30
"""Characters of a name in a plot."""
LOG_FROM = 6.0
"""Positive values that differ by more than this factor get a logarithmic axis."""
ROOM = 0.18
"""Share of an axis' values that is left free on both sides."""
BAR_HEIGHT = 46
"""Pixels for a bar and the name above it."""


@dataclass(frozen=True)
class Label:
    """What is written beside a point of the axes, if there is room; an empty text only keeps others off the point."""

    x: float
    y: float
    text: str = ""


@dataclass(frozen=True)
class Plot:
    """Traces and axes as plotly.js takes them, pixels of height, and what a screen reader says instead.

    `labels` are placed in this order, so the important ones come first; `annotations` and `shapes` are always drawn.
    """

    title: str
    description: str
    traces: Sequence[Json]
    x: Json
    y: Json
    height: int = 360
    labels: Sequence[Label] = ()
    annotations: Sequence[Json] = ()
    shapes: Sequence[Json] = ()
    layout: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> Json:
        """Return it as the page's script takes it."""
        layout = {
            "xaxis": {**_AXIS, **self.x},
            "yaxis": {**_AXIS, **self.y},
            "annotations": list(self.annotations),
            "shapes": list(self.shapes),
            "showlegend": any(trace.get("showlegend", True) and trace.get("name") for trace in self.traces),
            **self.layout,
        }
        labels = [[label.x, label.y, plain(short(label.text))] for label in self.labels]
        return {"traces": list(self.traces), "layout": layout, "height": self.height, "labels": labels}


_AXIS = {"automargin": True, "tickangle": 0, "linecolor": INK, "gridcolor": LINE, "zerolinecolor": LINE}


def axis(title: str, **settings: Any) -> Json:
    """Return an axis with this title."""
    return {"title": {"text": title}, **settings}


def value_axis(title: str, values: Iterable[float]) -> Json:
    """Return an axis for positive values, with room around them: logarithmic where they differ by much."""
    found = [value for value in values if value > 0]
    low, high = min(found, default=1.0), max(found, default=1.0)
    if high <= LOG_FROM * low:
        return axis(title, range=_padded(low, high, 0.1 * high))
    marks = [digit * 10.0**power for power in range(-6, 9) for digit in (1, 2, 5)]
    marks = [mark for mark in marks if low / 1.6 <= mark <= high * 1.6]
    told, ends = [f"{mark:g}" for mark in marks], _padded(math.log10(low), math.log10(high), 0.0)
    return axis(f"{title} (log)", type="log", tickmode="array", tickvals=marks, ticktext=told, range=ends)


def _padded(low: float, high: float, least: float) -> list[float]:
    """Return a range with room for labels at its ends."""
    room = max(ROOM * (high - low), least)
    return [low - room, high + room]


def plain(text: str) -> str:
    """Return text that plotly.js shows as it is, in one line."""
    return escape(" ".join(text.split()), quote=False)


def short(name: str, characters: int = MAX_NAME) -> str:
    """Return a name in one line without its middle, where it is too long for a plot; the tables have all of it."""
    name = " ".join(name.split())
    if len(name) <= characters:
        return name
    return f"{name[: characters // 2]}...{name[-characters // 2 + 3 :]}"


def model_name(name: str) -> str:
    """Return a model's name in a plot."""
    return short(name.removesuffix(".onnx"))


def hover(title: str, facts: Mapping[str, object]) -> str:
    """Return what is shown at a point: its name and a line for each fact that is known."""
    lines = [f"<b>{plain(title)}</b>"]
    return "<br>".join(lines + [f"{plain(key)}: {plain(str(value))}" for key, value in facts.items() if value != "-"])


def points(x: Sequence[float], y: Sequence[float], texts: Sequence[str], **settings: Any) -> Json:
    """Return a trace of points, or of what `mode` says, with these hover texts."""
    told = {"hovertext": list(texts), "hoverinfo": "text"}
    return {"type": "scatter", "mode": "markers", "x": list(x), "y": list(y), **told, **settings}


def bars(places: Sequence[float], values: Sequence[float], texts: Sequence[str], **settings: Any) -> Json:
    """Return a trace of horizontal bars at these places with these hover texts."""
    told = {"hovertext": list(texts), "hoverinfo": "text", "width": [0.42] * len(places)}
    return {"type": "bar", "orientation": "h", "x": list(values), "y": list(places), **told, **settings}


def bar_titles(places: Sequence[float], titles: Sequence[str]) -> list[Json]:
    """Return titles above bars, which leave the whole width to the bars, on a phone too."""
    look = {"xanchor": "left", "yanchor": "bottom", "showarrow": False, "borderpad": 0, "align": "left"}
    return [
        {"x": 0, "xref": "paper", "y": place - 0.23, "text": plain(title), **look}
        for place, title in zip(places, titles, strict=True)
    ]  # fmt: skip


def bar_marks(
    places: Sequence[float], values: Sequence[float], texts: Sequence[str], name: str, dash: str = "solid"
) -> Json:
    """Return a trace of upright lines across bars, each at its value."""
    x = [end for value in values for end in (value, value, None)]
    y = [end for place in places for end in (place - 0.21, place + 0.27, None)]
    told = {"hovertext": [text for one in texts for text in (one, one, "")], "hoverinfo": "text"}
    line = {"color": INK, "width": 2, "dash": dash}
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "name": name,
        "line": line,
        "connectgaps": False,
        **told,
    }


def bar_axis(places: Sequence[float]) -> Json:
    """Return the axis of bars below each other, whose names are `bar_titles`."""
    hidden = dict.fromkeys(("showticklabels", "showgrid", "zeroline"), False)
    return {"range": [places[-1] + 0.45, places[0] - 0.75], **hidden}


def bar_chart_height(places: Sequence[float]) -> int:
    """Return the pixels of height for bars at these places, an axis and a legend."""
    return round(110 + BAR_HEIGHT * (places[-1] - places[0] + 1.2))
