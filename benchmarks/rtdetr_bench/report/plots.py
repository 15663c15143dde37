"""The plots of the report, as SVG text that follows the page's colours.

Text and axes are drawn in a colour that stands for the page's own; series keep theirs, which are legible on light and
on dark. Published figures are hollow or dashed everywhere, measured ones solid. Plots are 8 inches wide, or made for
the width of a phone, and have no text below 9 points, which stays legible at the minimum width that the page gives it.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rtdetr_bench.models.timed_model import SPANS
from rtdetr_bench.report.labels import Label, place_labels
from rtdetr_bench.roofline.tables import group_parts
from rtdetr_deploy.evaluate.published import ENCODERS, POINTS, published_decoder
from rtdetr_deploy.words import plural

INK = "#010203"
"""Stands for the colour of the page's text."""
COLORS = ("#3d7ff0", "#e07b28", "#2f9e62", "#d9534f", "#9265d8", "#2797aa", "#b58b1b", "#c85a9c")
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "rtdetr-bench", "font.family": "sans-serif", "font.size": 10,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "axes.titlecolor": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.grid": True, "grid.color": INK, "grid.alpha": 0.15,
    "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "legend.labelcolor": INK,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "text.parse_math": False,  # names of files may hold any character
}  # fmt: skip
SMALL = 9
"""The minimum font size."""
MAX_NAME = 30
"""Characters of a model's name in a plot."""
Json = dict[str, Any]


def plot_spans(models: Sequence[Json]) -> str:
    """Draw the median of every span of each model, stacked, and the whole call's number; `models` as in the JSON."""
    with _style():
        figure, axes = _figure(1.2 + 0.36 * len(models))
        places, left = np.arange(len(models)), np.zeros(len(models))
        for index, span in enumerate(SPANS):
            values = np.array([model["milliseconds"].get(span, {}).get("p50", 0.0) for model in models])
            if values.any():
                axes.barh(places, values, left=left, color=COLORS[index], label=span, height=0.62)
                left += values
        for place, end, model in zip(places, left, models, strict=True):
            whole = f"{model['milliseconds']['whole call']['p50']:.1f}"
            axes.annotate(whole, (end, place), xytext=(4, 0), textcoords="offset points", va="center")
        axes.set_yticks(places, [_title(model) for model in models])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, left.max() * 1.12)
        axes.set_xlabel("milliseconds per call (median)")
        figure.legend(loc="outside lower center", ncols=len(SPANS))
        return _to_svg(figure)


def plot_accuracy(models: Sequence[Json]) -> str:
    """Draw AP against latency: what was measured, and the published points, which are another machine and data set."""
    with _style():
        figure, axes = _figure(5.8)
        labels = []
        measured = [model for model in models if model.get("AP") is not None]
        if measured:
            times = [model["milliseconds"]["paper's span"]["p50"] / model["batch"] for model in measured]
            precisions = [100 * model["AP"] for model in measured]
            axes.scatter(times, precisions, color=COLORS[3], marker="D", label="measured here, own annotations")
            labels += [Label(*row) for row in zip(times, precisions, map(_title, measured), strict=True)]
        for index, family in enumerate(dict.fromkeys(point.family for point in POINTS)):
            points = [point for point in POINTS if point.family == family]
            times, precisions = [1000 / point.fps for point in points], [point.ap for point in points]
            label = f"{family} (published, T4, COCO)"
            axes.scatter(times, precisions, facecolors="none", edgecolors=COLORS[index], label=label)
            labels += [Label(1000 / point.fps, point.ap, point.name) for point in points]
        axes.set_xscale("log")
        axes.margins(0.14, 0.06)
        low, high = axes.get_xlim()
        marks = [mark for mark in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if low <= mark <= high]
        axes.set_xticks(marks, [str(mark) for mark in marks])
        axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        axes.set_xlabel("milliseconds per image, the paper's span (logarithmic)")
        axes.set_ylabel("AP, percent")
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
        figure.legend(loc="outside lower center", ncols=2)
        place_labels(axes, labels)
        return _to_svg(figure)


