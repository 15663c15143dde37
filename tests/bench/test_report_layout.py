"""The page as a browser lays it out: nothing overlaps, nothing leaves its plot, legible on a screen and on a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("plotly")

from browser import find_in_page, needs_browser
from report_content import ablation_study, precision_study, profile_study, sweep
from rtdetr_bench.report.page import write_report
from rtdetr_bench.results import read_results
from rtdetr_deploy.evaluate.published import POINTS

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
NAMES = (
    "latency-blood-cells", "nms-blood-cells", "latency-640", "decoder-blood-cells", "decoder-r50", "encoder-r50",
    "precision-blood-cells-r18", "roofline-t4",
)  # fmt: skip
MEASURE = """
return {
  page: [root.scrollWidth, root.clientWidth],
  tables: [...page.querySelectorAll('.wide')].map(item => [item.scrollWidth, item.clientWidth]),
  plots: [...page.querySelectorAll('.plot')].map(plot => ({
    title: plot.previousElementSibling.textContent,
    box: box(plot),
    marks: [...plot.querySelectorAll('.scatterlayer .point')].map(box),
    labels: [...plot.querySelectorAll('.annotation-text')].map(item => ({ text: item.textContent, box: box(item) })),
    texts: [...plot.querySelectorAll('text')].filter(item => item.textContent.trim()).map(item => ({
      text: item.textContent, box: box(item), size: parseFloat(getComputedStyle(item).fontSize),
    })),
  })),
};
"""


def _lay_out(width: int, folder: Path) -> dict[str, Any]:
    """Return sizes of the page of the results that are kept here and of those made by hand, so many pixels wide."""
    kept = [read_results(RESULTS / f"{name}.json") for name in NAMES]
    write_report(folder / "report.html", [*kept, sweep(), precision_study(), ablation_study(), profile_study()])
    return dict(find_in_page((folder / "report.html").read_text(), MEASURE, folder, width))


def _overlap(one: list[float], other: list[float]) -> float:
    """Return by how many pixels two boxes overlap, in the direction where they do less."""
    return min(min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1]))


@needs_browser
@pytest.mark.parametrize("width", [1200, 420])
def test_nothing_overlaps_and_everything_is_legible(width: int, tmp_path: Path) -> None:
    found = _lay_out(width, tmp_path)
    assert found["page"][0] <= found["page"][1]  # the page itself never scrolls sideways
    if width == 1200:
        assert sum(inner > outer for inner, outer in found["tables"]) <= 1  # a sweep's table scrolls inside
    assert len(found["plots"]) == 24
    for plot in found["plots"]:
        texts = plot["texts"]
        assert len(texts) > 5, plot["title"]
        for index, one in enumerate(texts):
            assert one["size"] >= 11, one
            outside = [plot["box"][i] - one["box"][i] if i < 2 else one["box"][i] - plot["box"][i] for i in range(4)]
            assert max(outside) < 1, (plot["title"], one)
            for other in texts[:index]:
                assert _overlap(one["box"], other["box"]) < 3.0, (plot["title"], one, other)  # texts have some air


@needs_browser
@pytest.mark.parametrize(("width", "count"), [(1200, len(POINTS)), (420, 12)])
def test_labels_cover_no_point_and_are_left_out_where_there_is_no_room(width: int, count: int, tmp_path: Path) -> None:
    plots = {plot["title"]: plot for plot in _lay_out(width, tmp_path)["plots"]}
    for title in ("AP against latency", "AP against throughput", "Published: T4, TensorRT FP16, COCO val2017"):
        for label in plots[title]["labels"]:
            for mark in plots[title]["marks"]:
                centre = [(mark[0] + mark[2]) / 2 - 3, (mark[1] + mark[3]) / 2 - 3] * 2
                centre = [centre[0], centre[1], centre[0] + 6, centre[1] + 6]
                assert _overlap(label["box"], centre) <= 0, (title, label)
    published = plots["Published: T4, TensorRT FP16, COCO val2017"]
    assert len({label["text"] for label in published["labels"]}) >= count
    latency = [label["text"] for label in plots["AP against latency"]["labels"]]
    assert {"l1 q300", "l3 q300"} <= set(latency)  # the recommended one, and of others on the front what has room


def test_every_published_family_is_labelled() -> None:
    names = [point.name for point in POINTS]
    assert len(set(names)) == len(names)
    assert {point.name for point in POINTS if point.family == "RT-DETRv2"} == {"v2-S", "v2-M*", "v2-M", "v2-L", "v2-X"}
