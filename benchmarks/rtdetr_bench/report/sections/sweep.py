"""A sweep: the Pareto front of its configurations, the recommended one with its command, and a table of all."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rtdetr_bench.report.html import paragraph, plots, section, table
from rtdetr_bench.report.plot import (
    COLORS,
    INK,
    Json,
    Label,
    Plot,
    axis,
    hover,
    plain,
    points,
    value_axis,
)
from rtdetr_bench.report.sections.latency import number, without_same
from rtdetr_deploy.words import plural

SYMBOLS = {"fp32": "circle", "bf16": "diamond", "fp16": "square", "int8": "triangle-up"}
OTHER_SYMBOL = "pentagon"
LATENCY_FRONT, THROUGHPUT_FRONT = "front", "offline_front"
TIME, MULTI, SPEED = "single_stream_p90_ms", "multi_stream_p99_ms", "offline_images_per_second"
CONFIGURATION = ("layers", "queries", "cascade", "size", "precision", "runtime", "arithmetic", "batch")
LABELLED = ("layers", "queries", "cascade", "size", "batch")
HEAD = (
    "name", *CONFIGURATION, "SingleStream p90, ms", "MultiStream(8) p99, ms", "Offline, images/s", "AP", "AP50", "kept",
    "MB", "front", "note",
)  # fmt: skip


def sweep_section(study: Json) -> str:
    """Return what `rtdetr-bench sweep` found: plots and a table of measured rows, failed ones with reasons."""
    measured = [row for row in study["rows"] if not row["failed"]]
    failed = [row for row in study["rows"] if row["failed"]]
    parts = [_recommendation(study), paragraph(_told(study))]
    if measured:
        ordered = sorted(measured, key=_by_time)
        head, body, same = without_same(HEAD, [_row(row, _recommended(study)) for row in ordered], CONFIGURATION)
        parts += [plots(plot_latency(study), plot_throughput(study)), paragraph(same), table(head, body)]
        parts.append(_front(ordered))
    if failed:
        rows = [[row["name"], *map(str, _configuration(row)), row["failed"]] for row in failed]
        parts += ["<h3>Failed</h3>", table(("name", *CONFIGURATION, "reason"), rows)]
    return section(f"Sweep: {study['weights']}", *parts)


def _by_time(row: Json) -> float:
    return float("inf") if row[TIME] is None else float(row[TIME])


def _recommendation(study: Json) -> str:
    """Return the recommendation in words, and the lines that make and run it."""
    told = escape(study["recommendation"])
    chosen = _recommended(study)
    if chosen is not None:
        told += f"<br><code>{escape(chosen['export_command'])}</code><br><code>{escape(chosen['run_hint'])}</code>"
    return f'<p class="told">{told}</p>' if told else ""


def _recommended(study: Json) -> Json | None:
    return next((row for row in study["rows"] if row["name"] == study["recommended"] and not row["failed"]), None)


def _told(study: Json) -> str:
    """Say what was measured, and by which limits the recommended configuration was chosen."""
    limits = study["limits"]
    known = {
        "budget": None if limits["budget_ms"] is None else f"{limits['budget_ms']:g} ms",
        "minimum AP": None if limits["min_ap"] is None else f"{limits['min_ap']:g}",
        "within": None if limits["within"] is None else f"{limits['within']:g} AP of the best",
    }
    chosen = ", ".join(f"{name} {value}" for name, value in known.items() if value)
    drawn = " (dashed)" if known["budget"] or known["minimum AP"] else ""
    return (
        f"{plural(len(study['rows']), 'configuration')}, AP on {plural(study['images'], 'image')} of "
        f"{study['annotations']}. Limits{drawn}: {chosen}. Kept: the share of the checkpoint's detections that is "
        "found again. A front: nothing else that was timed at length is both faster, by latency or by throughput, and "
        "more accurate. What was timed briefly alone, as its note says, is in no plot. Metrics are named as MLPerf "
        "inference names them and are not MLPerf results."
    )


def plot_latency(study: Json) -> Plot:
    """Return AP against SingleStream's p90 with the front, the limits and the recommended configuration."""
    limits, title = study["limits"], "milliseconds, SingleStream p90"
    return _plot(
        study, TIME, LATENCY_FRONT, "AP against latency", title, upright=limits["budget_ms"], level=limits["min_ap"]
    )


def plot_throughput(study: Json) -> Plot:
    """Return AP against Offline's images per second."""
    title, level = "images per second, Offline", study["limits"]["min_ap"]
    return _plot(study, SPEED, THROUGHPUT_FRONT, "AP against throughput", title, level=level)


def _plot(
    study: Json, key: str, front: str, title: str, told: str, *, upright: float | None = None,
    level: float | None = None,
) -> Plot:  # fmt: skip
    rows = [row for row in study["rows"] if not row["failed"] and row[key] is not None and row["AP"] is not None]
    chosen = _recommended(study)
    marked = [row for row in rows if chosen is not None and row["name"] == chosen["name"]]
    first = [*marked, *(row for row in rows if row[front] and row not in marked)]
    rest = [row for row in rows if row not in first]
    varied = [name for name in LABELLED if len({str(row[name]) for row in rows}) > 1]
    labels = [Label(row[key], row["AP"], _label(row, varied)) for row in first]
    return Plot(
        title,
        f"Points of {plural(len(rows), 'configuration')}; the table below has the figures.",
        [*_front_line(rows, key, front), *_traces(rows, key, _ways(study)), *_ring(marked, key)],
        value_axis(told, [row[key] for row in rows]),
        axis("AP"),
        480,
        labels=labels + [Label(row[key], row["AP"]) for row in rest],
        shapes=[*_limit("x", upright), *_limit("y", level)],
    )


