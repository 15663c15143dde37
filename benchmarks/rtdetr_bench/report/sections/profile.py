"""A profile: a model's time by part and by operator, and the floor that the machine's peak sets."""

from __future__ import annotations

from collections.abc import Sequence

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
    short,
)
from rtdetr_bench.report.sections.latency import number, without_same
from rtdetr_deploy.words import plural

TOP = 20
"""Nodes that are listed, those that take longest."""
MAX_BARS = 12


def profile_section(study: Json) -> str:
    """Return what `rtdetr-bench profile` measured."""
    longest = study["longest"][:TOP]
    nodes = [[node["name"], node["operator"], node["kernel"] or "-", f"{node['ms']:.3f}"] for node in longest]
    return section(
        f"Profile: {study['name']}, {study['runtime']}",
        paragraph(*_told(study)),
        plots(*(_plot(f"Milliseconds by {kind}", study[f"{kind}s"][:MAX_BARS]) for kind in KINDS)),
        *(_table(kind, study[f"{kind}s"], study["nodes_ms"]) for kind in KINDS),
        paragraph(f"The {plural(len(longest), 'node')} that take longest, of {study['nodes']}:"),
        table(("nodes", "operator", "kernel", "ms"), nodes),
    )


KINDS = ("part", "operator")


def _told(study: Json) -> list[str]:
    """Say what a call takes, and how near that is to the floor where one is known."""
    peaks = ", ".join(f"{name.upper()} {rate:.0f}" for name, rate in study["peaks"].items())
    told = [f"{study['call_ms']:.1f} ms per call, its nodes {study['nodes_ms']:.1f} ms."]
    told.append(f"Peak of convolutions on this machine, GFLOP/s: {peaks}.")
    if study["floor_ms"] is not None:
        told.append(
            f"{study['gflops']:.1f} GFLOP take {study['floor_ms']:.1f} ms at that peak, the floor: "
            f"{100 * study['reached']:.0f} % of the peak is reached."
        )
    return told


def _plot(title: str, shares: Sequence[Json]) -> Plot:
    """Return a bar for each share, with a line at its floor."""
    places = [float(index) for index in range(len(shares))]
    texts = [
        hover(one["name"], {"ms": number(one["ms"], 3), "floor, ms": number(one["floor_ms"], 3)}) for one in shares
    ]
    traces = [bars(places, [one["ms"] for one in shares], texts, name="measured", marker={"color": COLORS[0]})]
    if any(one["floor_ms"] is not None for one in shares):
        traces.append(bar_marks(places, [one["floor_ms"] or 0.0 for one in shares], texts, "floor"))
    return Plot(
        title,
        f"Bars of the {len(shares)} that take longest; the table below has the figures.",
        traces,
        axis("milliseconds per call", rangemode="tozero"),
        bar_axis(places),
        bar_chart_height(places),
        annotations=bar_titles(places, [f"{short(one['name'])}: {one['ms']:.2f}" for one in shares]),
    )


def _table(kind: str, shares: Sequence[Json], total: float) -> str:
    rows = [
        [one["name"], one["nodes"], f"{one['ms']:.3f}", f"{100 * one['ms'] / total:.1f}", number(one["floor_ms"], 3)]
        for one in shares
    ]
    head, rows, _ = without_same((kind, "count", "ms", "share, %", "floor, ms"), rows)
    return table(head, rows)
