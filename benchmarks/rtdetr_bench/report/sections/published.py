"""Published figures, in panels of their own: they are of another machine and another data set than what is measured."""

from __future__ import annotations

from rtdetr_bench.report.html import paragraph, plots, section
from rtdetr_bench.report.plot import COLORS, Label, Plot, axis, hover, points, value_axis
from rtdetr_deploy.evaluate.published import POINTS, SOURCE


def published_section() -> str:
    """Return the published points, with axes of their own."""
    told = f"{SOURCE[0].upper()}{SOURCE[1:]}. Nothing here was measured on this page's machines and data."
    return section("Published: AP against latency", paragraph(told), plots(plot_published()))


def plot_published() -> Plot:
    """Return AP against latency of every published point, hollow."""
    traces = []
    for index, family in enumerate(dict.fromkeys(point.family for point in POINTS)):
        chosen = [point for point in POINTS if point.family == family]
        texts = [
            hover(
                one.name, {"family": family, "AP, percent": one.ap, "images/s": one.fps, "ms": f"{1000 / one.fps:.2f}"}
            )
            for one in chosen
        ]
        mark = {"color": COLORS[index], "size": 9, "symbol": "circle-open", "line": {"width": 2}}
        x, y = [1000 / one.fps for one in chosen], [one.ap for one in chosen]
        traces.append(points(x, y, texts, name=family, marker=mark))
    return Plot(
        "Published: T4, TensorRT FP16, COCO val2017",
        "Points of AP against milliseconds of RT-DETR, RT-DETRv2 and YOLO detectors, as published.",
        traces,
        value_axis("milliseconds per image", (1000 / one.fps for one in POINTS)),
        axis("AP, percent"),
        460,
        labels=[Label(1000 / one.fps, one.ap, one.name) for one in POINTS],
    )
