"""One HTML page of results: self-contained, light and dark, for screens and phones, nothing fetched from anywhere."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rtdetr_bench.machine import machine_text, state_text
from rtdetr_bench.options import ReportOptions
from rtdetr_bench.report.html import figure as _figure
from rtdetr_bench.report.html import table as _table
from rtdetr_bench.report.roofline import roofline_section
from rtdetr_bench.results import BAD_CONTENT, Json, edited, read_results
from rtdetr_bench.scenarios.bounds import CONFIDENCE
from rtdetr_bench.scenarios.results import NOTE, SPEED
from rtdetr_deploy import OptionError
from rtdetr_deploy.evaluate.published import NMS, SOURCE, published_decoder
from rtdetr_deploy.files import write_bytes
from rtdetr_deploy.packages import require
from rtdetr_deploy.words import plural

PAPER = "paper's span"
STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1c2230; --soft: #5b6475; --line: #d9dde5; --box: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171d; --ink: #e6e9ef; --soft: #9aa3b2; --line: #333a46; --box: #1c2028; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 74rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; }
.origin { margin-top: 2.5rem; padding-top: .8rem; border-top: 2px solid var(--line); }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .3rem; }
p { margin: .3rem 0 .8rem; } .soft { color: var(--soft); font-size: .9rem; }
figure { margin: 1rem 0; padding: .8rem; background: var(--box); border: 1px solid var(--line); border-radius: .5rem;
  overflow-x: auto; }
svg { display: block; width: 100%; height: auto; min-width: 36rem; max-width: 52rem; margin: 0 auto; }
.narrow svg { min-width: 0; max-width: 40rem; }
svg text { font-family: system-ui, sans-serif !important; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .84rem; width: 100%; }
th, td { text-align: right; padding: .25rem .5rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
td.text, th.text { text-align: left; white-space: normal; overflow-wrap: break-word; }
td.text:first-child { min-width: 8rem; overflow-wrap: anywhere; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--page); }
code { font-size: .85em; }
@media (max-width: 40rem) { body { padding: .8rem; } figure { padding: .4rem; } th, td { padding: .25rem .35rem; } }
"""
"""Plots are 36rem wide at least, where their smallest text is 9 pixels high; what is wider than the page scrolls.
Narrow ones have that size on a phone."""


def require_plots() -> None:
    """Raise `MissingPackageError` without matplotlib."""
    require("matplotlib", "a report", "bench")


def write_report(path: Path, contents: Sequence[Json]) -> None:
    """Write the page for the contents of one or more results.

    Raises `MissingPackageError` without matplotlib, `OptionError` when there is nothing to show, `OutputError`.
    """
    require_plots()
    _write_page(path, "".join(map(_sections, contents)))


def combine_results(options: ReportOptions) -> None:
    """Write the page for files that `--json` wrote.

    Raises what `write_report` does, and `OptionError` for a file that was not written so.
    """
    require_plots()
    parts = []
    for file in options.results:
        content = read_results(file)
        try:
            parts.append(_sections(content))
        except BAD_CONTENT as error:
            raise edited(file, error) from error
    _write_page(options.output, "".join(parts))


def _sections(content: Json) -> str:
    """Return where and how a result was measured, and all that it shows; nothing where it shows nothing."""
    shown = "".join(make(content[name]) for name, make in SECTIONS.items() if content.get(name))
    return _origin(content) + shown if shown else ""


def _write_page(path: Path, sections: str) -> None:
    if not sections:
        raise OptionError("there is nothing to show in a report: no comparison and no study")
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>rtdetr-bench</title><style>{STYLE}</style></head><body>'
    )
    title = "<h1>rtdetr-bench</h1>"
    write_bytes(path, f"{head}{title}{sections}</body></html>\n".encode("utf-8", "backslashreplace"))


MODEL_COLUMNS = (
    "model", "runtime", "precision", "NMS", "boxes", "batch", "paper's p50", "p90", "p99", "whole p50",
    "images/s", "back to back", "AP", "MB",
)  # fmt: skip
FACTS = frozenset({"runtime", "precision", "NMS", "batch"})
"""Columns that are told in a sentence where all models have the same."""


