"""Models timed in turn: their spans, AP against latency, tables, ratios, and MLPerf's scenarios."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rtdetr_bench.models.timed_model import SPANS
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
    model_name,
    plain,
    points,
    value_axis,
)
from rtdetr_bench.scenarios.bounds import CONFIDENCE
from rtdetr_bench.scenarios.results import NOTE, SPEED
from rtdetr_deploy.words import plural

ACCURACY = "AP against latency, on your annotations"
PAPER, WHOLE = "paper's span", "whole call"
COLUMNS = (
    "model", "runtime", "precision", "NMS", "boxes", "batch", "paper's p50", "p90", "p99", "whole p50",
    "images/s", "back to back", "AP", "MB",
)  # fmt: skip
FACTS = frozenset({"runtime", "precision", "NMS", "batch"})
"""Columns that are told in a sentence where all models have the same."""


def comparison_section(content: Json) -> str:
    """Return what `rtdetr-bench latency` measured."""
    models = content["models"]
    head, rows, same = without_same(COLUMNS, [_row(model) for model in models])
    panels = [plot_spans(models)]
    if any(model["AP"] is not None for model in models):
        panels.append(plot_accuracy(models))
    others = f" and {len(models) - 1} more" if len(models) > 1 else ""
    return section(
        f"Latency: {models[0]['name']}{others}",
        paragraph(
            f"{rounds(content['rounds'])} Models were called in turn, once per round, so that the machine's drift "
            "falls on all of them. The paper's span is infer + decode: NMS is in it for YOLOs, copies and preparation "
            "are not.",
            f"Score threshold {content['threshold']:g}; boxes: what NMS outside the graph was given, per image.",
            "" if content["real_images"] else "The image is synthetic and holds no objects, so NMS has little to do.",
            same,
        ),
        paragraph(
            "The bars stack the median of each span. The number beside a name is the median of the whole call, as in "
            "the table; medians of parts do not add up to it exactly."
        ),
        plots(*panels),
        table(head, rows),
        _ratios(content["pairs"], models[0]["name"]),
    )


def _ratios(pairs: Sequence[Json], base: str) -> str:
    rows = [
        [pair["name"], pair["batch"], ratio(pair["paper"]), ratio(pair["whole"])]
        for pair in pairs
        if pair["base"] == base
    ]
    if not rows:
        return ""
    told = paragraph(f"Ratios of medians to {base}, with 95 % bootstrap intervals:")
    return told + table(("model", "batch", PAPER, WHOLE), rows)


def plot_spans(models: Sequence[Json]) -> Plot:
    """Return the median of every span of each model, stacked, and the whole call's number; `models` as in the JSON."""
    places = [float(index) for index in range(len(models))]
    traces = []
    for index, span in enumerate(SPANS):
        values = [model["milliseconds"].get(span, {}).get("p50", 0.0) for model in models]
        if any(values):
            texts = [_hover(model, f"{span}, ms", f"{v:.3f}") for model, v in zip(models, values, strict=True)]
            traces.append(bars(places, values, texts, name=span, marker={"color": COLORS[index]}))
    titles = [f"{_title(model)}: {model['milliseconds'][WHOLE]['p50']:.1f}" for model in models]
    return Plot(
        "Milliseconds per call, by span",
        f"Bars of the median of each span of {plural(len(models), 'model')}; the table below has the figures.",
        traces,
        axis("milliseconds per call (median)", rangemode="tozero"),
        bar_axis(places),
        bar_chart_height(places),
        annotations=bar_titles(places, titles),
        layout={"barmode": "stack"},
    )


