"""Two calls of an engine at the same time: equal results, order, waiting, failures, memory, warming up."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

import fake_tensorrt
from rtdetr_deploy import ArtifactError, DeviceError, OptionError, Predictor, open_runtime
from rtdetr_deploy.cli.detect import main as detect
from rtdetr_deploy.runtimes import RuntimeOptions
from rtdetr_deploy.runtimes.trt.runtime import TensorRtRuntime

pytest_plugins = ("engine_world",)

LONG = 60.0
"""Seconds after which something hangs."""


@pytest.fixture
def runtime(world: fake_tensorrt.World, engine: Path) -> Iterator[TensorRtRuntime]:
    runtime = open_runtime(engine)
    assert isinstance(runtime, TensorRtRuntime)
    assert runtime.slots == 2
    yield runtime
    runtime.close()


def _feed(batch: int, seed: int = 0) -> dict[str, Any]:
    return {"images": np.random.default_rng(seed).integers(0, 256, (batch, 128, 160, 3), np.uint8)}


class Gate:
    """Stands in the engine's execution: tells how many are in it at once, and may hold them there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inside, self.most = 0, 0
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.open.set()
        self._lock = threading.Lock()
        real = fake_tensorrt.IExecutionContext._execute

        def execute(context: fake_tensorrt.IExecutionContext) -> None:
            with self._lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
            self.entered.release()
            assert self.open.wait(LONG)
            real(context)
            with self._lock:
                self.inside -= 1

        monkeypatch.setattr(fake_tensorrt.IExecutionContext, "_execute", execute)


@pytest.fixture
def gate(world: fake_tensorrt.World, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def test_two_calls_run_at_once_and_a_third_waits(runtime: TensorRtRuntime, gate: Gate) -> None:
    expected = [runtime.run(_feed(1, seed))["boxes"] for seed in range(3)]
    for _ in expected:
        gate.entered.acquire()
    gate.open.clear()
    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(runtime.run, _feed(1, seed)) for seed in range(3)]
        assert gate.entered.acquire(timeout=LONG)
        assert gate.entered.acquire(timeout=LONG)
        assert not gate.entered.acquire(timeout=0.2)
        assert gate.inside == 2
        gate.open.set()
        for call, boxes in zip(calls, expected, strict=True):
            assert np.array_equal(call.result(LONG)["boxes"], boxes)
    assert gate.most == 2


def test_with_one_slot_calls_run_one_after_the_other(world: fake_tensorrt.World, engine: Path, gate: Gate) -> None:
    runtime = open_runtime(engine, options=RuntimeOptions(slots=1))
    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(runtime.run, _feed(1)) for _ in range(6)]
        assert all(call.result(LONG)["scores"].shape == (1, 300) for call in calls)
    assert gate.most == 1
    runtime.close()


def test_interleaved_batches_of_many_threads_give_what_one_thread_gets(runtime: TensorRtRuntime) -> None:
    """Plain, recorded and timed calls, and ones whose outputs stay on the GPU."""
    feeds = [_feed(1 + seed % 4, seed) for seed in range(8)]
    expected = [runtime.run(feed) for feed in feeds]
    uses: list[Callable[[dict[str, Any]], Any]] = [
        runtime.run,
        lambda feed: runtime.run_timed(feed)[0],
        runtime.run_on_device,
    ]

    def work(thread: int) -> None:
        for turn in range(12):
            number = (5 * thread + 3 * turn) % len(feeds)
            found = uses[(thread + turn) % len(uses)](feeds[number])
            for name, output in expected[number].items():
                assert np.array_equal(np.asarray(found[name]), output), (thread, turn, name)

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work, thread) for thread in range(4)]:
            done.result(LONG)


def test_one_thread_uses_one_slot(world: fake_tensorrt.World, runtime: TensorRtRuntime) -> None:
    """Its contexts and graphs are there: a slot that was never used would run plainly first."""
    for _ in range(4):
        runtime.run(_feed(1))
    assert world.contexts_alive == 1
    assert world.cuda.launches == 3


def test_a_failure_in_one_slot_leaves_both_usable(
    world: fake_tensorrt.World, runtime: TensorRtRuntime, gate: Gate
) -> None:
    expected = runtime.run(_feed(2))["boxes"]
    gate.open.clear()
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(runtime.run, _feed(2))
        assert gate.entered.acquire(timeout=LONG)
        assert gate.entered.acquire(timeout=LONG)
        world.refuse = True
        with pytest.raises(DeviceError, match="refused execution"):
            runtime.run(_feed(3))
        with pytest.raises(ArtifactError, match="batch 9 is outside"):
            runtime.run(_feed(9))
        world.refuse = False
        gate.open.set()
        assert np.array_equal(running.result(LONG)["boxes"], expected)
        both = [threads.submit(runtime.run, _feed(2)) for _ in range(4)]
        assert all(np.array_equal(one.result(LONG)["boxes"], expected) for one in both)