def _comparison(content: Json) -> str:
    from rtdetr_bench.report.plots import plot_accuracy, plot_spans

    models = content["models"]
    head, rows, same = _without_same(MODEL_COLUMNS, [_model_row(model) for model in models])
    parts = [
        f"<h2>Latency</h2><p>{_rounds(content['rounds'])} Models were called in turn, once per round, so that the "
        "machine's drift falls on all of them. "
        "The paper's span is infer + decode: NMS is in it for YOLOs, copies and preparation are not. "
        f"Score threshold {content['threshold']:g}; boxes: what NMS outside the graph was given, per image."
        + ("" if content["real_images"] else " The image is synthetic and holds no objects, so NMS has little to do.")
        + f"{same}</p><p>The bars stack the median of each span. The number beside them is the median of the whole "
        "call, as in the table; medians of parts do not add up to it exactly.</p>",
        _figure(plot_spans(models)),
        _table(head, rows),
    ]
    if content["pairs"]:
        pairs = [pair for pair in content["pairs"] if pair["base"] == models[0]["name"]]
        parts += [
            f"<p>Ratios of medians to <b>{escape(models[0]['name'])}</b>, with 95 % bootstrap intervals:</p>",
            _table(
                ("model", "batch", "paper's span", "whole call"),
                ([pair["name"], pair["batch"], _ratio(pair["paper"]), _ratio(pair["whole"])] for pair in pairs),
            ),
        ]
    if all(model["AP"] is None for model in models):
        return "".join(parts)
    parts += [
        "<h2>AP against latency</h2><p>Hollow: " + escape(SOURCE) + ". They are another machine and another data set "
        "than what is measured here (solid, where annotations were given), so only their shape compares.</p>",
        _figure(plot_accuracy(models)),
    ]
    return "".join(parts)


def _without_same(head: Sequence[str], rows: Sequence[Sequence[object]]) -> tuple[list[str], list[list[object]], str]:
    """Leave out the columns without a value, and of `FACTS` those that are alike in all rows; the text tells these."""
    columns, told = [], []
    for index, name in enumerate(head):
        values = {row[index] for row in rows}
        if name in FACTS and len(values) == 1 and values != {"-"}:
            told.append(f"{name} {values.pop()}")
        elif values != {"-"}:
            columns.append(index)
    same = f" All models: {escape(', '.join(told))}." if told else ""
    return [head[index] for index in columns], [[row[index] for index in columns] for row in rows], same


def _rounds(count: int) -> str:
    return f"{plural(count, 'round')}."


def _model_row(model: Json) -> list[object]:
    facts, times = model["facts"], model["milliseconds"]
    paper = [f"{times[PAPER][column]:.2f}" for column in ("p50", "p90", "p99")]
    ap = "-" if model["AP"] is None else f"{model['AP']:.4f}"
    boxes = "-" if model["nms_input_boxes"] is None else f"{model['nms_input_boxes']:.0f}"
    memory = "-" if model["memory_mb"] is None else f"{model['memory_mb']:.0f}"
    return [
        model["name"], *(facts.get(name, "-") for name in ("runtime", "precision", "NMS")), boxes,
        model["batch"], *paper, f"{times['whole call']['p50']:.2f}", f"{model['images_per_second']:.1f}",
        _images_per_second(model.get("back_to_back")), ap, memory,
    ]  # fmt: skip


def _images_per_second(flow: Json | None) -> str:
    return "-" if flow is None else f"{flow['images_per_second']:.1f}"


def _scenarios(results: Sequence[Json]) -> str:
    rows = [
        [
            one["model"], one["scenario"], one["metric"], f"{one['value']:.2f}",
            "-" if one["bound"] is None else f"{one['bound']:.2f}", len(one["samples"]) or 1, one["images"],
            one["batch"], one["threads"], "-" if one["metric"] == SPEED else f"{one['images_per_second']:.1f}",
            one["doubt"] or "-",
        ]
        for one in results
    ]  # fmt: skip
    head = (
        "model", "scenario", "metric", "value", "at most", "queries", "images", "batch", "threads", SPEED, "doubt",
    )  # fmt: skip
    return (
        f"<h2>Scenarios</h2><p>{escape(NOTE[0].upper() + NOTE[1:])}. At most: MLPerf's early-stopping estimate, "
        f"{100 * CONFIDENCE:.0f} % confidence.</p>" + _table(head, rows)
    )


