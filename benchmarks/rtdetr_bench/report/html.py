"""Pieces of the page that all its sections use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

TEXTS = frozenset({"model", "runtime", "precision", "NMS", "module", "nodes"})
"""Columns of words, which may wrap."""


def figure(svg: str, *, narrow: bool = False) -> str:
    """Return a plot's SVG framed; a `narrow` one is made for the width of a phone."""
    return f'<figure class="narrow">{svg}</figure>' if narrow else f"<figure>{svg}</figure>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows below their heads; a table that is wider than the page scrolls."""
    kinds = [' class="text"' if name in TEXTS else "" for name in head]
    top = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(head, kinds, strict=True))
    cells = (zip(row, kinds, strict=True) for row in rows)
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(str(cell))}</td>" for cell, kind in row) + "</tr>" for row in cells
    )
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'
