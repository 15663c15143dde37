"""A real browser, where there is one: lays a page out at any width and tells what a script finds in it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
_WAIT = """
const frame = document.getElementById('page'), told = document.getElementById('found');
async function find() {
  const page = frame.contentDocument, root = page.documentElement;
  while (page.getElementById('plotless') !== null) await new Promise(done => setTimeout(done, 20));
  const box = item => { const r = item.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
  MEASURE
}
frame.onload = () => find().then(
  found => { told.textContent = JSON.stringify({ found }); },
  error => { told.textContent = JSON.stringify({ error: String(error.stack ?? error) }); },
);
"""
_HEADLESS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=60000")


def find_in_page(page: str, measure: str, folder: Path, width: int = 1200, options: tuple[str, ...] = ()) -> Any:
    """Return what the script `measure` returns about `page`, whose plots are drawn, so many pixels wide.

    The script has `page` (its document), `root`, `frame` and `box(element)`.
    """
    frame = f'<iframe id="page" style="width:{width}px;height:9000px;border:0" srcdoc="{escape(page)}"></iframe>'
    (folder / "frame.html").write_text(
        f'<!doctype html><meta charset="utf-8"><body>{frame}<pre id="found"></pre>'
        f"<script>{_WAIT.replace('MEASURE', measure)}</script>"
    )
    result = run_headless(
        [f"--window-size={max(width, 500)},900", "--dump-dom", *options], folder, folder / "frame.html"
    )
    found = re.search(r'<pre id="found">(.+?)</pre>', result, re.DOTALL)
    assert found is not None, "the page was not drawn in time"
    told = json.loads(unescape(found[1]))
    assert "error" not in told, told
    return told["found"]


def take_picture(page: Path, picture: Path, size: tuple[int, int], *options: str) -> None:
    """Write a picture of a page, `size` (width, height) in pixels."""
    run_headless([f"--window-size={size[0]},{size[1]}", f"--screenshot={picture}", *options], picture.parent, page)


def run_headless(options: list[str], folder: Path, page: Path) -> str:
    """Open a page with these options of Chromium; return what it prints."""
    command = [str(BROWSER), *_HEADLESS, *options, f"--user-data-dir={folder / 'profile'}", page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
