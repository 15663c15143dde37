"""A sweep's plan, front, recommendation and state, without a model."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from rtdetr_bench.options import EvaluationSet
from rtdetr_bench.sweep.axes import (
    Candidate,
    ModelFile,
    Subject,
    Way,
    parse_way,
    usual_layers,
    usual_queries,
    usual_sizes,
)
from rtdetr_bench.sweep.files import attempt, export_command
from rtdetr_bench.sweep.front import beats_clearly, find_front, is_beaten
from rtdetr_bench.sweep.options import GridOptions, LimitOptions, SweepOptions, parse_budget, parse_cascade
from rtdetr_bench.sweep.plan import build_plan, format_plan, show_seconds
from rtdetr_bench.sweep.recommend import Measured, is_as_fast, ratio, recommend
from rtdetr_bench.sweep.rows import Row, format_rows, to_csv, to_json
from rtdetr_bench.sweep.speed import Contender, Speed, make_groups
from rtdetr_bench.sweep.state import NAME, State, digest_folder
from rtdetr_deploy import OptionError
from rtdetr_deploy.errors import ExportError, OutputError
from rtdetr_export import ExportOptions

ORT, OPENVINO = Way("onnxruntime", "fp32"), Way("openvino", "fp32")


def subject(**changes: Any) -> Subject:
    return Subject(**{
        "weights": Path("r50.pth"), "digest": "0", "class_names": ("a",), "layers": 6, "max_layers": 6, "queries": 300,
        "size": (640, 640), **changes,
    })  # fmt: skip


def options(grid: GridOptions | None = None, **changes: Any) -> SweepOptions:
    data = EvaluationSet(Path("val.json"), Path("val"))
    return SweepOptions(
        Path("r50.pth"), data, Path("out"), grid=grid or GridOptions(runtime=("onnxruntime",)), **changes
    )


def row(layers: int, ms: float, ap: float | None, spread: float = 0.001, session: str = "a", **changes: Any) -> Row:
    """Return a row of so many layers, whose queries take about `ms` milliseconds."""
    single = tuple(np.random.default_rng(layers).normal(ms, spread * ms, 65))
    rounds = tuple(number // 13 for number in range(65))
    speed = Speed(single, (8 * ms,), ((8, 8 * ms / 1000),), rounds, session)
    candidate = Candidate(ModelFile(layers=layers, queries=300, size=(640, 640)), ORT)
    return Row(
        candidate,
        f"rtdetr-export --weights /data/r50.pth --layers {layers}",
        "Predictor(...)",
        **{"megabytes": 80.0, "speed": speed, "ap": ap, "ap50": ap, "match_rate": 1.0, **changes},
    )


def test_front_is_what_no_point_beats() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        points = {str(i): (float(rng.integers(1, 9)), float(rng.integers(0, 9)) / 10) for i in range(12)}
        front = find_front(points)
        every = list(points.values())
        assert front == {name for name, point in points.items() if not is_beaten(point, every)}
        assert front
        assert all(is_beaten(points[name], [points[one] for one in front]) for name in points.keys() - front)


def test_what_is_clearly_beaten_is_never_on_the_front() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        points = {str(i): (float(rng.uniform(1, 9)), float(rng.uniform(0, 1))) for i in range(12)}
        front = find_front(points)
        assert all(beats_clearly(name, points) is None for name in front)
    assert beats_clearly("slow", {"slow": (10.0, 0.5), "fast": (7.9, 0.5)}) == "fast"
    assert beats_clearly("slow", {"slow": (10.0, 0.5), "fast": (8.1, 0.5)}) is None
    assert beats_clearly("slow", {"slow": (10.0, 0.5), "worse": (1.0, 0.49)}) is None


def test_default_grid_follows_the_model() -> None:
    assert usual_layers(subject()) == (6, 5, 4, 3)
    assert usual_layers(subject(layers=3)) == (3, 2)
    assert usual_layers(subject(layers=1)) == (1,)
    assert usual_queries(subject()) == (300, 100)
    assert usual_queries(subject(queries=100)) == (100,)
    assert usual_sizes(subject()) == ((640, 640), (512, 512), (480, 480))
    assert usual_sizes(subject(size=(288, 288))) == ((288, 288), (224, 224), (192, 192))
    assert usual_sizes(subject(size=(64, 64))) == ((64, 64),)


def test_plan_leaves_out_what_cant_be_with_the_reason() -> None:
    grid = GridOptions(layers=(3, 2), queries=(300, 100), cascade=(None, "2:100"), size=((640, 640), (96, 96)),
                       precision=("fp32", "fp16"), runtime=("onnxruntime",))  # fmt: skip
    plan = build_plan(options(grid), subject())
    names = [candidate.name for candidate in plan.candidates]
    assert names == [
        "l3-q300-640x640-fp32@onnxruntime", "l3-q300-96x96-fp32@onnxruntime",
        "l3-q300-c2x100-640x640-fp32@onnxruntime", "l3-q300-c2x100-96x96-fp32@onnxruntime",
        "l3-q100-640x640-fp32@onnxruntime", "l3-q100-96x96-fp32@onnxruntime",
        "l2-q300-640x640-fp32@onnxruntime", "l2-q300-96x96-fp32@onnxruntime",
        "l2-q100-640x640-fp32@onnxruntime", "l2-q100-96x96-fp32@onnxruntime",
    ]  # fmt: skip
    left_out = [name for several in plan.left_out.values() for name in several]
    assert len(left_out) + len(names) == len(list(product(range(2), repeat=5)))
    assert set(plan.left_out) == {
        "FP16 files are for engines: CPUs have no arithmetic for them",
        "a cascade after layer 2 needs more than 2 layers", "a cascade to 100 leaves none of 100 queries out",
    }  # fmt: skip
    text = format_plan(plan, 7200.0)
    assert "11 files to export, 10 candidates: 10 by onnxruntime" in text
    assert "left out" in text
    assert "estimated time: 2.0 h" in text


def test_an_input_with_fewer_tokens_than_queries_is_tried_once() -> None:
    grid = GridOptions(layers=(3,), queries=(300, 250, 100), cascade=(None, "1:190"), size=((96, 96),),
                       runtime=("onnxruntime",))  # fmt: skip
    plan = build_plan(options(grid), subject())
    names = [candidate.name for candidate in plan.candidates]
    assert names == ["l3-q300-96x96-fp32@onnxruntime", "l3-q100-96x96-fp32@onnxruntime"]
    assert "inputs of 96x96 have 189 tokens: the same as with 300 queries" in plan.left_out
    assert "a cascade to 190 leaves none of 189 queries out" in plan.left_out


def test_only_patterns_cut_the_plan() -> None:
    grid = GridOptions(runtime=("onnxruntime",), only=("l6-*-640x640-*", "l3-q100-480*"))
    names = {candidate.name for candidate in build_plan(options(grid), subject()).candidates}
    assert names == {
        "l6-q300-640x640-fp32@onnxruntime", "l6-q100-640x640-fp32@onnxruntime", "l3-q100-480x480-fp32@onnxruntime",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"layers": (9,)}, "`layers` is 9, but r50.pth has 6 decoder layers"),
        ({"queries": (900,)}, "`queries` is 900, but r50.pth has 300 queries"),
        ({"only": ("*int4*",)}, "`only` '.int4.' matches nothing; there are l6-q300"),
        ({"precision": ("fp16",)}, "nothing is left to try: FP16 files are for engines"),
        ({"layers": (0,)}, "`layers` is 0, expected a whole number from 1 up"),
        ({"layers": (3, 3)}, "`layers` is .3, 3., expected different values"),
        ({"size": ((100, 100),)}, "`size` is 100x100, expected multiples of 32"),
        (
            {"runtime": ("openvino:int4",)},
            "`runtime` is 'openvino:int4', expected one of onnxruntime, openvino, openvino:bf16",
        ),
        ({"precision": ("int4",)}, "`precision` is 'int4', expected one of fp32, fp16, int8"),
        ({"precision": ("int8",)}, '`precision="int8"` needs `calibration`'),
        ({"cascade": ("2",)}, "`cascade` is '2', expected K:N"),
        ({"batch": 0}, "`batch` is 0, expected a whole number"),
    ],
)
def test_grids_that_fit_nothing_are_refused(grid: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build_plan(options(GridOptions(**{"runtime": ("onnxruntime",), **grid})), subject())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "`rounds` is 0, expected a whole number from 1 to 1000"),
        ({"max_images": 0}, "`max_images` is 0, expected a whole number from 1 up"),
        ({"grid": GridOptions(precision=("fp32",)), "calibration": Path("x")}, "`calibration` is for INT8"),
    ],
)
def test_options_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        options(**changes)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"budget": 30.0, "min_ap": 0.5}, "`budget` and `min_ap` both say what decides"),
        ({"within": 1.5}, "`within` is 1.5, expected a number from 0 to 1"),
        ({"budget": float("nan")}, "`budget` is nan, expected milliseconds above 0"),
    ],
)
def test_limits_are_checked(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        LimitOptions(**limits)


def test_texts_of_limits_and_axes_are_read() -> None:
    assert (parse_budget("30ms"), parse_budget("30"), parse_budget("0.5s")) == (30.0, 30.0, 500.0)
    with pytest.raises(OptionError, match="`budget` is 'soon', expected a time like 30ms"):
        parse_budget("soon")
    assert (parse_cascade("2:100"), parse_cascade("none")) == ("2:100", None)
    assert parse_way("openvino") == OPENVINO
    assert str(parse_way("openvino:bf16")) == "openvino:bf16"
    assert parse_way("openvino:bf16").where == {"precision": "bf16"}
    assert [show_seconds(seconds) for seconds in (40, 600, 7200)] == ["40 s", "10 min", "2.0 h"]


def test_recommends_the_fastest_within_an_ap_of_the_best() -> None:
    rows = [row(6, 30, 0.530), row(5, 27, 0.529), row(4, 24, 0.526), row(3, 20, 0.510)]
    found = recommend(rows, LimitOptions())
    assert found.row is rows[2]
    assert "is the fastest within 0.005 AP of the best: p90 24.0 ms, AP 0.5260, 100.0 %" in found.text
    assert "The most accurate, l6-q300-640x640-fp32@onnxruntime, has AP 0.5300 and takes 1.25" in found.text
    assert recommend(rows, LimitOptions(within=0.0)).row is rows[0]


def test_recommends_the_most_accurate_of_what_noise_cant_tell_apart() -> None:
    rows = [row(6, 30, 0.530), row(5, 20.0, 0.529, spread=0.2), row(4, 19.9, 0.527, spread=0.2)]
    found = recommend(rows, LimitOptions())
    assert found.row is rows[1]
    assert "As fast within the noise of this measurement: l4-q300" in found.text


def test_equally_fast_models_whose_rounds_differ_are_not_told_apart() -> None:
    rng, differing = np.random.default_rng(5), 0
    rounds = tuple(number // 13 for number in range(65))
    for _ in range(40):  # what the machine does falls on a round as a whole, and not alike on both
        one, other = (np.repeat(rng.normal(20, 1, 5), 13) + rng.normal(0, 0.1, 65) for _ in range(2))
        first, second = (
            Measured(row(1, 20, 0.5), 0.5, Speed(tuple(times), rounds=rounds, session="a")) for times in (one, other)
        )
        found = ratio(first, second)
        assert found is not None
        differing += found.differs
    assert differing <= 10  # five rounds are few: more than 5 %, and far from the 53 % of single queries


def test_few_rounds_give_no_interval_and_much_slower_is_never_as_fast() -> None:
    short = Speed((20.0, 20.0), rounds=(0, 1), session="a")
    fast, near, slow = (
        Measured(row(1, 20, 0.5), 0.5, Speed((ms, ms), rounds=short.rounds, session="a")) for ms in (20.0, 22.0, 26.0)
    )
    assert ratio(near, fast) is None
    assert is_as_fast(near, fast)
    assert not is_as_fast(slow, fast)


def test_what_was_not_timed_together_is_not_taken_for_equal_and_is_named() -> None:
    rows = [row(6, 21, 0.530, spread=0.2, session="b"), row(5, 20.0, 0.529, spread=0.2)]
    found = recommend(rows, LimitOptions())
    assert found.row is rows[1]
    assert "About as fast, but not timed together with it" in found.text
    assert "times as long (not timed together with it" in found.text


def test_a_slow_runtime_is_never_recommended_before_a_fast_one_of_the_same_ap() -> None:
    noisy: dict[str, Any] = {"spread": 0.5}
    fast, slow = (
        [row(4, 176, 0.6, **noisy), row(3, 183, 0.6, **noisy)],
        [row(6, 282, 0.60001, **noisy), row(5, 415, 0.6)],
    )
    for limits in (LimitOptions(), LimitOptions(min_ap=0.5), LimitOptions(budget=1000.0)):
        assert recommend([*slow, *fast], limits).row in fast
    brief = [row(4, 1, 0.6, speed=None, brief=176.0), row(3, 1, 0.6, speed=None, brief=183.0)]
    found = recommend([*slow, *brief], LimitOptions())
    assert (
        "Not timed at length, but faster when timed briefly: l4-q300-640x640-fp32@onnxruntime (about 176.0"
        in found.text
    )


def test_limits_tell_within_only_where_it_decides() -> None:
    assert LimitOptions().to_json() == {"budget_ms": None, "min_ap": None, "within": 0.005}
    assert LimitOptions(budget=30.0).to_json()["within"] is None
    assert LimitOptions(min_ap=0.5).to_json()["within"] is None


def test_images_of_another_content_are_noticed(tmp_path: Path) -> None:
    image = tmp_path / "a.jpg"
    image.write_bytes(b"one")
    before = digest_folder([image])
    image.write_bytes(b"two")
    assert digest_folder([image]) != before


def test_recommends_within_a_budget_or_from_an_ap() -> None:
    rows = [row(6, 30, 0.530), row(4, 24, 0.526), row(3, 20, 0.510)]
    found = recommend(rows, LimitOptions(budget=25.0))
    assert found.row is rows[1]
    assert "is the most accurate within 25 ms" in found.text
    assert "The next more accurate, l6-q300" in found.text
    assert recommend(rows, LimitOptions(min_ap=0.5)).row is rows[2]
    assert "That is close" in recommend([row(6, 24.0, 0.5, spread=0.04)], LimitOptions(budget=25.4)).text
    nothing = recommend(rows, LimitOptions(budget=5.0))
    assert nothing.row is None
    assert "Nothing answers within 5 ms: the fastest is l3-" in nothing.text
    assert "Nothing is of at least AP 0.9: the best is l6-" in recommend(rows, LimitOptions(min_ap=0.9)).text
    assert recommend([row(6, 30, None, failed="x")], LimitOptions()).row is None


def test_rows_tell_failures_and_notes_and_hide_folders() -> None:
    rows = [
        row(6, 30, 0.53),
        row(4, 24, 0.526, note="clearly beaten by x", speed=None, brief=24.0),
        row(3, 20, None, failed="refused\x1b"),
    ]
    text = format_rows(rows, rows[0].name)
    assert "latency throughput <--" in text
    assert "clearly beaten by x" in text
    assert "failed: refused\\x1b" in text
    assert max(map(len, text.splitlines())) <= 120
    content = to_json(rows)
    assert [one["front"] for one in content] == [True, False, False]
    assert (content[1]["single_stream_p90_ms"], content[1]["brief_median_ms"]) == (None, 24.0)
    assert content[0]["export_command"] == "rtdetr-export --weights r50.pth --layers 6"
    assert len(to_csv(rows).splitlines()) == 4


def test_commands_type_what_differs_from_the_defaults() -> None:
    made = ExportOptions(Path("my r50.pth"), Path("a.onnx"), layers=3, size=(480, 640), batch=None)
    assert export_command(made) == (
        "rtdetr-export --weights 'my r50.pth' --output a.onnx --layers 3 --size 480x640 --batch dynamic"
    )
    quantized = ExportOptions(Path("r.pth"), Path("a.onnx"), precision="int8", calibration=Path("train"))
    assert (
        export_command(quantized)
        == "rtdetr-export --weights r.pth --output a.onnx --precision int8 --calibration train"
    )


def test_state_goes_on_and_tells_what_has_changed(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert state.begin("files", {"weights": "1"}) == []
    state.put("files", "a.onnx", {"mb": 1})
    state.put("files", "b.onnx", {"failed": "x"})
    again = State(tmp_path)
    assert again.begin("files", {"weights": "1"}) == []
    assert again.get("files", "a.onnx") == {"mb": 1}
    again.forget_failures()
    assert again.get("files", "b.onnx") is None
    assert again.begin("files", {"weights": "2"}) == ["weights"]
    assert again.get("files", "a.onnx") is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 9}', '{"format": 1, "parts": {"files": 3}}'])
def test_a_state_that_is_not_a_sweeps_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(content)
    with pytest.raises(OptionError, match=r"can't continue from .*sweep-state.json: .*; remove it, or choose another"):
        State(tmp_path)


def test_failures_become_reasons_but_for_what_all_would_meet() -> None:
    def fail(error: Exception) -> dict[str, Any]:
        raise error

    assert attempt(lambda: fail(ExportError("it disagrees"))) == {"failed": "it disagrees"}
    assert attempt(lambda: fail(RuntimeError("kernel\ncrashed"))) == {"failed": "RuntimeError: kernel crashed"}
    with pytest.raises(OutputError, match="disk"):
        attempt(lambda: fail(OutputError("the disk is full")))


def test_groups_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    contenders = [Contender(row(index, 1, 0).candidate, 100.0) for index in range(1, 6)]

    class Memory:
        available = 2.5e9

    monkeypatch.setattr("rtdetr_bench.sweep.speed.psutil.virtual_memory", Memory)
    assert [len(group) for group in make_groups(contenders)] == [2, 2, 1]
    monkeypatch.setattr("rtdetr_bench.sweep.speed.psutil", None)
    assert [len(group) for group in make_groups(contenders)] == [4, 1]
    assert make_groups([]) == []
