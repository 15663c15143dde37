"""Throughput and MLPerf's scenarios: what is asked, from how many threads, and what a few queries prove."""

from __future__ import annotations

import json
import math
import threading
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from rtdetr_bench.cli import main
from rtdetr_bench.comparison import compare_models
from rtdetr_bench.models.open import open_timed_model
from rtdetr_bench.options import LatencyOptions, TimingOptions, scenarios_argument
from rtdetr_bench.scenarios.bounds import latency_bound, max_slow_queries, min_queries
from rtdetr_bench.scenarios.measure import batch_of, measure_scenario, measure_throughput, warm_up
from rtdetr_bench.scenarios.results import ScenarioResult, Throughput, format_scenarios
from rtdetr_deploy import Detections, OptionError
from rtdetr_deploy.images.frame import Frame
from yolo_files import channels, crowd, write_yolo

QUICK = TimingOptions(runs=6, warmup=1)
BLACK = [np.zeros((8, 8, 3), np.uint8)]


class Counted:
    """A model that notes the sizes of its queries, and how many ran at the same time."""

    name = "counted.onnx"
    class_names: tuple[str, ...] = ()
    nms_input_boxes: int | None = None

    def __init__(self, batch: int | None = None, max_batch: int | None = None, slots: int = 1) -> None:
        self.batch, self.max_batch, self.slots = batch, max_batch, slots
        self.facts: dict[str, str] = {}
        self.sizes: list[int] = []
        self.gpu_calls = 0
        self.together = 0
        self._meet = threading.Barrier(slots)

    def query(self, images: Any) -> Callable[[], list[Detections]]:
        size = len(images)

        def answer() -> list[Detections]:
            self.sizes.append(size)
            if self.slots > 1 and self._meet.wait(10) == 0:  # breaks, and fails, unless calls overlap
                self.together += 1
            return []

        return answer

    def back_to_back(self, images: Any, calls: int) -> float | None:
        self.gpu_calls += calls
        return 2.5

    def call(self, images: Any) -> tuple[list[Detections], dict[str, float]]:
        raise AssertionError("a scenario times queries, not calls with preparation")

    def inspect(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize("percentile", [90.0, 99.0])
@pytest.mark.parametrize("count", [1, 63, 64, 300, 662, 900])
def test_the_bound_is_the_rules_binomial(count: int, percentile: float) -> None:
    rate = 1 - percentile / 100
    terms = [math.comb(count, k) * rate**k * (1 - rate) ** (count - k) for k in range(count // 4 + 2)]
    allowed = [t for t in range(len(terms)) if sum(terms[: t + 1]) <= 0.01]
    assert max_slow_queries(count, percentile) == max(allowed, default=0)


def test_as_few_queries_suffice_as_mlperf_says() -> None:
    assert (min_queries(90.0), min_queries(99.0)) == (64, 662)
    times = np.arange(1.0, 65.0)
    assert latency_bound(times, 90.0) == 64.0  # one may be slower, none is set aside: the maximum
    assert latency_bound(times[:63], 90.0) is None
    many = np.random.default_rng(0).permutation(np.arange(10_000.0))
    bound = latency_bound(many, 90.0)
    assert bound is not None
    assert np.percentile(many, 90) < bound < np.percentile(many, 91)


def test_the_bound_holds_with_its_confidence() -> None:
    """Of systems whose true 90th percentile is 1, fewer than about one in a hundred may be told a smaller bound."""
    rng = np.random.default_rng(1)
    scale = 1 / math.log(10)  # of an exponential distribution with that percentile
    wrong = sum((latency_bound(rng.exponential(scale, 200), 90.0) or 2.0) < 1.0 for _ in range(2000))
    assert wrong <= 34


@pytest.mark.parametrize(
    ("name", "batch", "max_batch", "sizes"),
    [
        ("single-stream", None, None, {1}),
        ("multi-stream", None, None, {8}),
        ("multi-stream", None, 4, {4}),
        ("multi-stream", 3, None, {3, 2}),
        ("multi-stream", 1, None, {1}),
        ("offline", None, None, {8}),
        ("offline", None, 32, {32}),
        ("offline", 2, None, {2}),
    ],
)
def test_a_scenario_asks_for_its_number_of_images(
    name: str, batch: int | None, max_batch: int | None, sizes: set[int]
) -> None:
    model = Counted(batch, max_batch)
    result = measure_scenario(name, model, QUICK, BLACK)
    assert set(model.sizes) == sizes
    images = {"single-stream": 1, "multi-stream": 8}.get(name, batch_of(model))
    assert result.throughput.images == 6 * images
    assert len(result.milliseconds) == (0 if name == "offline" else 6)
    assert sum(model.sizes) >= 7 * images  # one query to warm up


@pytest.mark.parametrize("name", ["offline", "multi-stream"])
def test_slots_are_kept_busy_together(name: str) -> None:
    model = Counted(batch=4, slots=2)
    result = measure_scenario(name, model, TimingOptions(runs=6, warmup=2), BLACK)
    assert result.throughput.threads == 2
    assert model.together == len(model.sizes) // 2  # a call without its partner would break the barrier


def test_throughput_ends_at_its_limit_and_asks_the_gpu() -> None:
    model = Counted()
    flow = measure_throughput(model, 3, BLACK, calls=None, seconds=0.0)
    assert flow.images == 3  # one call at least
    assert flow.gpu_ms == 2.5
    assert model.gpu_calls > 1
    assert "on the GPU alone 2.500 ms per call, 1200.0 per second" in str(flow)
    assert str(Throughput(10, 2.0, 5, 1)) == "back to back 5.0 images per second (10 images, 5 per call, 1 thread)"


def test_a_duration_bounds_the_queries() -> None:
    timing = TimingOptions(duration=1e-9, warmup=1)
    assert len(measure_scenario("single-stream", Counted(), timing, BLACK).milliseconds) == 1


def test_queries_warm_up_until_they_are_stable() -> None:
    assert 6 <= warm_up(lambda: None, TimingOptions()) <= 40
    assert warm_up(lambda: None, TimingOptions(warmup=3)) == 3


def test_a_percentile_of_too_few_queries_is_called_a_guess() -> None:
    flow = Throughput(40, 1.0, 1, 1)
    times = np.linspace(1.0, 2.0, 40)
    few = ScenarioResult("a.onnx", "multi-stream", times, flow)
    assert few.doubt == "a guess: p99 of 40 queries, 662 are needed"
    assert few.bound is None
    enough = ScenarioResult("a.onnx", "single-stream", np.linspace(1.0, 2.0, 64), flow)
    assert (enough.doubt, enough.bound) == ("", 2.0)
    offline = ScenarioResult("a.onnx", "offline", np.empty(0), flow)
    assert (offline.value, offline.bound, offline.doubt) == (40.0, None, "")
    text = format_scenarios([few, enough, offline])
    names, *rows = (line.replace("at most", "bound").replace(" ms", "").split() for line in text.splitlines()[:4])
    columns = [dict(zip(names, row[1:], strict=False)) for row in rows]
    assert [(one["value"], one["images"], one["images/s"]) for one in columns] == [
        ("1.99", "40", "40.0"), ("1.90", "40", "40.0"), ("40.00", "40", "-"),
    ]  # fmt: skip
    for told in ("SingleStream", "MultiStream", "Offline", "p90 ms", "p99 ms", "a guess", "not an MLPerf result"):
        assert told in text
    assert few.to_json()["scenario"] == "MultiStream"
    assert few.to_json()["samples"][0] == 1.0


@pytest.mark.parametrize("text", ["server", "offline,offline", "Offline"])
def test_unknown_scenarios_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="expected different ones of single-stream, multi-stream, offline"):
        LatencyOptions(Path("a.onnx"), scenario=tuple(text.split(",")))
    with pytest.raises(ArgumentTypeError, match="expected different ones of"):
        scenarios_argument(text)
    assert scenarios_argument("offline, single-stream") == ("offline", "single-stream")


def test_queries_detect_what_calls_do(dynamic_onnx: Path, small_onnx: Path, tmp_path: Path) -> None:
    yolo = write_yolo(tmp_path / "yolo.onnx", channels(*crowd()))
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    for path, count in ((dynamic_onnx, 3), (small_onnx, 1), (yolo, 1)):
        model = open_timed_model(path)
        try:
            found, expected = model.query([image] * count)(), model.call([image] * count)[0]
            assert len(found) == count
            for one, other in zip(found, expected, strict=True):
                assert np.array_equal(one.boxes, other.boxes)
                assert np.array_equal(one.scores, other.scores)
            assert model.slots == 1
            assert model.back_to_back([image] * count, 3) is None  # a CPU has no clock of its own
        finally:
            model.close()


def test_a_fixed_batch_is_filled_up(small_export: Any) -> None:
    model = open_timed_model(small_export("two.onnx", batch=2))
    assert len(model.query([Frame(BLACK[0], rgb=True)])()) == 1
    model.close()


def test_rtdetr_bench_tells_throughput_and_scenarios(
    dynamic_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, page = tmp_path / "a.json", tmp_path / "a.html"
    command = ["--engine", str(dynamic_onnx), "--runs", "3", "--warmup", "1", "--json", str(target)]
    assert main([*command, "--scenario", "single-stream,multi-stream,offline", "--report", str(page)]) == 0
    text = capsys.readouterr().out
    assert "back to back" in text
    assert "a guess: p90 of 3 queries, 64 are needed" in text
    content = json.loads(target.read_text())
    flow = content["comparison"]["models"][0]["back_to_back"]
    assert (flow["images"], flow["batch"], flow["threads"], flow["gpu_ms"]) == (3, 1, 1, None)
    assert [(one["scenario"], one["images"], len(one["samples"])) for one in content["scenarios"]] == [
        ("SingleStream", 3, 3), ("MultiStream", 24, 3), ("Offline", 24, 0),
    ]  # fmt: skip
    assert "not an MLPerf result" in page.read_text()
    assert main(command) == 0
    assert "scenarios" not in json.loads(target.read_text())


def test_models_side_by_side_have_their_own_throughput(dynamic_onnx: Path) -> None:
    timing = TimingOptions(runs=2, warmup=1)
    options = LatencyOptions(dynamic_onnx, (dynamic_onnx,), (1, 2), timing=timing, scenario=("single-stream",))
    comparison = compare_models(options)
    flows = [comparison.throughput_of(one) for one in comparison.latencies]
    assert [flow.images for flow in flows if flow is not None] == [2, 2, 4, 4]
    assert [result.model for result in comparison.scenarios] == [dynamic_onnx.name, f"{dynamic_onnx.name} (2)"]
