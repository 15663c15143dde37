"""Models timed in turn: order, warm-up, ratios with their intervals, and what is refused."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("onnx")

from rtdetr_bench.accuracy import open_any
from rtdetr_bench.cli import main
from rtdetr_bench.comparison import Comparison, compare_models, format_comparison
from rtdetr_bench.models.nms import NmsOptions
from rtdetr_bench.models.open import open_timed_model
from rtdetr_bench.models.timed_model import PAPER_SPAN
from rtdetr_bench.options import ImageOptions, LatencyOptions, RunOptions, TimingOptions, batches_argument
from rtdetr_bench.ratios import compare_medians
from rtdetr_bench.timing import Latency, LoadedModel, is_stable, measure, open_all
from rtdetr_deploy import ArtifactError, Detections, OptionError
from rtdetr_deploy.runtimes import RuntimeOptions
from yolo_files import channels, crowd, write_yolo

QUICK = TimingOptions(runs=4, warmup=1)


class Recorded:
    """A model that notes when it is called, and takes the given milliseconds, in turn."""

    def __init__(self, name: str, calls: list[str], infer: list[float], batch: int | None = 1) -> None:
        self.name, self.batch = name, batch
        self.max_batch: int | None = None
        self.nms_input_boxes: int | None = None
        self.slots = 1
        self.closed = 0
        self.class_names: tuple[str, ...] = ()
        self.facts: dict[str, str] = {}
        self._calls, self._infer, self._turn = calls, infer, 0

    def call(self, images: Any) -> tuple[list[Detections], dict[str, float]]:
        self._calls.append(self.name)
        self._turn += 1
        infer = self._infer[min(self._turn, len(self._infer)) - 1]
        return [], {"load": 9.0, "prepare": 1.0, "copy": 0.5, "infer": infer, "decode": 0.25}

    def query(self, images: Any) -> Callable[[], list[Detections]]:
        return lambda: self.call(images)[0]

    def back_to_back(self, images: Any, calls: int) -> float | None:
        return None

    def inspect(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        self.closed += 1


def test_models_are_called_in_turn_each_round() -> None:
    calls: list[str] = []
    models = [Recorded(name, calls, [2.0]) for name in "abc"]
    latencies = measure([LoadedModel(model, 0.1, 5) for model in models], QUICK)
    assert "".join(calls) == "abc" + "abc" * 4  # one call each to warm up, then rounds
    assert [one.name for one in latencies] == ["a", "b", "c"]
    assert latencies[0].paper.tolist() == [2.25] * 4  # infer + decode; copies, preparing and loading are not in it
    assert latencies[0].total().tolist() == [3.75] * 4
    assert "load" not in latencies[0].samples  # a synthetic image is not loaded
    assert latencies[0].throughput == pytest.approx(1000 / 3.75)


def test_a_model_warms_up_until_it_is_stable() -> None:
    calls: list[str] = []
    model = Recorded("a", calls, [50.0, 40.0, 30.0, 20.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0])
    (latency,) = measure([LoadedModel(model, 0.0, 0)], TimingOptions(runs=1))
    assert latency.warmup == 9  # the median of the last three is that of the three before
    assert not is_stable([10.0] * 5)
    assert is_stable([10.0] * 6)
    assert not is_stable([10.0, 10.0, 10.0, 11.0, 11.0, 11.0])


def test_duration_bounds_the_rounds_but_not_below_three() -> None:
    calls: list[str] = []
    (latency,) = measure([LoadedModel(Recorded("a", calls, [1.0]), 0, 0)], TimingOptions(duration=1e-9, warmup=1))
    assert len(latency.paper) == 3


@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.3])
def test_the_interval_holds_the_true_ratio_though_the_machine_drifts(ratio: float) -> None:
    """The drift, 50 % over the run, is shared by both; the noise is not."""
    rng = np.random.default_rng(3)
    inside = 0
    for seed in range(40):
        drift = np.linspace(1.0, 1.5, 60)
        base = 10 * drift * rng.normal(1, 0.03, 60)
        times = 10 * ratio * drift * rng.normal(1, 0.03, 60)
        found = compare_medians(times, base, seed)
        inside += found.low <= ratio <= found.high
        assert found.low <= found.value <= found.high
    assert inside >= 34
    assert str(compare_medians(base, base)) == "1.000 [1.000, 1.000]"
    assert not compare_medians(base, base).differs


def test_ratios_need_as_many_samples() -> None:
    with pytest.raises(ValueError, match="3 and 4 samples"):
        compare_medians(np.ones(3), np.ones(4))


def test_rtdetr_and_yolo_are_compared_in_one_run(small_onnx: Path, tmp_path: Path) -> None:
    yolo = write_yolo(tmp_path / "yolo.onnx", channels(*crowd()))
    comparison = compare_models(
        LatencyOptions(small_onnx, (yolo, small_onnx), timing=QUICK, run=RunOptions(NmsOptions(threshold=0.25)))
    )
    names = [one.name for one in comparison.latencies]
    assert names == [small_onnx.name, "yolo.onnx", f"{small_onnx.name} (2)"]
    assert [(pair.name, pair.base) for pair in comparison.pairs] == [
        (names[1], names[0]), (names[2], names[0]), (names[2], names[1]),
    ]  # fmt: skip
    assert all(set(one.samples) == {"prepare", "infer", "decode"} for one in comparison.latencies)
    assert comparison.pairs[0].paper.value < 1 < 1 / comparison.pairs[0].paper.value
    text = format_comparison(comparison)
    assert "ratio of medians to" in text
    assert "kind YOLO (channels)" in text
    content = comparison.to_json()
    assert [len(model["samples"]["infer"]) for model in content["models"]] == [4, 4, 4]
    assert content["threshold"] == 0.25


def test_checkpoints_and_their_exports_are_timed_together(
    r18_checkpoint: Path, small_onnx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--engine", str(r18_checkpoint), "--against", str(small_onnx), "--size", "128x160"]
    assert main([*command, "--runs", "3", "--warmup", "1"]) == 0
    text = capsys.readouterr().out
    assert "runtime torch" in text
    assert "runtime ONNX Runtime" in text


def test_batches_are_measured_one_after_the_other(dynamic_onnx: Path) -> None:
    comparison = compare_models(LatencyOptions(dynamic_onnx, (dynamic_onnx,), (1, 3), timing=QUICK))
    assert [one.batch for one in comparison.latencies] == [1, 1, 3, 3]
    assert [pair.batch for pair in comparison.pairs] == [1, 3]


def test_a_batch_that_a_model_cannot_take_is_refused(small_onnx: Path, dynamic_onnx: Path) -> None:
    with pytest.raises(OptionError, match=rf"{small_onnx.name} takes 1 image at once, not 4"):
        compare_models(LatencyOptions(dynamic_onnx, (small_onnx,), (4,), timing=QUICK))
    calls: list[str] = []
    model = Recorded("a.engine", calls, [1.0], None)
    model.max_batch = 8
    with pytest.raises(OptionError, match=r"a.engine takes up to 8 images at once, not 9"):
        measure([LoadedModel(model, 0, 0)], QUICK, batch=9)


@pytest.mark.parametrize("text", ["", "0", "1,-2", "a", "1;2", "2,2", "1025", "nan"])
def test_batches_that_are_not_different_numbers_are_refused(text: str) -> None:
    with pytest.raises((OptionError, ArgumentTypeError), match="expected different numbers from 1 to 1024, like 1,4,8"):
        LatencyOptions(Path("a.onnx"), batch=batches_argument(text))
    assert LatencyOptions(Path("a.onnx"), batch=batches_argument("1,8")).batch == (1, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": 0}, "`runs` is 0, expected a number from 1 to 1000000"),
        ({"runs": 10**7}, "`runs` is 10000000, expected a number from 1 to 1000000"),
        ({"warmup": 10**9}, "`warmup` is 1000000000"),
        ({"duration": 1e300}, "`duration` is 1e\\+300, expected seconds above 0 and up to 86400"),
        ({"pause": float("nan")}, "`pause` is nan"),
        ({"pause": 1e18}, "`pause` is 1e\\+18, expected seconds from 0 to 86400"),
        ({"warmup": 0}, "`warmup` is 0"),
        ({"duration": 0.0}, "`duration` is 0.0, expected seconds above 0"),
        ({"duration": float("nan")}, "`duration` is nan"),
        ({"pause": -1.0}, "`pause` is -1.0"),
        ({"runs": 100, "duration": 2.0}, "`runs` and `duration` both say how long to measure"),
    ],
)
def test_timing_without_a_measurement_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TimingOptions(**changes)


def test_engines_tell_the_models_own_time_from_copies(small_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rtdetr_deploy.runtimes.ort import OnnxRuntime

    def run_timed(self: OnnxRuntime, feed: Any, calls: int = 1) -> tuple[dict[str, NDArray[Any]], float]:
        return self.run(feed), 0.5

    monkeypatch.setattr(OnnxRuntime, "run_timed", run_timed, raising=False)
    layers = [
        {"LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": kind}]} for kind in ("Half", "Half", "Float")
    ]
    monkeypatch.setattr(OnnxRuntime, "layers", lambda self: layers, raising=False)
    with open_all([small_onnx], RunOptions()) as opened:
        (latency,) = measure(opened, QUICK)
    assert latency.samples["infer"].tolist() == [0.5] * 4
    assert (latency.samples["copy"] > 0).all()
    assert np.allclose(latency.paper, 0.5 + latency.samples["decode"])
    assert latency.facts["precision"] == "2 layers fp16, 1 layer fp32"


def test_models_are_closed_when_one_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Recorded] = []

    def open_timed_model(path: Path, run: RunOptions) -> Recorded:
        if path.stem == "broken":
            raise ArtifactError("not a loadable ONNX model")
        opened.append(Recorded(path.name, [], [1.0]))
        return opened[-1]

    monkeypatch.setattr("rtdetr_bench.timing.open_timed_model", open_timed_model)
    with pytest.raises(ArtifactError), open_all([Path("a"), Path("b"), Path("broken")], RunOptions()):
        pass
    assert [model.closed for model in opened] == [1, 1]


def test_annotations_that_do_not_fit_are_refused_before_anything_is_timed(
    small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtdetr_bench.comparison.measure", lambda *_, **__: pytest.fail("something was timed"))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(OptionError, match="can't read annotations"):
        compare_models(LatencyOptions(small_onnx, images=ImageOptions((tmp_path,), tmp_path / "none.json")))


def test_boxes_that_nms_was_given_are_counted(small_onnx: Path, tmp_path: Path) -> None:
    yolo = write_yolo(tmp_path / "yolo.onnx", channels(*crowd()))
    comparison = compare_models(
        LatencyOptions(small_onnx, (yolo,), timing=QUICK, run=RunOptions(NmsOptions(threshold=0.25)))
    )
    assert comparison.latencies[0].nms_input_boxes is None
    assert comparison.latencies[1].nms_input_boxes == (crowd()[1] > 0.25).sum()
    assert "NMS has next to nothing to do" in format_comparison(comparison)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (RunOptions(size=(640, 640)), r'`size="640x640"` would be ignored: small.onnx is fixed at 128x160'),
        (RunOptions(NmsOptions(iou=0.5)), "`iou=0.5` .no model here needs NMS outside its graph. would be ignored"),
        (RunOptions(NmsOptions(method="numpy")), '`method="numpy"` .no model here'),
    ],
)
def test_what_no_model_would_use_is_refused(run: RunOptions, message: str, small_onnx: Path) -> None:
    with pytest.raises(OptionError, match=message), open_all([small_onnx], run):
        pytest.fail("it was opened")


def test_a_setting_is_taken_when_one_of_the_models_uses_it(
    small_onnx: Path, r18_checkpoint: Path, tmp_path: Path
) -> None:
    yolo = write_yolo(tmp_path / "yolo.onnx", channels(*crowd()))
    run = RunOptions(NmsOptions(iou=0.5, method="numpy"), (64, 96), "pillow")
    with open_all([small_onnx, yolo, r18_checkpoint], run) as loaded:
        assert [one.model.facts["input"] for one in loaded] == ["128x160", "64x64", "64x96"]
    message = '`resizer="pillow"` .third-party models are resized by OpenCV.'
    with pytest.raises(OptionError, match=message), open_all([yolo], RunOptions(resizer="pillow")):
        pytest.fail("it was opened")


def test_device_runtime_and_threads_reach_the_runtime(
    small_onnx: Path, r18_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def open_runtime(path: Path, runtime: str | None, where: RuntimeOptions) -> Any:
        asked.append((path.name, runtime, where))
        raise ArtifactError("enough is known")

    monkeypatch.setattr("rtdetr_bench.models.open.open_runtime", open_runtime)
    monkeypatch.setattr("rtdetr_deploy.predictor.open_runtime", open_runtime)
    where = RuntimeOptions(device="cuda:1", threads=2)
    for open_it in (open_timed_model, open_any):
        with pytest.raises(ArtifactError, match="enough is known"):
            open_it(small_onnx, RunOptions(where=where))
        with pytest.raises(ArtifactError, match="enough is known"):
            open_it(small_onnx, RunOptions(runtime="openvino", where=where))
    assert asked == [(small_onnx.name, name, where) for name in ("onnxruntime", "openvino")] * 2
    monkeypatch.undo()
    with pytest.raises(OptionError, match="`device` is 'npu'"):
        open_timed_model(r18_checkpoint, RunOptions(where=RuntimeOptions(device="npu")))


def test_a_runtime_is_used_for_the_models_that_it_opens(small_onnx: Path, r18_checkpoint: Path) -> None:
    run = RunOptions(size=(64, 96), runtime="torch")
    with open_all([small_onnx, r18_checkpoint], run) as loaded:
        assert [one.model.facts["runtime"].split()[0] for one in loaded] == ["ONNX", "torch"]
    message = r'`runtime="torch"` opens .pth, .pt, .safetensors, .bin, and none of small.onnx; leave it out'
    with pytest.raises(OptionError, match=message), open_all([small_onnx], replace(run, size=None)):
        pytest.fail("it was opened")
    with pytest.raises(OptionError, match=message):
        open_any(small_onnx, replace(run, size=None))


def test_a_single_model_is_shown_span_by_span() -> None:
    samples = {"prepare": np.ones(3), "infer": np.full(3, 5.0), "decode": np.full(3, 0.5)}
    latency = Latency("a.onnx", 2, 0.1, 10**7, 6, samples, {"runtime": "ONNX Runtime"})
    text = format_comparison(Comparison((latency,), (), {"a.onnx": 0.5}, 0.001))
    assert "a.onnx, batch 2: opened in 0.10 s, memory 10 MB, 6 calls to warm up" in text
    assert "307.7 images per second; AP 0.5000" in text
    assert set(PAPER_SPAN) == {"infer", "decode"}
