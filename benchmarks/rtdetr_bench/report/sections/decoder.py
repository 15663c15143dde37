"""Decoder layers and encoders: measured panels, and the paper's in panels of their own."""

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
    bar_titles,
    bars,
    hover,
    points,
)
from rtdetr_bench.report.sections.latency import PAPER, interval, number, rounds, without_same
from rtdetr_deploy.evaluate.published import ENCODERS, published_decoder
from rtdetr_deploy.words import plural

HEIGHT = 280


def decoder_section(study: Json) -> str:
    """Return what `rtdetr-bench decoder` measured."""
    rows = study["rows"]
    body = [
        [row["name"], f"{row['milliseconds'][PAPER]['p50']:.2f}", interval(row["ratio"]), number(row["AP"], 4)]
        for row in rows
    ]
    head, body, _ = without_same(("layers run", "paper's span p50, ms", "ratio", "AP"), body)
    return section(
        f"Decoder layers: {study['weights']}",
        paragraph(
            f"{rounds(study['rounds'])} {study['weights']} with fewer decoder layers, not retrained: speed and "
            "accuracy are chosen when the model is exported.",
            _told(len(rows)),
        ),
        plots(*plot_decoder(rows)),
        table(head, body),
    )


def _told(layers: int) -> str:
    """Say what the published panels are; nothing where the paper has no such model."""
    if not published_decoder(layers):
        return ""
    return (
        f"Hollow, in panels of its own: published for R50 on a T4, trained with 6 layers, relative to its own "
        f"{plural(layers, 'layer')}."
    )


def plot_decoder(rows: Sequence[Json]) -> list[Plot]:
    """Return time and AP relative to all layers by layers run, then the paper's R50, likewise."""
    layers = [int(row["name"].split()[0]) for row in rows]
    ratios = [row["ratio"] for row in rows]
    spread = {
        "type": "data", "symmetric": False, "array": [high - value for value, _, high in ratios],
        "arrayminus": [value - low for value, low, _ in ratios],
    }  # fmt: skip
    times = [value for value, _, _ in ratios]
    panels = [_panel("Time, relative to all layers", layers, times, "ratio", error_y=spread)]
    has_ap = all(row["AP"] is not None for row in rows)
    if has_ap:
        changes = [row["AP"] - rows[0]["AP"] for row in rows]
        panels.append(_panel("AP, change to all layers", layers, changes, "AP"))
    published = published_decoder(layers[0])
    if published:
        counts, known = list(published), list(published.values())
        panels.append(_published("Published: R50 on a T4, time", counts, [row.ratio for row in known], "ratio"))
        if has_ap:
            changes = [row.change for row in known]
            panels.append(_published("Published: R50, COCO, AP", counts, changes, "percentage points"))
    return panels


def _panel(title: str, layers: Sequence[int], values: Sequence[float], name: str, **look: object) -> Plot:
    texts = [hover(title, {"layers": count, name: f"{v:+.4f}"}) for count, v in zip(layers, values, strict=True)]
    settings = {"mode": "lines+markers", "marker": {"color": COLORS[0], "size": 8}, **look}
    ticks = {"tickmode": "array", "tickvals": list(layers)}
    return Plot(
        title,
        f"A line by decoder layers run: {name}.",
        [points(layers, values, texts, **settings)],
        axis("decoder layers run", **ticks),
        axis(name),
        HEIGHT,
    )


def _published(title: str, layers: Sequence[int], values: Sequence[float], name: str) -> Plot:
    mark = {"color": COLORS[1], "size": 8, "symbol": "circle-open"}
    return _panel(title, layers, values, name, marker=mark, line={"dash": "dash", "color": COLORS[1]})


def encoder_section(study: Json) -> str:
    """Return what `rtdetr-bench encoder` measured."""
    rows = study["rows"]
    body = [
        [
            row["name"],
            f"{row['parameters_million']:.1f}",
            f"{row['milliseconds'][PAPER]['p50']:.1f}",
            interval(row["ratio"]),
        ]
        for row in rows
    ]
    return section(
        f"Encoders: {study['variant']}",
        paragraph(
            f"{rounds(study['rounds'])} {study['variant']} with the encoders that the paper compares (its Table 3); "
            "random weights, latency only. Ratios are to the last one. A: none. B: attention in each level. C: and "
            "across levels. D: convolution across levels instead. D_S5: attention in S5 only. E: shipped."
        ),
        plots(*plot_encoders(rows)),
        table(("encoder", "parameters, millions", "paper's span p50, ms", "ratio"), body),
    )


def plot_encoders(rows: Sequence[Json]) -> list[Plot]:
    """Return each encoder's whole model time relative to the last one's, and the paper's."""
    last = ENCODERS[rows[-1]["name"]][2]
    published = [ENCODERS[row["name"]][2] / last for row in rows]
    hollow = {"color": "rgba(0,0,0,0)", "line": {"color": COLORS[1], "width": 2}}
    names = [row["name"] for row in rows]
    return [
        _bars("Time relative to the last, measured", names, [row["ratio"][0] for row in rows], {"color": COLORS[0]}),
        _bars("Published: R50 on a T4, likewise", names, published, hollow),
    ]


def _bars(title: str, names: Sequence[str], values: Sequence[float], mark: Json) -> Plot:
    places = [float(index) for index in range(len(names))]
    texts = [hover(name, {"ratio": f"{value:.3f}"}) for name, value in zip(names, values, strict=True)]
    return Plot(
        title,
        f"Bars of {', '.join(f'{name} {value:.2f}' for name, value in zip(names, values, strict=True))}.",
        [bars(places, values, texts, marker=mark)],
        axis("time relative to the last", rangemode="tozero"),
        bar_axis(places),
        bar_chart_height(places),
        annotations=bar_titles(places, [f"{name}: {v:.2f}" for name, v in zip(names, values, strict=True)]),
    )