def test_close_waits_for_both_and_refuses_new_calls(
    world: fake_tensorrt.World, runtime: TensorRtRuntime, gate: Gate
) -> None:
    gate.open.clear()
    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(runtime.run, _feed(1)) for _ in range(2)]
        assert gate.entered.acquire(timeout=LONG)
        assert gate.entered.acquire(timeout=LONG)
        closing = threads.submit(runtime.close)
        with pytest.raises(TimeoutError):
            closing.result(0.2)
        with pytest.raises(ArtifactError, match="is closed"):
            runtime.run(_feed(1))
        gate.open.set()
        assert all(call.result(LONG)["scores"].shape == (1, 300) for call in running)
        closing.result(LONG)
    assert world.cuda.alive == 0


def test_a_stream_keeps_two_calls_in_flight_and_the_order(
    world: fake_tensorrt.World, engine: Path, gate: Gate, picture: NDArray[np.uint8]
) -> None:
    pictures = [np.roll(picture, row, 0) for row in range(9)]
    with Predictor(engine, 0.0, slots=1) as single:
        expected = [single.detect(one) for one in pictures]
        list(single.stream(pictures, batch=2))
        assert gate.most == 1
    with Predictor(engine, 0.0) as predictor:
        barrier = threading.Barrier(2)
        real = predictor._runtime.run

        def run(feed: Any) -> Any:
            if len(feed["images"]) == 2:  # four batches of two, and one image
                barrier.wait(LONG)
            return real(feed)

        predictor._runtime.run = run  # type: ignore[method-assign]
        for batch in (2, 1):
            found = list(predictor.stream(iter(pictures), batch=batch))
            for one, other in zip(found, expected, strict=True):
                assert np.array_equal(one.boxes, other.boxes)
        del predictor._runtime.run


def test_an_error_in_flight_is_raised_in_its_turn(world: fake_tensorrt.World, engine: Path) -> None:
    """The third of four calls fails, perhaps before the second is done."""
    with Predictor(engine, 0.0) as predictor:
        real = predictor._runtime.run

        def run(feed: Any) -> Any:
            if feed["images"].max() == 5:
                raise DeviceError("the third call fails")
            return real(feed)

        predictor._runtime.run = run  # type: ignore[method-assign]
        found = []
        with pytest.raises(DeviceError, match="the third call fails"):
            for one in predictor.stream((np.full((9, 9, 3), level, np.uint8) for level in range(8)), batch=2):
                found.append(one)
        assert len(found) == 4
        del predictor._runtime.run


def test_the_first_result_does_not_wait_for_a_second_image(
    world: fake_tensorrt.World, engine: Path, picture: NDArray[np.uint8]
) -> None:
    go_on = threading.Event()

    def camera() -> Iterator[NDArray[np.uint8]]:
        yield picture
        assert go_on.wait(LONG)
        yield picture

    with Predictor(engine, 0.0) as predictor:
        results = predictor.stream(camera(), batch=1)
        assert len(next(results)) == 300
        go_on.set()
        assert len(list(results)) == 1


def _memory_of_a_slot(world: fake_tensorrt.World, engine: Path) -> int:
    runtime = open_runtime(engine, options=RuntimeOptions(slots=1))
    used = sum(len(block) for block in world.cuda.device.values())
    runtime.close()
    return used


