"""One HTML page of results: self-contained, light and dark, nothing fetched from anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rtdetr_bench.published import NMS, SOURCE
from rtdetr_deploy import MissingPackageError, OptionError
from rtdetr_deploy.files import write_atomically

Json = dict[str, Any]
PAPER = "paper's span"
STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1c2230; --soft: #5b6475; --line: #d9dde5; --box: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171d; --ink: #e6e9ef; --soft: #9aa3b2; --line: #333a46; --box: #1c2028; }
}
body { margin: 0 auto; max-width: 74rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; }
.machine { margin-top: 2.5rem; padding-top: .6rem; border-top: 2px solid var(--line); }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .3rem; }
p { margin: .3rem 0 .8rem; } .soft { color: var(--soft); font-size: .9rem; }
figure { margin: 1rem 0; padding: .8rem; background: var(--box); border: 1px solid var(--line); border-radius: .5rem; }
svg { display: block; width: 100%; height: auto; max-width: 52rem; margin: 0 auto; }
svg text { font-family: system-ui, sans-serif !important; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .84rem; width: 100%; }
th, td { text-align: right; padding: .25rem .5rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
code { font-size: .85em; }
"""


def read_results(path: Path) -> Json:
    """Return the content of a file that `--json` wrote. Raises `OptionError` when it is none of this version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"can't read results {path}: {error}") from error
    if not isinstance(content, dict) or content.get("schema") != 2 or "machine" not in content:
        raise OptionError(f"{path} holds no results of this version of rtdetr-bench --json")
    return content


def write_report(path: Path, contents: Sequence[Json]) -> None:
    """Write the page for the contents of one or more results.

    Raises `MissingPackageError` without matplotlib, `OptionError` when there is nothing to show, `OutputError`.
    """
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("--report needs matplotlib: pip install 'rtdetr-deploy[bench]'") from error
    sections = "".join(
        _machine(content) + "".join(make(content[name]) for name, make in SECTIONS.items() if content.get(name))
        for content in contents
        if any(content.get(name) for name in SECTIONS)
    )
    if not sections:
        raise OptionError("there is nothing to show in a report: no comparison and no study")
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>rtdetr-bench</title><style>{STYLE}</style></head><body>'
    )
    title = "<h1>rtdetr-bench</h1>"
    write_atomically(path, f"{head}{title}{sections}</body></html>\n".encode())


MODEL_COLUMNS = (
    "model", "runtime", "precision", "NMS", "boxes", "batch", "paper's p50", "p90", "p99", "whole p50",
    "images/s", "AP", "MB",
)  # fmt: skip


def _comparison(content: Json) -> str:
    from rtdetr_bench.plots import plot_accuracy, plot_spans

    models = content["models"]
    parts = [
        "<h2>Latency</h2><p>Models were timed in turn, one call each per round, so that the machine's drift cancels. "
        "The paper's span is infer + postprocess: NMS is in it for YOLOs, copies and resizing are not. "
        f"Score threshold {content['confidence']:g}; boxes: what NMS outside the graph was given, per image."
        + ("" if content["real_images"] else " The image is synthetic and holds no objects, so NMS has little to do.")
        + "</p>",
        _figure(plot_spans(models)),
        _table(
            MODEL_COLUMNS,
            (_model_row(model) for model in models),
        ),
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


def _model_row(model: Json) -> list[object]:
    facts, times = model["facts"], model["milliseconds"]
    paper = [f"{times[PAPER][column]:.2f}" for column in ("p50", "p90", "p99")]
    ap = "-" if model["AP"] is None else f"{model['AP']:.4f}"
    boxes = "-" if model["boxes_suppressed_from"] is None else f"{model['boxes_suppressed_from']:.0f}"
    memory = "-" if model["memory_mb"] is None else f"{model['memory_mb']:.0f}"
    return [
        model["name"], *(facts.get(name, "-") for name in ("runtime", "precision", "NMS")), boxes,
        model["batch"], *paper, f"{times['whole call']['p50']:.2f}", f"{model['images_per_second']:.1f}", ap, memory,
    ]  # fmt: skip


def _nms(study: Json) -> str:
    from rtdetr_bench.plots import plot_boxes_left, plot_nms

    methods = list(study["rows"][0]["milliseconds"])
    rows = [
        [f"{row['confidence']:g}", f"{row['iou']:g}"]
        + [f"{row['milliseconds'][method]:.3f}" for method in methods]
        + [f"{row['slowest']:.3f}", f"{row['kept']:.0f}", "-" if row["ap"] is None else f"{row['ap']:.4f}"]
        + list(_published_nms(row["confidence"], row["iou"]))
        for row in study["rows"]
    ]
    flat = [
        [confidence, f"{row['postprocess_ms']:.3f}", "-" if row["AP"] is None else f"{row['AP']:.4f}"]
        for confidence, row in study["rtdetr_by_confidence"].items()
    ]
    parts = [
        f"<h2>What NMS costs</h2><p>{escape(study['model'])} on {study['images']} images. A threshold decides how many "
        "boxes have to be suppressed, so it trades time for AP; without NMS there is nothing to trade.</p>",
        _figure(plot_boxes_left(study)),
        _figure(plot_nms(study, methods[0])),
        "<p>Mean milliseconds per image by way of suppression, the slowest image (first way), boxes kept, AP. "
        "The last two columns are published: YOLOv8-L's NMS kernel on a T4, COCO.</p>",
        _table(("confidence", "IoU", *methods, "slowest", "kept", "AP", "published AP", "ms"), rows),
    ]
    if flat:
        head = ("confidence", "whole postprocess, ms", "AP")
        parts += [f"<p>{escape(study['rtdetr'])}, which needs no NMS, at the same thresholds:</p>", _table(head, flat)]
    return "".join(parts)


def _published_nms(confidence: float, iou: float) -> tuple[str, str]:
    ap, milliseconds = NMS.get((confidence, iou), (None, 0.0))
    return ("", "") if ap is None else (f"{ap:.1f}", f"{milliseconds:.2f}")


def _decoder(study: Json) -> str:
    from rtdetr_bench.plots import plot_decoder

    rows = study["rows"]
    body = (
        [
            row["name"],
            f"{row['milliseconds'][PAPER]['p50']:.2f}",
            _ratio(dict(zip(("value", "low", "high"), row["ratio"], strict=True))),
            "-" if row["AP"] is None else f"{row['AP']:.4f}",
        ]
        for row in rows
    )
    return (
        f"<h2>Decoder layers</h2><p>{escape(study['weights'])} with fewer decoder layers, not retrained: speed and "
        "accuracy are chosen when the model is exported. Dashed: published for R50.</p>"
        + _figure(plot_decoder(rows))
        + _table(("", "paper's span p50, ms", "ratio", "AP"), body)
    )


def _encoder(study: Json) -> str:
    from rtdetr_bench.plots import plot_encoders

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
        f"<h2>Encoders</h2><p>{escape(study['variant'])} with the encoders that the paper compares (its Table 3); "
        "random weights, latency only. A: none. B: attention in each level. C: and across levels. D: convolution "
        "across levels instead. D_S5: attention in S5 only. E: shipped.</p>"
        + _figure(plot_encoders(rows))
        + _table(("encoder", "parameters, millions", "paper's span p50, ms", "ratio"), body)
    )


SECTIONS: dict[str, Callable[[Json], str]] = {
    "comparison": _comparison,
    "nms": _nms,
    "decoder": _decoder,
    "encoder": _encoder,
}


def _machine(content: Json) -> str:
    """Describe the machine of a result, its threads, and its state when the measurement ended."""
    machine, command = content["machine"], content.get("command", {})
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    parts = [machine["processor"], f"{machine['cores']} cores", f"threads: {command.get('threads') or 'default'}"]
    parts += [machine["system"], f"Python {machine['python']}", packages]
    state = (content.get("comparison") or {}).get("state") or content.get("state") or {}
    parts += [f"{name} {value}" for name, value in state.items()]
    return f'<p class="soft machine">{escape(", ".join(parts))}</p>'


def _figure(svg: str) -> str:
    return f"<figure>{svg}</figure>"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def _ratio(ratio: Json) -> str:
    return f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
