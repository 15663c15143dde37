"""Pieces of the page that all its sections use: everything that comes from results is escaped here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from html import escape

from rtdetr_bench.report.plot import Plot

TEXTS = frozenset({
    "model", "name", "runtime", "arithmetic", "precision", "NMS", "module", "nodes", "file", "reason", "doubt",
    "export", "run", "resizer", "part", "operator", "kernel",
})  # fmt: skip
"""Columns of words, which may wrap."""


def section(title: str, *parts: str) -> str:
    """Return a section of the page below its heading."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def paragraph(*sentences: str) -> str:
    """Return sentences, escaped, as a paragraph; nothing where all are empty."""
    told = " ".join(sentence for sentence in sentences if sentence)
    return f"<p>{escape(told)}</p>" if told else ""


def plots(*panels: Plot) -> str:
    """Return plots that share nothing: beside each other on a wide screen, below each other on a narrow one."""
    return f'<div class="panels">{"".join(map(_figure, panels))}</div>'


def _figure(panel: Plot) -> str:
    return (
        f'<figure><figcaption>{escape(panel.title)}</figcaption><div class="plot" role="img" '
        f'style="height:{panel.height}px" aria-label="{escape(panel.description)}"></div>'
        f'<script type="application/json">{script_text(panel.to_json())}</script></figure>'
    )


def script_text(value: object) -> str:
    """Return `value` as JSON that can't end the script element that holds it."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """Return rows below their heads, which sort them on the page; a table that is wider than the page scrolls.

    The first cell of a row names it and stays in view. `caption` is told to screen readers alone.
    """
    kinds = [' class="text"' if name in TEXTS else "" for name in head]
    top = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(head, kinds, strict=True))
    body = "".join(f"<tr>{_cells(row, kinds)}</tr>" for row in rows)
    label = escape(caption or f"Table: {', '.join(name for name in head if name)}")
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{label}"><table>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cells(row: Sequence[object], kinds: Sequence[str]) -> str:
    tags = ['th scope="row"', *["td"] * (len(row) - 1)]
    return "".join(
        f"<{tag}{kind}>{escape(str(cell))}</{tag[:2]}>" for cell, kind, tag in zip(row, kinds, tags, strict=True)
    )


def anchor(title: str, taken: set[str]) -> str:
    """Return an id for a heading that no other has, and add it to `taken`."""
    word = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
    name = next(name for name in _numbered(word) if name not in taken)
    taken.add(name)
    return name


def _numbered(word: str) -> Iterable[str]:
    yield word
    yield from (f"{word}-{number}" for number in range(2, 10_000))