def test_memory_for_one_slot_only_is_said_and_is_enough(world: fake_tensorrt.World, engine: Path) -> None:
    world.cuda.memory = _memory_of_a_slot(world, engine) + 1000
    with pytest.warns(UserWarning, match=r"runs one call at a time, as `slots=1`; it can't have a second slot: CUDA"):
        runtime = open_runtime(engine)
    assert isinstance(runtime, TensorRtRuntime)
    assert runtime.slots == 1
    assert world.cuda.last_error == 0  # TensorRT would take it for its own
    assert runtime.run(_feed(4))["scores"].shape == (4, 300)
    runtime.close()
    with pytest.raises(DeviceError, match=r"dynamic.engine can't have a second slot; `slots=1` needs less: CUDA says"):
        open_runtime(engine, options=RuntimeOptions(slots=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_runtime(engine, options=RuntimeOptions(slots=1)).close()


def test_a_second_slot_that_nobody_asked_for_leaves_memory(world: fake_tensorrt.World, engine: Path) -> None:
    world.cuda.memory = int(2.1 * _memory_of_a_slot(world, engine))
    with pytest.warns(UserWarning, match=r"it can't have a second slot: it would leave \d+ MB of \d+ MB of GPU memory"):
        open_runtime(engine).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runtime = open_runtime(engine, options=RuntimeOptions(slots=2))
    assert isinstance(runtime, TensorRtRuntime)
    assert runtime.slots == 2
    runtime.close()


def test_threads_may_sleep_while_the_engine_works(world: fake_tensorrt.World, engine: Path) -> None:
    expected = open_runtime(engine)
    runtime = open_runtime(engine, options=RuntimeOptions(blocking_sync=True))
    assert world.cuda.slept == 0
    for _ in range(3):
        assert np.array_equal(runtime.run(_feed(1))["boxes"], expected.run(_feed(1))["boxes"])
    assert world.cuda.slept == 3
    runtime.close()
    expected.close()


def test_warming_up_makes_every_batch_size_of_every_slot_ready(
    world: fake_tensorrt.World, engine: Path, picture: NDArray[np.uint8]
) -> None:
    with Predictor(engine, 0.0) as predictor:
        predictor.warmup(batches=(1, 3))
        assert world.contexts_alive == 4
        executions, launches = world.executions, world.cuda.launches
        assert (executions, launches) == (8, 4)
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(predictor.detect, [picture] * 4))
        assert (world.executions - executions, world.cuda.launches - launches) == (4, 4)
        predictor.warmup(1, batches=2)
        assert world.contexts_alive == 6
        predictor.warmup()
        assert world.contexts_alive == 6
        for wrong in (5, 0, [1, 2.5]):
            with pytest.raises(OptionError, match="`batch` is .*, expected a whole number from 1 to 4 for dynamic"):
                predictor.warmup(batches=cast("Any", wrong))


def test_other_runtimes_warm_up_each_batch_size_too(small_export: Any) -> None:
    sizes: list[int] = []
    with Predictor(small_export("dynamic.onnx", batch="dynamic", raw_input=True)) as predictor:
        real = predictor._runtime.run

        def run(feed: Any) -> Any:
            sizes.append(len(feed["images"]))
            return real(feed)

        predictor._runtime.run = run  # type: ignore[method-assign]
        predictor.warmup(batches=(1, 2))
        predictor.warmup(1)
    assert sizes == [1, 1, 2, 2, 1]


def test_options_of_slots_are_checked(
    world: fake_tensorrt.World, engine: Path, small_onnx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for slots in (0, 65, True, "2"):
        with pytest.raises(OptionError, match=f"`slots` is {slots!r}, expected a whole number from 1 to 64"):
            RuntimeOptions(slots=cast("Any", slots))
    with pytest.raises(OptionError, match="`slots` is 3, expected 1 or 2: a third call would wait for the GPU"):
        open_runtime(engine, options=RuntimeOptions(slots=3))
    with pytest.raises(OptionError, match="`blocking_sync` is 1, expected True or False"):
        RuntimeOptions(blocking_sync=cast("Any", 1))
    with pytest.raises(OptionError, match="`blocking_sync` is for tensorrt; onnxruntime runs this model"):
        Predictor(small_onnx, runtime="onnxruntime", blocking_sync=True)
    how: tuple[tuple[str, dict[str, Any]], ...] = (
        ("slots", {"slots": 2}),
        ("blocking_sync", {"blocking_sync": True}),
    )
    with pytest.raises(OptionError, match="`blocking_sync` is for tensorrt; onnxruntime runs this model"):
        Predictor(small_onnx, runtime="onnxruntime", blocking_sync=True)
    for name, given in how:
        opened = open_runtime(small_onnx)
        with pytest.raises(OptionError, match=f"`{name}` would be ignored: small.onnx is open already"):
            Predictor(opened, **given)
        opened.close()
    onnx = [str(small_onnx), "nothing.jpg", "--runtime", "onnxruntime"]
    assert detect([*onnx, "--blocking-sync"]) == 2
    assert "--blocking-sync is for tensorrt" in capsys.readouterr().err
    assert detect([*onnx, "--arithmetic", "bf16"]) == 2
    assert "--arithmetic bf16 is for openvino; onnxruntime runs this model" in capsys.readouterr().err
