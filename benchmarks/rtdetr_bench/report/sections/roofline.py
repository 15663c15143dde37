"""The report's section on the cost model: estimates, and called so."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rtdetr_bench.report.html import paragraph, plots, section, table
from rtdetr_bench.report.plot import (
    COLORS,
    Json,
    Plot,
    axis,
    bar_axis,
    bar_chart_height,
    bar_marks,
    bar_titles,
    bars,
    hover,
    model_name,
)
from rtdetr_bench.roofline.tables import Table, group_parts, head_of, tables_of
from rtdetr_deploy.words import plural


def roofline_section(study: Json) -> str:
    """Return what `rtdetr-bench roofline` found, as a part of the page: the tables that the command prints."""
    return section(
        f"Estimated cost on {study['gpu']['name']}",
        "<p><b>Not a measurement.</b></p>" + paragraph(head_of(study)),
        plots(plot_roofline(study["models"])),
        *map(_shown, tables_of(study)),
    )


def _shown(content: Table) -> str:
    rows = table(content.head, content.rows, content.title) if content.rows else ""
    return paragraph(content.title) + rows + "".join(map(paragraph, content.notes))


def plot_roofline(models: Sequence[Json]) -> Plot:
    """Return the estimated milliseconds of each model's parts, stacked, its lower bound and its time in FP16.

    A gap parts models of different FLOPs.
    """
    places = bar_places([model["gflops"] for model in models])
    traces = []
    for index, (name, values) in enumerate(group_parts(models).items()):
        texts = [
            hover(str(model["name"]), {f"{name}, ms": f"{value:.3f}", "all, ms": f"{model['milliseconds']:.3f}"})
            for model, value in zip(models, values, strict=True)
        ]
        traces.append(bars(places, values, texts, name=name, marker={"color": COLORS[index]}))
    traces += [_marks(models, places, "bound", "lower bound", "dot"), _marks(models, places, "in_fp16", FP16, "solid")]
    titles = [f"{model_name(str(model['name']))}: {model['milliseconds']:.2f}" for model in models]
    return Plot(
        "Estimated milliseconds per call, by part",
        f"Stacked bars of the parts of {plural(len(models), 'model')}; the tables below have the figures.",
        traces,
        axis("milliseconds per call, estimated", rangemode="tozero"),
        bar_axis(places),
        bar_chart_height(places) + 40,
        annotations=bar_titles(places, titles),
        layout={"barmode": "stack"},
    )


FP16 = "the same graph in FP16"


def _marks(models: Sequence[Json], places: Sequence[float], key: str, name: str, dash: str) -> Json:
    texts = [hover(str(one["name"]), {f"{name}, ms": f"{one[key]:.3f}"}) for one in models]
    return bar_marks(places, [one[key] for one in models], texts, name, dash)


def bar_places(flops: Sequence[float]) -> list[float]:
    """Return where bars stand: one below the other, with a gap where FLOPs differ by more than a tenth."""
    places = [0.0]
    for before, now in pairwise(flops):
        places.append(places[-1] + (1.0 if abs(now - before) <= 0.1 * max(now, before) else 1.6))
    return places
