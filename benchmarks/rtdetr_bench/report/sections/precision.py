"""What reduced precision does to a checkpoint's detections, by file and arithmetic."""

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
    hover,
    plain,
    points,
    short,
)
from rtdetr_bench.report.sections.latency import number, without_same
from rtdetr_deploy.words import plural

OPTIONAL = ("runtime", "arithmetic")
"""Of rows that tell how a file was run."""
SYMBOLS = ("circle", "diamond", "square")


def precision_section(study: Json) -> str:
    """Return what `rtdetr-bench precision` measured."""
    rows, refused = study["rows"], [row for row in study["rows"] if row.get("refused")]
    measured = [row for row in rows if not row.get("refused")]
    tolerances = list(measured[0]["matched"])
    head, body, _ = without_same(
        ("file", *OPTIONAL, "INT8", "MB", "casts", "FP32 nodes", "ms", "AP", *tolerances, "extra"),
        [_row(row, tolerances) for row in measured],
    )
    parts = [
        paragraph(
            f"{study['weights']} on {study['annotations']}: {plural(study['expected'], 'detection')} of the FP32 torch "
            "model with score >= 0.3, and the share of them that is found again within so many pixels and so much "
            "score. AP hardly moves where boxes do, so both are told. Extra: detections that the model does not have."
        ),
        plots(plot_matched(measured)),
        table(head, body),
    ]
    if refused:
        told = table(("file", "reason"), [[row["file"], row["refused"]] for row in refused])
        parts += [paragraph("Files that the runtime refused:"), told]
    return section(f"Precision: {study['weights']}", *parts)


def _row(row: Json, tolerances: Sequence[str]) -> list[object]:
    nodes = row.get("nodes", {})
    return [
        row["file"], *(row.get(name) or "-" for name in OPTIONAL), number(row.get("int8") or None, 3),
        number(row.get("megabytes"), 1), nodes.get("casts", "-"), nodes.get("fp32", "-"), number(row.get("ms"), 2),
        number(row["AP"], 4), *(f"{row['matched'][name]:.4f}" for name in tolerances), row["spurious"],
    ]  # fmt: skip


def plot_matched(rows: Sequence[Json]) -> Plot:
    """Return a row of marks for each file: the share of detections that is kept within each tolerance."""
    places = [float(index) for index in range(len(rows))]
    traces = []
    for index, tolerance in enumerate(rows[0]["matched"]):
        shares = [row["matched"][tolerance] for row in rows]
        texts = [_hover(row) for row in rows]
        mark = {
            "color": COLORS[index % len(COLORS)],
            "size": 11,
            "symbol": SYMBOLS[index % len(SYMBOLS)],
            "opacity": 0.85,
        }
        traces.append(points(shares, places, texts, name=f"within {plain(tolerance)}", marker=mark))
    titles = [f"{_name(row)}: AP {row['AP']:.4f}" for row in rows]
    return Plot(
        "Detections kept",
        f"Marks of {plural(len(rows), 'file')}: the share of detections kept within each tolerance; see the table.",
        traces,
        axis("share of the FP32 detections", range=[-0.02, 1.03]),
        bar_axis(places),
        bar_chart_height(places),
        annotations=bar_titles(places, titles),
    )


def _name(row: Json) -> str:
    how = ", ".join(str(row[name]) for name in OPTIONAL if row.get(name))
    return short(row["file"]) + (f" ({short(how)})" if how else "")


def _hover(row: Json) -> str:
    facts = {name: row.get(name) or "-" for name in OPTIONAL}
    facts |= {"AP": f"{row['AP']:.4f}", "MB": row.get("megabytes", "-"), "INT8": number(row.get("int8") or None, 3)}
    return hover(row["file"], facts | {f"within {name}": f"{share:.4f}" for name, share in row["matched"].items()})
