"""The report's section on the cost model: estimates, and called so."""

from __future__ import annotations

from html import escape
from typing import Any

from rtdetr_bench.report.html import figure, table
from rtdetr_bench.roofline.tables import Table, head_of, tables_of

Json = dict[str, Any]


def roofline_section(study: Json) -> str:
    """Return what `rtdetr-bench roofline` found, as a part of the page: the tables that the command prints."""
    from rtdetr_bench.report.plots import plot_roofline

    gpu, told = escape(study["gpu"]["name"]), escape(head_of(study))
    return (
        f"<h2>Estimated cost on {gpu}</h2><p><b>Not a measurement.</b> {told}</p>"
        + figure(plot_roofline(study["models"]), narrow=True)
        + "".join(map(_shown, tables_of(study)))
    )


def _shown(content: Table) -> str:
    rows = table(content.head, content.rows) if content.rows else ""
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in content.notes)
    return f"<p>{escape(content.title)}</p>{rows}{notes}"
