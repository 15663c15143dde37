"""What NMS costs: boxes left, time and AP by thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable

from rtdetr_bench.report.html import paragraph, plots, section, table
from rtdetr_bench.report.plot import COLORS, INK, Json, Plot, axis, hover, plain, points, short
from rtdetr_bench.report.sections.latency import number
from rtdetr_deploy.evaluate.published import NMS
from rtdetr_deploy.words import plural

BOXES_MARKS = (0, 1, 10, 100, 1000, 10_000)


def nms_section(study: Json) -> str:
    """Return what `rtdetr-bench nms` measured."""
    methods = list(study["rows"][0]["milliseconds"])
    rows = [
        [
            f"{row['threshold']:g}", f"{row['iou']:g}", *(f"{row['milliseconds'][method]:.3f}" for method in methods),
            f"{row['slowest']:.3f}", f"{row['kept']:.0f}", number(row["ap"], 4),
            *_published(row["threshold"], row["iou"]),
        ]
        for row in study["rows"]
    ]  # fmt: skip
    flat = [
        [threshold, f"{row['decode_ms']:.3f}", number(row["AP"], 4)]
        for threshold, row in study["rtdetr_by_threshold"].items()
    ]
    parts = [
        paragraph(
            f"{study['model']} on {plural(study['images'], 'image')}, the minimum of "
            f"{plural(study['rounds'], 'round')} for each. A threshold decides how many boxes have to be "
            "suppressed, so it trades time for AP; without NMS there is nothing to trade."
        ),
        plots(plot_boxes_left(study), plot_time(study, methods[0]), *plot_ap(study)),
        paragraph(
            f"Milliseconds per image with each implementation of NMS ({' and '.join(methods)}), averaged over the "
            f"images; those of the slowest image with {methods[0]}; boxes kept per image; AP. The last two columns are "
            "published: YOLOv8-L's NMS kernel on a T4, COCO."
        ),
        table(("threshold", "IoU", *methods, "slowest", "kept", "AP", "published AP", "published ms"), rows),
    ]
    if flat:
        told = paragraph(f"{study['rtdetr']}, which needs no NMS, at the same thresholds:")
        parts += [told, table(("threshold", "decode, ms", "AP"), flat)]
    return section(f"What NMS costs: {study['model']}", *parts)


def _published(threshold: float, iou: float) -> tuple[str, str]:
    ap, milliseconds = NMS.get((threshold, iou), (None, 0.0))
    return ("", "") if ap is None else (f"{ap:.1f}", f"{milliseconds:.2f}")


def plot_boxes_left(study: Json) -> Plot:
    """Return how many boxes are left per image by score threshold."""
    thresholds = [float(threshold) for threshold in study["boxes_left"]]
    counts = list(study["boxes_left"].values())
    texts = [
        hover(study["model"], {"threshold": f"{t:g}", "boxes left per image": f"{count:.1f}"})
        for t, count in zip(thresholds, counts, strict=True)
    ]
    heights = [_compressed(count) for count in counts]
    line = points(thresholds, heights, texts, mode="lines+markers", marker={"color": COLORS[1], "size": 8})
    marks = [mark for mark in BOXES_MARKS if mark <= 10 * max(counts, default=1)]
    ticks = {
        "tickmode": "array",
        "tickvals": [_compressed(mark) for mark in marks],
        "ticktext": [f"{m:,}" for m in marks],
    }
    return Plot(
        "Boxes left by score threshold",
        "A falling line: boxes left per image by score threshold.",
        [line],
        axis("score threshold"),
        axis("boxes per image (logarithm of 1 + n)", rangemode="tozero", **ticks),
        300,
    )


def _compressed(count: float) -> float:
    return math.log10(1 + count)


def plot_time(study: Json, method: str) -> Plot:
    """Return NMS time by score threshold, a line per IoU threshold, and RT-DETR's, which is nothing."""
    traces = _lines(study, lambda row: row["milliseconds"][method], "ms")
    flat = {float(threshold): 0.0 for threshold in study["rtdetr_by_threshold"]}
    title, told = "NMS, milliseconds per image", "Lines of NMS time by score threshold, one for each IoU threshold."
    return Plot(title, told, traces + _flat(study, flat, "ms"), _thresholds(study), axis("milliseconds"), 300)


def plot_ap(study: Json) -> list[Plot]:
    """Return AP by score threshold, likewise; nothing where it was not measured."""
    if not any(row["ap"] is not None for row in study["rows"]):
        return []
    traces = _lines(study, lambda row: row["ap"], "AP")
    flat = {float(threshold): row["AP"] for threshold, row in study["rtdetr_by_threshold"].items()}
    told = "Lines of AP by score threshold, one for each IoU threshold."
    return [Plot("AP", told, traces + _flat(study, flat, "AP"), _thresholds(study), axis("AP"), 300)]


def _positions(study: Json) -> dict[float, int]:
    return {c: i for i, c in enumerate(dict.fromkeys(row["threshold"] for row in study["rows"]))}


def _thresholds(study: Json) -> Json:
    """Return the axis of thresholds, which stand at equal distances."""
    positions = _positions(study)
    told = [f"{threshold:g}" for threshold in positions]
    return axis("score threshold", tickmode="array", tickvals=list(positions.values()), ticktext=told)


def _lines(study: Json, value: Callable[[Json], float], name: str) -> list[Json]:
    positions, traces = _positions(study), []
    for index, iou in enumerate(dict.fromkeys(row["iou"] for row in study["rows"])):
        rows = [row for row in study["rows"] if row["iou"] == iou]
        texts = [
            hover(study["model"], {"threshold": f"{row['threshold']:g}", "IoU": f"{iou:g}", name: f"{value(row):.4f}"})
            for row in rows
        ]
        x, y = [positions[row["threshold"]] for row in rows], [value(row) for row in rows]
        look = {"marker": {"color": COLORS[(1 + index) % len(COLORS)], "size": 8}, "mode": "lines+markers"}
        traces.append(points(x, y, texts, name=f"NMS, IoU {iou:g}", **look))
    return traces


def _flat(study: Json, values: dict[float, float], name: str) -> list[Json]:
    """Return the line of the model without NMS; nothing where there was none."""
    if not values:
        return []
    positions = _positions(study)
    x, y = [positions[threshold] for threshold in values], list(values.values())
    texts = [hover(study["rtdetr"], {"threshold": f"{t:g}", name: f"{v:.4f}"}) for t, v in values.items()]
    title = f"no NMS: {plain(short(study['rtdetr']))}"
    return [points(x, y, texts, name=title, mode="lines", line={"color": INK, "width": 2.5})]