def _nms(study: Json) -> str:
    from rtdetr_bench.report.plots import plot_boxes_left, plot_nms

    methods = list(study["rows"][0]["milliseconds"])
    rows = [
        [f"{row['threshold']:g}", f"{row['iou']:g}"]
        + [f"{row['milliseconds'][method]:.3f}" for method in methods]
        + [f"{row['slowest']:.3f}", f"{row['kept']:.0f}", "-" if row["ap"] is None else f"{row['ap']:.4f}"]
        + list(_published_nms(row["threshold"], row["iou"]))
        for row in study["rows"]
    ]
    flat = [
        [threshold, f"{row['decode_ms']:.3f}", "-" if row["AP"] is None else f"{row['AP']:.4f}"]
        for threshold, row in study["rtdetr_by_threshold"].items()
    ]
    parts = [
        f"<h2>What NMS costs</h2><p>{escape(study['model'])} on {plural(study['images'], 'image')}, the "
        f"minimum of {plural(study['rounds'], 'round')} for each. A threshold decides how many boxes have to be "
        "suppressed, so it trades time for AP; without NMS there is nothing to trade.</p>",
        _figure(plot_boxes_left(study)),
        _figure(plot_nms(study, methods[0])),
        f"<p>Milliseconds per image with each implementation of NMS ({escape(' and '.join(methods))}), averaged over "
        f"the images; those of the slowest image with {escape(methods[0])}; boxes kept per image; AP. "
        "The last two columns are published: YOLOv8-L's NMS kernel on a T4, COCO.</p>",
        _table(("threshold", "IoU", *methods, "slowest", "kept", "AP", "published AP", "published ms"), rows),
    ]
    if flat:
        head = ("threshold", "decode, ms", "AP")
        parts += [f"<p>{escape(study['rtdetr'])}, which needs no NMS, at the same thresholds:</p>", _table(head, flat)]
    return "".join(parts)


def _published_nms(threshold: float, iou: float) -> tuple[str, str]:
    ap, milliseconds = NMS.get((threshold, iou), (None, 0.0))
    return ("", "") if ap is None else (f"{ap:.1f}", f"{milliseconds:.2f}")


def _decoder(study: Json) -> str:
    from rtdetr_bench.report.plots import plot_decoder

    rows = study["rows"]
    body = [
        [
            row["name"],
            f"{row['milliseconds'][PAPER]['p50']:.2f}",
            _ratio(dict(zip(("value", "low", "high"), row["ratio"], strict=True))),
            "-" if row["AP"] is None else f"{row['AP']:.4f}",
        ]
        for row in rows
    ]
    head, body, _ = _without_same(("", "paper's span p50, ms", "ratio", "AP"), body)
    return (
        f"<h2>Decoder layers</h2><p>{_rounds(study['rounds'])} {escape(study['weights'])} with fewer decoder layers, "
        f"not retrained: speed and accuracy are chosen when the model is exported.{_dashed(len(rows))}</p>"
        + _figure(plot_decoder(rows))
        + _table(head, body)
    )


def _dashed(layers: int) -> str:
    """Say what the dashed line is; nothing where the paper has no such model."""
    if not published_decoder(layers):
        return ""
    return f" Dashed: published for R50, trained with 6 layers, relative to its own {plural(layers, 'layer')}."


def _encoder(study: Json) -> str:
    from rtdetr_bench.report.plots import plot_encoders

    rows = study["rows"]
    body = (
        [
            row["name"],
            f"{row['parameters_million']:.1f}",
            f"{row['milliseconds'][PAPER]['p50']:.1f}",
            _ratio(dict(zip(("value", "low", "high"), row["ratio"], strict=True))),
        ]
        for row in rows
    )
    return (
        f"<h2>Encoders</h2><p>{_rounds(study['rounds'])} {escape(study['variant'])} with the encoders that the paper "
        "compares (its Table 3); "
        "random weights, latency only. Ratios are to the last one. A: none. B: attention in each level. C: and "
        "across levels. D: convolution "
        "across levels instead. D_S5: attention in S5 only. E: shipped.</p>"
        + _figure(plot_encoders(rows))
        + _table(("encoder", "parameters, millions", "paper's span p50, ms", "ratio"), body)
    )


SECTIONS: dict[str, Callable[[Any], str]] = {
    "comparison": _comparison,
    "scenarios": _scenarios,
    "nms": _nms,
    "decoder": _decoder,
    "encoder": _encoder,
    "roofline": roofline_section,
}


def _origin(content: Json) -> str:
    """Tell when, how and on what machine a result was measured, and the machine's state when the measurement ended."""
    state = (content.get("comparison") or {}).get("state") or content["state"]
    date = str(content["date"]).replace("T", " ").replace("Z", " UTC")
    machine = machine_text(content["machine"], content["options"].get("threads"))
    parts = [f"Measured {date} on {machine}.", f"At the end: {state_text(state)}." if state else ""]
    if not any(content.get(name) for name in SECTIONS if name != "roofline"):
        parts = [f"Computed {date}."]
    command = shlex.join(content["command"])
    return f'<p class="soft origin">{escape(" ".join(parts))}<br><code>{escape(command)}</code></p>'


def _ratio(ratio: Json) -> str:
    return f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
