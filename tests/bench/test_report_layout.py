"""The page as a browser lays it out: nothing overlaps, nothing leaves its plot, legible on a screen and on a phone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from rtdetr_bench.options import ReportOptions
from rtdetr_bench.report.labels import Label, place_labels
from rtdetr_bench.report.page import combine_results
from rtdetr_deploy.evaluate.published import POINTS

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
NAMES = ("latency-blood-cells", "nms-blood-cells", "latency-640", "decoder-blood-cells", "decoder-r50", "encoder-r50")
MEASURE = """
const page = document.getElementById('page').contentDocument, root = page.documentElement;
const box = item => { const r = item.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
document.getElementById('found').textContent = JSON.stringify({
  page: [root.scrollWidth, root.clientWidth],
  tables: [...page.querySelectorAll('.wide')].map(item => [item.scrollWidth, item.clientWidth]),
  plots: [...page.querySelectorAll('svg')].map(svg => ({
    box: box(svg),
    texts: [...svg.querySelectorAll('text')].map(item => ({
      text: item.textContent, box: box(item),
      size: parseFloat(getComputedStyle(item).fontSize) * Math.hypot(item.getScreenCTM().c, item.getScreenCTM().d),
    })),
  })),
});
"""


def _lay_out(width: int, folder: Path) -> dict[str, Any]:
    """Return sizes of the page of the results that are kept here, in a frame so many pixels wide."""
    combine_results(ReportOptions(tuple(RESULTS / f"{name}.json" for name in NAMES), folder / "report.html"))
    page = escape((folder / "report.html").read_text())
    frame = f'<iframe id="page" style="width:{width}px;height:9000px;border:0" srcdoc="{page}"></iframe>'
    (folder / "frame.html").write_text(
        f'<!doctype html><meta charset="utf-8"><body>{frame}<pre id="found"></pre>'
        f"<script>document.getElementById('page').onload = () => {{{MEASURE}}};</script>"
    )
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,900", "--dump-dom",
        f"--user-data-dir={folder / 'profile'}", (folder / "frame.html").as_uri(),
    ]  # fmt: skip
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="found">(.+?)</pre>', result.stdout, re.DOTALL)
    assert found is not None
    return dict(json.loads(unescape(found[1])))


def _overlap(one: list[float], other: list[float]) -> float:
    """Return by how many pixels two boxes overlap, in the direction where they do less."""
    return min(min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1]))


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1200, 420])
def test_nothing_overlaps_and_everything_is_legible(width: int, tmp_path: Path) -> None:
    found = _lay_out(width, tmp_path)
    assert found["page"][0] <= found["page"][1]  # the page itself never scrolls sideways
    if width == 1200:
        assert all(inner <= outer for inner, outer in found["tables"])
    assert len(found["plots"]) == 8
    for plot in found["plots"]:
        texts = plot["texts"]
        assert len(texts) > 10
        for index, one in enumerate(texts):
            assert one["size"] >= 8.9, one
            outside = [plot["box"][i] - one["box"][i] if i < 2 else one["box"][i] - plot["box"][i] for i in range(4)]
            assert max(outside) < 1, one
            for other in texts[:index]:
                assert _overlap(one["box"], other["box"]) < 3.0, (one, other)  # boxes of text have some air


def test_labels_cover_neither_each_other_nor_a_point_and_stay_inside() -> None:
    figure = Figure(figsize=(8, 6))
    axes = figure.add_subplot()
    points = [(point.fps, point.ap, point.name) for point in POINTS] + [(216.0, 54.8, "a long name at the corner.onnx")]
    axes.scatter([x for x, _, _ in points], [y for _, y, _ in points])
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    place_labels(axes, [Label(*point) for point in points])
    inside = axes.get_window_extent()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == [name for _, _, name in points]
    where = axes.transData.transform([(x, y) for x, y, _ in points])
    for index, box in enumerate(boxes):
        assert inside.x0 <= box.x0 < box.x1 <= inside.x1
        assert inside.y0 <= box.y0 < box.y1 <= inside.y1
        assert not any(box.overlaps(other) for other in boxes[:index])
        assert not any(box.contains(x, y) for x, y in where)


def test_every_published_family_is_labelled() -> None:
    names = [point.name for point in POINTS]
    assert len(set(names)) == len(names)
    assert {point.name for point in POINTS if point.family == "RT-DETRv2"} == {"v2-S", "v2-M*", "v2-M", "v2-L", "v2-X"}
