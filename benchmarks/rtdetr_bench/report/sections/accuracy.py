"""COCO's figures of a model, and of a checkpoint with one thing changed at a time."""

from __future__ import annotations

from collections.abc import Sequence

from rtdetr_bench.report.html import paragraph, plots, section, table
from rtdetr_bench.report.plot import (
    COLORS,
    Json,
    Label,
    Plot,
    axis,
    bar_axis,
    bar_chart_height,
    bar_titles,
    bars,
    hover,
    points,
)
from rtdetr_bench.report.sections.latency import PAPER, interval, number, without_same
from rtdetr_deploy.words import plural

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
SETTINGS = ("runtime", "layers", "queries", "cascade", "resizer")
"""What an ablation changes; of a file without one, nothing is told."""


def accuracy_section(study: Json) -> str:
    """Return what `rtdetr-bench accuracy` found."""
    metrics, classes = study["metrics"], study["per_class"]
    return section(
        f"Accuracy: {study['engine']}",
        paragraph(
            f"{plural(study['images'], 'image')} of {study['annotations']}, "
            f"{plural(study['detections'], 'detection')}, threshold 0, no NMS, resized with {study['resizer']}. "
            "-1: no object qualifies."
        ),
        table(("metric", "value"), [[name, f"{value:.4f}"] for name, value in metrics.items()]),
        table(("class", "AP"), [[name, f"{value:.4f}"] for name, value in classes.items()]),
    )


def ablation_section(study: Json) -> str:
    """Return what `rtdetr-bench ablation` found."""
    rows = study["rows"]
    base = rows[0]["metrics"]["AP"]
    body = [
        [
            _setting(row, rows[0]), *(_told(row, name) for name in SETTINGS),
            *(f"{row['metrics'][metric]:.4f}" for metric in METRICS), f"{row['metrics']['AP'] - base:+.4f}",
            number(_time(row), 2), interval(row["ratio"]) if "ratio" in row else "-",
        ]
        for row in rows
    ]  # fmt: skip
    head, body, _ = without_same(("setting", *SETTINGS, *METRICS, "change of AP", "ms", "ratio"), body)
    images = f"{plural(study['images'], 'image')} of {study['annotations']}"
    return section(
        f"Ablation: {study['weights']}",
        paragraph(f"{images}; one thing is changed at a time against the first row, the model as it is exported."),
        plots(plot_ablation(rows), *plot_times(rows)),
        table(head, body),
    )


def plot_ablation(rows: Sequence[Json]) -> Plot:
    """Return bars of each setting's change of AP against the first."""
    base, others = rows[0]["metrics"]["AP"], rows[1:]
    changes = [row["metrics"]["AP"] - base for row in others]
    places = [float(index) for index in range(len(others) or 1)]
    names = [_setting(row, rows[0]) for row in others]
    texts = [
        hover(name, {key: _told(row, key) for key in SETTINGS} | {m: f"{row['metrics'][m]:.4f}" for m in METRICS})
        for name, row in zip(names, others, strict=True)
    ]
    titles = [f"{name}: {change:+.4f}" for name, change in zip(names, changes, strict=True)]
    return Plot(
        f"Change of AP, from {base:.4f}",
        f"Bars of {plural(len(others), 'setting')}; the table below has the figures.",
        [bars(places[: len(others)], changes, texts, marker={"color": COLORS[0]})],
        axis("change of AP"),
        bar_axis(places),
        bar_chart_height(places),
        annotations=bar_titles(places[: len(others)], titles),
    )


def plot_times(rows: Sequence[Json]) -> list[Plot]:
    """Return AP against the time of the settings that were timed; nothing where fewer than two were."""
    timed = [row for row in rows if "ratio" in row]
    if len(timed) < 2:
        return []
    ratios, aps = [row["ratio"][0] for row in timed], [row["metrics"]["AP"] for row in timed]
    names = [_setting(row, rows[0]) for row in timed]
    texts = [
        hover(name, {"AP": f"{ap:.4f}", "ms": number(_time(row), 2), "ratio [95 %]": interval(row["ratio"])})
        for name, ap, row in zip(names, aps, timed, strict=True)
    ]
    return [
        Plot(
            "AP against time",
            f"Points of {plural(len(timed), 'setting')}; the table below has the figures.",
            [points(ratios, aps, texts, marker={"color": COLORS[0], "size": 10})],
            axis("time, relative to the first"),
            axis("AP"),
            labels=[Label(*point) for point in zip(ratios, aps, names, strict=True)],
        )
    ]


def _time(row: Json) -> float | None:
    return float(row["milliseconds"][PAPER]["p50"]) if "milliseconds" in row else None


def _setting(row: Json, base: Json) -> str:
    """Return what is changed against the first row."""
    changed = [f"{name} {row[name]}" for name in SETTINGS if row.get(name) is not None and row[name] != base.get(name)]
    return ", ".join(changed) or "as exported"


def _told(row: Json, name: str) -> object:
    value = row.get(name)
    return "-" if value is None else value