def plot_boxes_left(study: Json) -> str:
    """Draw how many boxes are left per image by score threshold."""
    with _style():
        figure, axes = _figure(3.2)
        thresholds = [float(threshold) for threshold in study["boxes_left"]]
        counts = list(study["boxes_left"].values())
        axes.plot(thresholds, counts, color=COLORS[1], marker="o")
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(0, 2 * max(counts, default=0) + 1)
        axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axes.set_xlabel("score threshold")
        axes.set_ylabel("boxes left per image")
        axes.set_title(f"{_short(study['model'])}, logarithmic above 1", fontsize=10)
        return _to_svg(figure)


def plot_nms(study: Json, method: str) -> str:
    """Draw NMS time and AP by score threshold, a line per IoU threshold, and RT-DETR's."""
    with _style():
        has_ap = any(row["ap"] is not None for row in study["rows"])
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        panels: list[Axes] = [figure.add_subplot(1, 1 + has_ap, 1 + index) for index in range(1 + has_ap)]
        positions = {c: i for i, c in enumerate(dict.fromkeys(row["threshold"] for row in study["rows"]))}
        for index, iou in enumerate(dict.fromkeys(row["iou"] for row in study["rows"])):
            rows = [row for row in study["rows"] if row["iou"] == iou]
            places = [positions[row["threshold"]] for row in rows]
            label = f"NMS, IoU {iou:g}"
            times = [row["milliseconds"][method] for row in rows]
            panels[0].plot(places, times, color=COLORS[1 + index], marker="o", label=label)
            if has_ap:
                panels[1].plot(places, [100 * row["ap"] for row in rows], color=COLORS[1 + index], marker="o")
        flat = study["rtdetr_by_threshold"]
        if flat:
            places = [positions[float(threshold)] for threshold in flat]
            panels[0].plot(
                places, [0.0] * len(places), color=COLORS[0], linewidth=2.5, label=f"no NMS: {_short(study['rtdetr'])}"
            )
            if has_ap:
                panels[1].plot(places, [100 * row["AP"] for row in flat.values()], color=COLORS[0], linewidth=2.5)
        for panel, title in zip(panels, ("NMS, milliseconds per image", "AP, percent"), strict=False):
            panel.set_xticks(list(positions.values()), [f"{threshold:g}" for threshold in positions])
            panel.set_xlabel("score threshold")
            panel.set_title(title, fontsize=10)
        figure.legend(loc="outside lower center", ncols=3)
        return _to_svg(figure)


def plot_decoder(rows: Sequence[Json]) -> str:
    """Draw time and AP relative to all layers, by layers run; dashed the paper's R50, likewise."""
    with _style():
        layers = [int(row["name"].split()[0]) for row in rows]
        has_ap = all(row["AP"] is not None for row in rows)
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        panels: list[Axes] = [figure.add_subplot(1, 1 + has_ap, 1 + index) for index in range(1 + has_ap)]
        ratios = np.array([row["ratio"] for row in rows])
        errors = np.abs(ratios[:, 1:] - ratios[:, :1]).T
        panels[0].errorbar(
            layers, ratios[:, 0], yerr=errors, color=COLORS[0], marker="o", capsize=3, label="measured here"
        )
        panels[0].set_title("time, relative to all layers", fontsize=10)
        if has_ap:
            panels[1].plot(layers, [100 * (row["AP"] - rows[0]["AP"]) for row in rows], color=COLORS[0], marker="o")
            panels[1].set_title("AP, change in percentage points", fontsize=10)
        published = published_decoder(layers[0])
        if published:
            dashed: Any = {"color": COLORS[1], "linestyle": "--", "marker": "o", "mfc": "none"}
            label = f"published: R50 on a T4, to its own {plural(layers[0], 'layer')}"
            panels[0].plot(list(published), [row.ratio for row in published.values()], label=label, **dashed)
            if has_ap:
                panels[1].plot(list(published), [row.change for row in published.values()], **dashed)
        for panel in panels:
            panel.set_xlabel("decoder layers run")
            panel.set_xticks(layers)
        figure.legend(loc="outside lower center", ncols=2)
        return _to_svg(figure)


