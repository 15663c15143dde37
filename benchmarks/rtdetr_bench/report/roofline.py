"""The report's section on the cost model: estimates, and called so."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from rtdetr_bench.report.html import figure, table

Json = dict[str, Any]
DECODER = "decoder layers"
MAX_PARTS = 7
"""Parts that a plot tells apart; the cheapest beyond them are one."""


def roofline_section(study: Json) -> str:
    """Return what `rtdetr-bench roofline` found, as a part of the page."""
    from rtdetr_bench.report.plots import plot_roofline

    models, factors = study["models"], study["factors"]
    longest_first = sorted(models, key=lambda model: -len(model["parts"]))
    names = list(dict.fromkeys(part["name"] for model in longest_first for part in model["parts"]))
    by_name = [{part["name"]: part["milliseconds"] for part in model["parts"]} for model in models]
    rows = [[name, *(f"{parts[name]:.3f}" if name in parts else "-" for parts in by_name)] for name in names]
    rows += [
        [title, *(f"{model[key]:.3f}" for model in models)]
        for title, key in (
            ("all", "milliseconds"), ("lower bound", "bound"), ("with FP16 everywhere", "fp16_everywhere"),
        )
    ]  # fmt: skip
    return (
        f"<h2>Estimated cost on {escape(study['gpu']['name'])}</h2><p><b>An estimate from the files alone, nothing was "
        f"run.</b> Each kernel takes the longer of its FLOPs at {factors['compute']:.2f} of the peak rates and its "
        f"bytes at {factors['bandwidth']:.2f} of the peak bandwidth, and {factors['launch']:.1f} microseconds more. "
        "These factors were fitted on four published T4 times; the other published times come out within "
        f"{study['max_error']:.1%}. Milliseconds per call:</p>"
        + figure(plot_roofline(models))
        + table(("part", *(model["name"] for model in models)), rows)
        + "".join(map(_islands, models))
    )


def _islands(model: Json) -> str:
    if not model["islands"]:
        return ""
    rows = [
        [one["module"], f"{one['milliseconds']:.3f}", f"{one['in_fp16']:.3f}", f"{one['cost']:+.3f}", one["casts"]]
        for one in model["islands"]
    ]
    return f"<p>What is in FP32, and Casts, in {escape(model['name'])}:</p>" + table(
        ("module", "ms", "ms in FP16", "cost", "Casts"), rows
    )


def group_parts(models: Sequence[Json]) -> dict[str, list[float]]:
    """Return the milliseconds of each model by groups of parts: decoder layers together, few enough for a plot."""
    grouped: dict[str, list[float]] = {}
    for index, model in enumerate(models):
        for part in model["parts"]:
            name = DECODER if part["name"].startswith("decoder layer") else part["name"]
            grouped.setdefault(name, [0.0] * len(models))[index] += part["milliseconds"]
    if len(grouped) <= MAX_PARTS:
        return grouped
    kept = sorted(grouped, key=lambda name: -max(grouped[name]))[: MAX_PARTS - 1]
    rest = [values for name, values in grouped.items() if name not in kept]
    return {name: values for name, values in grouped.items() if name in kept} | {
        "rest": [sum(column) for column in zip(*rest, strict=True)]
    }