def _label(row: Json, varied: Sequence[str]) -> str:
    """Return what a row is in short: of what colour and shape don't tell, that which differs between rows."""
    told = {
        "layers": f"l{row['layers']}", "queries": f"q{row['queries']}", "cascade": row["cascade"] or "no cascade",
        "size": _size(row), "batch": f"batch {row['batch']}",
    }  # fmt: skip
    return " ".join(told[name] for name in varied) or row["name"]


def _traces(rows: Sequence[Json], key: str, ways: Sequence[str]) -> list[Json]:
    """Return points: a colour for each runtime and arithmetic, a shape for each precision of the file."""
    traces = []
    for way, precision in dict.fromkeys((_way(row), str(row["precision"])) for row in rows):
        chosen = [row for row in rows if (_way(row), str(row["precision"])) == (way, precision)]
        mark = {
            "color": COLORS[ways.index(way) % len(COLORS)], "size": 10,
            "symbol": SYMBOLS.get(precision, OTHER_SYMBOL), "opacity": 0.9,
        }  # fmt: skip
        x, y = [row[key] for row in chosen], [row["AP"] for row in chosen]
        traces.append(points(x, y, list(map(_hover, chosen)), name=plain(f"{way}, {precision} file"), marker=mark))
    return traces


def _ways(study: Json) -> list[str]:
    """Return the ways of all rows, so that a way has one colour in all plots."""
    return list(dict.fromkeys(map(_way, study["rows"])))


def _way(row: Json) -> str:
    return " ".join(str(row[name]) for name in ("runtime", "arithmetic") if row[name])


def _front_line(rows: Sequence[Json], key: str, mark: str) -> list[Json]:
    """Return the front as a line, in the order of its figure; nothing where it has fewer than two points."""
    front = sorted((row for row in rows if row[mark]), key=lambda row: (row[key], row["AP"]))
    if len(front) < 2:
        return []
    x, y = [row[key] for row in front], [row["AP"] for row in front]
    line = {"color": INK, "width": 1.2, "dash": "dot"}
    return [points(x, y, [], mode="lines", name="front", line=line) | {"hoverinfo": "skip"}]


def _ring(rows: Sequence[Json], key: str) -> list[Json]:
    if not rows:
        return []
    mark = {"color": INK, "size": 20, "symbol": "circle-open", "line": {"width": 2.5}}
    x, y = [row[key] for row in rows], [row["AP"] for row in rows]
    return [points(x, y, [], name="recommended", marker=mark) | {"hoverinfo": "skip"}]


def _limit(side: str, value: float | None) -> list[Json]:
    """Return a limit as a line across the plot; nothing where there is none."""
    if value is None:
        return []
    across = {"x0": value, "x1": value, "y0": 0, "y1": 1, "yref": "paper"}
    if side == "y":
        across = {"y0": value, "y1": value, "x0": 0, "x1": 1, "xref": "paper"}
    return [{"type": "line", "line": {"color": "@soft", "width": 1, "dash": "dash"}, **across}]


def _hover(row: Json) -> str:
    """Return the whole configuration of a row, and all of its figures."""
    facts = dict(zip(CONFIGURATION, _configuration(row), strict=True))
    return hover(row["name"], facts | dict(zip(HEAD[len(CONFIGURATION) + 1 :], _figures(row), strict=True)))


def _configuration(row: Json) -> list[object]:
    values = {**row, "size": _size(row)}
    return ["-" if values[name] is None else values[name] for name in CONFIGURATION]


def _size(row: Json) -> str:
    return "x".join(map(str, row["size"]))


def _figures(row: Json) -> list[object]:
    return [
        number(row[TIME], 2), number(row[MULTI], 2), number(row[SPEED], 1), number(row["AP"], 4),
        number(row["AP50"], 4),
        number(row["match_rate"], 4), number(row["file_mb"], 1), _on_fronts(row) or "-",
        _note(row),
    ]  # fmt: skip


def _on_fronts(row: Json) -> str:
    """Return the fronts that a row is on: latency, throughput, both or none."""
    marks = {"latency": row[LATENCY_FRONT], "throughput": row[THROUGHPUT_FRONT]}
    return " / ".join(name for name, on in marks.items() if on)


def _note(row: Json) -> str:
    """Return why a row has no figures of speed, with the brief measurement's; "-" where it has them."""
    note = row["note"]
    if row[TIME] is None and row["brief_median_ms"] is not None and not note:
        note = "timed briefly alone"
    if note and row["brief_median_ms"] is not None:
        note += f" (median of a brief measurement: {row['brief_median_ms']:.1f} ms)"
    return note or "-"


def _row(row: Json, recommended: Json | None) -> list[object]:
    *figures, front, note = _figures(row)
    if row is recommended:
        front = "recommended" if front == "-" else f"recommended, {front}"
    return [row["name"], *_configuration(row), *figures, front, note]


def _front(rows: Sequence[Json]) -> str:
    """Return the lines that make and run what is on the front, in the order of the rows."""
    lines = [[row["name"], row["export_command"], row["run_hint"]] for row in rows if _on_fronts(row)]
    if not lines:
        return ""
    return "<h3>How to make the fronts'</h3>" + table(("name", "export", "run"), lines)