def plot_encoders(rows: Sequence[Json]) -> str:
    """Draw each encoder's whole model time relative to the last one's, beside the paper's."""
    with _style():
        figure, axes = _figure(3.6)
        places = np.arange(len(rows))
        last = ENCODERS[rows[-1]["name"]][2]
        published = [ENCODERS[row["name"]][2] / last for row in rows]
        bars = axes.bar(places - 0.2, [row["ratio"][0] for row in rows], 0.38, color=COLORS[0], label="measured here")
        axes.bar_label(bars, fmt="%.2f", fontsize=SMALL)
        hollow = axes.bar(
            places + 0.2, published, 0.38, facecolor="none", edgecolor=COLORS[1], label="published, R50 on a T4"
        )
        axes.bar_label(hollow, fmt="%.2f", fontsize=SMALL)
        axes.margins(y=0.1)
        axes.set_xticks(places, [row["name"] for row in rows])
        axes.set_ylabel(f"time relative to {rows[-1]['name']}")
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside lower center", ncols=2)
        return _to_svg(figure)


def plot_roofline(models: Sequence[Json]) -> str:
    """Draw the estimated milliseconds of each model's parts, stacked, beside its lower bound and its time in FP16.

    It is as wide as a phone, so names stand above their bars; a gap parts models of different FLOPs.
    """
    with _style():
        figure = Figure(figsize=(4.6, 1.7 + 0.52 * len(models)), layout="constrained")
        axes, left = figure.add_subplot(), np.zeros(len(models))
        places = np.array(bar_places([model["gflops"] for model in models]))
        for index, (name, values) in enumerate(group_parts(models).items()):
            axes.barh(places, values, left=left, color=COLORS[index], label=name, height=0.46)
            left += values
        for place, model in zip(places, models, strict=True):
            title = f"{_short(str(model['name']).removesuffix('.onnx'))}: {model['milliseconds']:.2f}"
            axes.annotate(
                title, (0, place - 0.27), xytext=(1, 0), textcoords="offset points", va="bottom", fontsize=SMALL
            )
            for value, style in ((model["bound"], ":"), (model["in_fp16"], "-")):
                axes.plot([value, value], [place - 0.27, place + 0.27], color=INK, linestyle=style, linewidth=1.8)
        axes.plot([], [], color=INK, linestyle=":", linewidth=1.8, label="lower bound")
        axes.plot([], [], color=INK, linewidth=1.8, label="the same graph in FP16")
        axes.set_yticks([])
        axes.set_ylim(places[-1] + 0.45, -0.75)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, max(left.max(), *(model["in_fp16"] for model in models), 0.0) * 1.04)
        axes.set_xlabel("milliseconds per call, estimated")
        figure.legend(loc="outside lower center", ncols=2, fontsize=SMALL)
        return _to_svg(figure)


def bar_places(flops: Sequence[float]) -> list[float]:
    """Return where bars stand: one below the other, with a gap where FLOPs differ by more than a tenth."""
    places = [0.0]
    for before, now in pairwise(flops):
        places.append(places[-1] + (1.0 if abs(now - before) <= 0.1 * max(now, before) else 1.6))
    return places


@contextmanager
def _style() -> Iterator[None]:
    """Draw in the page's style; glyphs that matplotlib's font lacks are not warned of, for the browser has them."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, height), layout="constrained")
    return figure, figure.add_subplot()


def _title(model: Json) -> str:
    name = _short(str(model["name"]).removesuffix(".onnx"))
    return name if model["batch"] == 1 else f"{name}, batch {model['batch']}"


def _short(name: str) -> str:
    """Return a name in one line without its middle, where it is too long for a plot; the tables have all of it."""
    name = " ".join(name.split())
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME // 2]}...{name[-MAX_NAME // 2 + 3 :]}"


def _to_svg(figure: Figure) -> str:
    """Return the figure as an SVG element whose ink is the page's."""
    target = io.StringIO()
    figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    text = target.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|(<svg[^>]*?) height="[^"]*"', r"\1\2", text, count=1)
    return text.replace(INK, "currentColor")