def plot_accuracy(models: Sequence[Json]) -> Plot:
    """Return AP against latency of the models that were evaluated, a colour for each runtime."""
    measured = [model for model in models if model["AP"] is not None]
    runtimes = list(dict.fromkeys(str(model["facts"].get("runtime", "-")) for model in measured))
    traces = []
    for index, runtime in enumerate(runtimes):
        chosen = [model for model in measured if str(model["facts"].get("runtime", "-")) == runtime]
        mark = {"color": COLORS[index % len(COLORS)], "size": 10}
        texts = [_hover(model, "AP", f"{model['AP']:.4f}") for model in chosen]
        times = [_per_image(model) for model in chosen]
        aps = [model["AP"] for model in chosen]
        traces.append(points(times, aps, texts, name=plain(runtime), marker=mark))
    return Plot(
        ACCURACY,
        f"Points of {plural(len(measured), 'model')}; the table below has the figures.",
        traces,
        value_axis("ms per image, the paper's span", map(_per_image, measured)),
        axis("AP"),
        labels=[Label(_per_image(model), model["AP"], _title(model)) for model in measured],
    )


def _per_image(model: Json) -> float:
    return float(model["milliseconds"][PAPER]["p50"] / model["batch"])


def _hover(model: Json, name: str, value: str) -> str:
    """Return a model's whole configuration below one figure of it."""
    times = model["milliseconds"]
    facts = {name: value, **model["facts"], "batch": model["batch"]}
    return hover(model["name"], facts | {f"{key}, ms": f"{times[key]['p50']:.3f}" for key in (PAPER, WHOLE)})


def _title(model: Json) -> str:
    name = model_name(str(model["name"]))
    return name if model["batch"] == 1 else f"{name}, batch {model['batch']}"


def without_same(
    head: Sequence[str], rows: Sequence[Sequence[object]], facts: Collection[str] = FACTS
) -> tuple[list[str], list[list[object]], str]:
    """Leave out the columns without a value, and of `facts` those that are alike in all rows; the text tells these."""
    columns, told = [], []
    for index, name in enumerate(head):
        values = {row[index] for row in rows}
        if name in facts and len(values) == 1 and values != {"-"}:
            told.append(f"{name} {values.pop()}")
        elif values != {"-"}:
            columns.append(index)
    same = f"All rows: {', '.join(told)}." if told else ""
    return [head[index] for index in columns], [[row[index] for index in columns] for row in rows], same


def _row(model: Json) -> list[object]:
    facts, times = model["facts"], model["milliseconds"]
    flow = model.get("back_to_back")
    return [
        model["name"], *(facts.get(name, "-") for name in ("runtime", "precision", "NMS")),
        number(model["nms_input_boxes"], 0), model["batch"],
        *(f"{times[PAPER][name]:.2f}" for name in ("p50", "p90", "p99")),
        f"{times[WHOLE]['p50']:.2f}", f"{model['images_per_second']:.1f}",
        number(None if flow is None else flow["images_per_second"], 1), number(model["AP"], 4),
        number(model["memory_mb"], 0),
    ]  # fmt: skip


def scenarios_section(results: Sequence[Json]) -> str:
    """Return what was measured in MLPerf's scenarios."""
    rows = [
        [
            one["model"], one["scenario"], one["metric"], f"{one['value']:.2f}", number(one["bound"], 2),
            len(one["samples"]) or 1, one["images"], one["batch"], one["threads"],
            "-" if one["metric"] == SPEED else f"{one['images_per_second']:.1f}", one["doubt"] or "-",
        ]
        for one in results
    ]  # fmt: skip
    head = (
        "model", "scenario", "metric", "value", "at most", "queries", "images", "batch", "threads", SPEED, "doubt",
    )  # fmt: skip
    told = (
        f"{NOTE[0].upper() + NOTE[1:]}. At most: MLPerf's early-stopping estimate, {100 * CONFIDENCE:.0f} % confidence."
    )
    return section("Scenarios", paragraph(told), table(head, rows))


def number(value: float | None, digits: int) -> str:
    """Return a number for a table, "-" where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def rounds(count: int) -> str:
    """Return how many rounds there were, as a sentence."""
    return f"{plural(count, 'round')}."


def ratio(value: Json) -> str:
    """Return a ratio of medians with its interval."""
    return interval((value["value"], value["low"], value["high"]))


def interval(values: Sequence[float]) -> str:
    """Return a value and the ends of its interval."""
    value, low, high = values
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
