"""What is around a model: the parts of a call, streams beside the runtime alone, and memory."""

from __future__ import annotations

from rtdetr_bench.report.html import paragraph, section, table
from rtdetr_bench.report.plot import Json
from rtdetr_bench.report.sections.latency import number
from rtdetr_deploy.words import plural

MEMORY = {"before": "before the model is opened", "opened": "once it is open", "peak": "at its peak"}


def pipeline_section(study: Json) -> str:
    """Return what `rtdetr-bench pipeline` measured."""
    infer = study["parts"]["infer"][0]
    calls = f"{plural(study['slots'], 'call')} at once, batch {study['batch']} in streams"
    return section(
        f"Around the model: {study['engine']}",
        paragraph(
            f"{study['runtime']}, {calls}.",
            f"All but the model takes {study['around_ms']:.2f} ms of a call on a 1920x1080 frame in memory, the model "
            f"{infer:.1f} ms.",
        ),
        _parts(study),
        paragraph("Images per second, and the share of what the runtime alone reaches with a prepared input:"),
        _rates(study),
        _memory(study),
    )


def _parts(study: Json) -> str:
    rows = [[name, f"{p50:.3f}", f"{p90:.3f}"] for name, (p50, p90) in study["parts"].items()]
    return table(("part", "p50, ms", "p90, ms"), rows, "Milliseconds of the parts of a call")


def _rates(study: Json) -> str:
    alone = study["rates"]["runtime"]
    rows = [[name, f"{rate:.2f}", number(rate / alone if alone else None, 2)] for name, rate in study["rates"].items()]
    return table(("name", "images per second", "of the runtime's"), rows, "Images per second")


def _memory(study: Json) -> str:
    """Return what the process held; nothing where the system doesn't tell."""
    rows = [[told, f"{study[name] / 1e6:.0f}"] for name, told in MEMORY.items() if study[name] is not None]
    if study["grown"] is not None:
        rows.append([f"grown by {plural(study['calls'], 'call')}", f"{study['grown'] / 1e6:+.1f}"])
    shown = table(("name", "MB"), rows, "Memory of the process")
    return paragraph("Memory of the whole process:") + shown if rows else ""
