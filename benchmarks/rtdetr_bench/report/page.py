"""One HTML page of results: self-contained, light and dark, for screens, phones and paper, nothing fetched.

The page's own policy forbids to fetch anything, and to run a script that is not one of these files.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
import shlex
from collections.abc import Callable, Sequence
from functools import cache
from html import escape, unescape
from pathlib import Path
from typing import Any

from rtdetr_bench.machine import machine_text, state_text
from rtdetr_bench.options import ReportOptions
from rtdetr_bench.report.html import anchor
from rtdetr_bench.report.sections.accuracy import ablation_section, accuracy_section
from rtdetr_bench.report.sections.decoder import decoder_section, encoder_section
from rtdetr_bench.report.sections.latency import ACCURACY, comparison_section, scenarios_section
from rtdetr_bench.report.sections.nms import nms_section
from rtdetr_bench.report.sections.pipeline import pipeline_section
from rtdetr_bench.report.sections.precision import precision_section
from rtdetr_bench.report.sections.profile import profile_section
from rtdetr_bench.report.sections.published import published_section
from rtdetr_bench.report.sections.roofline import roofline_section
from rtdetr_bench.report.sections.sweep import sweep_section
from rtdetr_bench.results import BAD_CONTENT, Json, edited, read_results, with_study_named
from rtdetr_deploy import OptionError
from rtdetr_deploy.files import write_bytes
from rtdetr_deploy.packages import require

SECTIONS: dict[str, Callable[[Any], str]] = {
    "sweep": sweep_section,
    "comparison": comparison_section,
    "scenarios": scenarios_section,
    "nms": nms_section,
    "decoder": decoder_section,
    "encoder": encoder_section,
    "precision": precision_section,
    "ablation": ablation_section,
    "accuracy": accuracy_section,
    "pipeline": pipeline_section,
    "profile": profile_section,
    "roofline": roofline_section,
}
SCRIPTS = ("tables.js", "labels.js", "plots.js")
PLOTLESS = "Plots need a browser with JavaScript, of 2023 or later. The tables hold all of their figures."


def require_plots() -> None:
    """Raise `MissingPackageError` without plotly."""
    require("plotly.offline", "a report", "bench")


def write_report(path: Path, contents: Sequence[Json]) -> None:
    """Write the page for the contents of one or more results, a sweep's file among them.

    Raises `MissingPackageError` without plotly, `OptionError` when there is nothing to show, `OutputError`.
    """
    require_plots()
    _write_page(path, [part for content in contents if (part := _sections(content))])


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
    _write_page(options.output, [part for part in parts if part])


def _sections(content: Json) -> str:
    """Return where and how a result was measured, and all that it shows; nothing where it shows nothing."""
    content = with_study_named(content)
    shown = "".join(make(content[name]) for name, make in SECTIONS.items() if content.get(name))
    return _origin(content) + shown if shown else ""


def _write_page(path: Path, parts: Sequence[str]) -> None:
    if not parts:
        raise OptionError("there is nothing to show in a report: no comparison and no study")
    sections = "".join(parts)
    if ACCURACY in sections:
        sections += published_section()
    write_bytes(path, _page(sections).encode("utf-8", "backslashreplace"))


def _page(sections: str) -> str:
    """Return the page around its sections."""
    body, contents = _with_anchors(sections)
    plots = 'class="plot"' in body
    library, scripts = (_plotly() if plots else ""), [_own(name) for name in SCRIPTS]
    packed = base64.b64encode(gzip.compress(library.encode(), mtime=0)).decode() if plots else ""
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title in contents)
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy([library, *scripts])}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>rtdetr-bench</title>\n<style>\n{_own('page.css')}</style></head>\n<body><header><h1>rtdetr-bench</h1>"
        f'<nav aria-label="Contents"><ol>{links}</ol></nav></header><main>'
    )
    tail = "".join(f"\n<script>{script}</script>" for script in scripts)
    if plots:
        tail = f'\n<script type="text/plain" id="library">{packed}</script>{tail}'
    size = (len(head) + len(body) + len(tail)) / 1e6
    return f"{head}{body}</main>{_footer(size, len(packed) / 1e6)}{tail}</body></html>\n"


def _footer(megabytes: float, library: float) -> str:
    """Return what the page weighs, and what to do where its plots are not drawn."""
    told = f"One file of {megabytes:.1f} MB that needs no network"
    if library:
        from plotly.offline import get_plotlyjs_version

        told += f"; {library:.1f} of them are plotly.js {get_plotlyjs_version()} (MIT licence), which draws the plots"
    note = f'<p id="plotless" class="told">{PLOTLESS}</p>' if library else '<p id="plotless" hidden></p>'
    return f'<footer class="origin soft">{note}<p>{told}. Press a column\'s head to sort by it.</p></footer>'


def _with_anchors(sections: str) -> tuple[str, list[tuple[str, str]]]:
    """Give each heading an id; also return ids and titles, as HTML."""
    taken: set[str] = set()
    contents: list[tuple[str, str]] = []

    def named(found: re.Match[str]) -> str:
        contents.append((anchor(unescape(found[1]), taken), found[1]))
        return f'<h2 id="{contents[-1][0]}">{found[1]}</h2>'

    return re.sub(r"<h2>(.*?)</h2>", named, sections, flags=re.DOTALL), contents


def _policy(scripts: Sequence[str]) -> str:
    """Return a policy that lets exactly these scripts run and nothing be fetched; pictures are those one saves."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


@cache
def _own(name: str) -> str:
    return (Path(__file__).parent / "browser" / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _origin(content: Json) -> str:
    """Tell when, how and on what machine a result was measured, and the machine's state when the measurement ended."""
    date = str(content.get("date", "")).replace("T", " ").replace("Z", " UTC")
    machine = machine_text(content["machine"], (content.get("options") or {}).get("threads"))
    parts = [f"Measured {date} on {machine}.".replace("  ", " ")]
    state = (content.get("comparison") or {}).get("state") or content.get("state")
    if state:
        parts.append(f"At the end: {state_text(state)}.")
    if not any(content.get(name) for name in SECTIONS if name != "roofline"):
        parts = [f"Computed {date}."]
    command = shlex.join(content.get("command", ()))
    told = f"<br><code>{escape(command)}</code>" if command else ""
    return f'<p class="soft origin">{escape(" ".join(parts))}{told}</p>'
