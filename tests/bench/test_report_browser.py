"""The page's scripts in a real browser: labels, sorting, printing, and names that are hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("plotly")

import numpy as np

from browser import BROWSER, find_in_page, needs_browser, run_headless
from report_content import HOSTILE, all_results, model_row, sweep
from rtdetr_bench.report.html import table
from rtdetr_bench.report.page import write_report

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks" / "rtdetr_bench" / "report" / "browser"
PLACE = """
return frame.contentWindow.eval(page.getElementById('labels').textContent + `
  LABELS.map(labels => placeLabels(labels, [500, 300], [[100, 0, 104, 300]]))`);
"""


def _place(clouds: list[list[dict[str, Any]]], folder: Path) -> Any:
    """Return the places of the labels of each cloud of points, in a plot of 500 x 300 pixels with a line at x = 100."""
    script = (SCRIPTS / "labels.js").read_text().replace("const ", "var ")
    measure = PLACE.replace("LABELS", json.dumps(clouds))
    return find_in_page(f'<script type="text/plain" id="labels">{script}</script>', measure, folder)


def _cloud(count: int, generator: np.random.Generator) -> list[dict[str, Any]]:
    places = generator.uniform((0, 0), (500, 300), (count, 2)).tolist()
    return [{"x": x, "y": y, "text": "name", "width": 70, "height": 16} for x, y in places]


def _overlap(one: list[float], other: list[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _distance(box: list[float], point: dict[str, Any]) -> float:
    x, y = point["x"], point["y"]
    return float(np.hypot(max(box[0] - x, x - box[2], 0), max(box[1] - y, y - box[3], 0)))


@needs_browser
def test_labels_never_cover_each_other_a_point_or_a_line_and_stay_inside(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    clouds = [_cloud(count, generator) for count in (1, 5, 20, 60, 200)]
    shares = []
    for cloud, places in zip(clouds, _place(clouds, tmp_path), strict=True):
        boxes = [place["box"] for place in places if place]
        assert len(places) == len(cloud)
        shares.append(len(boxes) / len(cloud))
        marks = [[one["x"] - 6, one["y"] - 6, one["x"] + 6, one["y"] + 6] for one in cloud]
        for one, place in zip(cloud, places, strict=True):
            if place and not place["far"]:  # nearest to its own point
                assert all(_distance(place["box"], one) <= _distance(place["box"], other) for other in cloud)
        for index, box in enumerate(boxes):
            assert min(box[:2]) >= 0
            assert box[2] <= 500
            assert box[3] <= 300
            assert not any(_overlap(box, other) for other in [*boxes[:index], *marks, [100, 0, 104, 300]])
    assert shares[:3] == [1.0, 1.0, 1.0]
    assert 0.02 < shares[-1] < 0.5  # what has no room is left out


@needs_browser
def test_the_first_label_has_the_first_choice_and_a_point_without_a_text_keeps_others_off(tmp_path: Path) -> None:
    point = {"x": 250, "y": 150, "text": "a", "width": 70, "height": 16}
    bare = {**point, "x": 290, "text": ""}
    (first, second), (left, nothing), (alone,) = _place([[point, point], [point, bare], [point]], tmp_path)
    assert alone["x"] > 250
    assert not alone["far"]
    assert first == alone
    assert second["x"] < 250
    assert left["x"] < 250
    assert nothing is None


ROWS = (("b", "10.5", "-"), ("a", "9", "2"), ("c", "-", "10"), ("d", "100 [90, 110]", "x1"))
SORT = """
const heads = [...page.querySelectorAll('thead th')], told = [];
for (const index of [1, 1, 0, 2]) {
  heads[index].querySelector('button').click();
  const column = [...page.querySelectorAll('tbody tr')].map(row => row.cells[0].textContent).join('');
  told.push([column, heads.map(head => head.getAttribute('aria-sort'))]);
}
const button = heads[0].querySelector('button');
button.focus();
return [told, page.activeElement === button, button.tabIndex];
"""


@needs_browser
def test_a_columns_head_sorts_its_table_numbers_as_numbers(tmp_path: Path) -> None:
    script = (SCRIPTS / "tables.js").read_text()
    page = f"<!doctype html>{table(('name', 'ms', 'words'), ROWS)}<script>{script}</script>"
    told, focused, tab = find_in_page(page, SORT, tmp_path)
    assert told == [
        ["abdc", [None, "ascending", None]],
        ["dbac", [None, "descending", None]],  # what has no value stays last
        ["abcd", ["ascending", None, None]],
        ["acdb", [None, None, "ascending"]],  # 2, 10, x1: words, by the numbers in them
    ]
    assert (focused, tab) == (True, 0)  # so a keyboard reaches it


HACKED = """
return [frame.contentWindow.hacked ?? null, root.textContent.includes('hacked'), page.querySelectorAll('b i').length];
"""


@needs_browser
@pytest.mark.parametrize(
    "name",
    [
        "<script>hacked = 1</script>", "</script><script>hacked = 1</script>", "<img src=x onerror=hacked=1>",
        "<!--<script>hacked = 1", '"><b><i onmouseover=hacked=1>', "<a href='javascript:hacked=1'>hacked</a>",
    ],
)  # fmt: skip
def test_hostile_names_are_text(name: str, tmp_path: Path) -> None:
    content = {**all_results(), **dict.fromkeys(("scenarios", "nms", "decoder", "encoder", "roofline"))}
    content["comparison"]["models"] = [model_row(name, 1.0, 0.5), model_row("other", 2.0, 0.6)]
    content["comparison"]["pairs"] = []
    write_report(tmp_path / "a.html", [content])
    assert find_in_page((tmp_path / "a.html").read_text(), HACKED, tmp_path) == [None, True, 0]


@needs_browser
def test_the_page_forbids_scripts_that_are_not_its_own_and_fetches_nothing(tmp_path: Path) -> None:
    write_report(tmp_path / "a.html", [sweep()])
    page = (tmp_path / "a.html").read_text()
    assert HOSTILE not in page
    injected = "<script>hacked = 1</script><img id=far src=http://127.0.0.1:9/a.png><body onload='hacked=2'>"
    told = find_in_page(
        page.replace("<main>", f"<main>{injected}"),
        """
        const refused = await new Promise(done => {
          page.addEventListener('securitypolicyviolation', event => done(event.violatedDirective));
          page.getElementById('far').src = 'http://127.0.0.1:9/b.png';
        });
        const view = frame.contentWindow, fetched = view.performance.getEntriesByType('resource').map(one => one.name);
        const drawn = page.querySelectorAll('.main-svg').length > 2;
        return [view.hacked ?? null, refused, drawn, fetched.filter(name => !name.includes(':9/'))];
        """,
        tmp_path,
    )
    assert told == [None, "img-src", True, []]


@needs_browser
def test_it_prints_light_and_within_the_paper(tmp_path: Path) -> None:
    write_report(tmp_path / "a.html", [sweep()])
    told = find_in_page(
        (tmp_path / "a.html").read_text(),
        """
        const view = frame.contentWindow, settled = () => new Promise(done => setTimeout(done, 1500));
        const ink = () => view.getComputedStyle(page.querySelector('.xtitle')).fill;
        const before = [ink(), page.querySelector('.main-svg').clientWidth];
        view.dispatchEvent(new Event('beforeprint'));
        await settled();
        const printed = [ink(), page.querySelector('.main-svg').clientWidth];
        view.dispatchEvent(new Event('afterprint'));
        await settled();
        return [before, printed, [ink(), page.querySelector('.main-svg').clientWidth]];
        """,
        tmp_path,
        options=("--blink-settings=preferredColorScheme=0",),
    )
    before, printed, after = told
    assert before == after
    assert before[0] == "rgb(230, 233, 239)"
    assert printed == ["rgb(28, 34, 48)", 640]
    assert BROWSER is not None
    run_headless([f"--print-to-pdf={tmp_path / 'a.pdf'}"], tmp_path, tmp_path / "a.html")
    assert (tmp_path / "a.pdf").stat().st_size > 20_000
