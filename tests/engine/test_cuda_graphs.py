"""Captures of CUDA graphs that fail, or could: the call is right, the stream usable, and other batch sizes unharmed."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_tensorrt
from engine_world import make_engine
from fake_cuda import FakeCuda, Status
from rtdetr_deploy import DeviceError, open_runtime
from rtdetr_deploy.runtimes.protocol import Array
from rtdetr_deploy.runtimes.trt.cuda import Cuda, Stream, without_garbage_collection
from rtdetr_deploy.runtimes.trt.runtime import TensorRtRuntime

pytest_plugins = ("engine_world",)
FEEDS = {
    batch: {"images": np.random.default_rng(batch).integers(0, 256, (batch, 128, 160, 3), np.uint8)} for batch in (1, 2)
}


@pytest.fixture
def runtime(world: fake_tensorrt.World, dynamic_onnx: Path, tmp_path: Path) -> Iterator[TensorRtRuntime]:
    runtime = open_runtime(make_engine(dynamic_onnx, tmp_path))
    assert isinstance(runtime, TensorRtRuntime)
    yield runtime
    runtime.close()


def _same(one: dict[str, Array], other: dict[str, Array]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_what_cannot_be_recorded_runs_without_a_graph(world: fake_tensorrt.World, runtime: TensorRtRuntime) -> None:
    world.cuda.records = False
    first = runtime.run(FEEDS[1])
    with pytest.warns(UserWarning, match="dynamic.engine runs 1 image at once without CUDA graphs, .* capturing"):
        second = runtime.run(FEEDS[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        third = runtime.run(FEEDS[1])
    assert _same(first, second)
    assert _same(first, third)
    assert world.cuda.launches == 0


def test_another_batch_size_is_recorded_all_the_same(world: fake_tensorrt.World, runtime: TensorRtRuntime) -> None:
    world.cuda.records = False
    runtime.run(FEEDS[1])
    with pytest.warns(UserWarning, match="1 image at once"):
        runtime.run(FEEDS[1])
    world.cuda.records = True
    first, second = runtime.run(FEEDS[2]), runtime.run(FEEDS[2])
    assert world.cuda.launches == 1
    assert _same(first, second)


@pytest.mark.parametrize("where", ["cudaStreamEndCapture", "cudaGraphInstantiate", "execute_async_v3"])
def test_a_capture_that_fails_once_is_tried_again(
    where: str, world: fake_tensorrt.World, runtime: TensorRtRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = runtime.run(FEEDS[2])
    failures: list[str] = []
    owner = fake_tensorrt.IExecutionContext if where == "execute_async_v3" else FakeCuda
    real = getattr(owner, where)

    def fail_once(this: Any, *arguments: Any) -> Any:
        if failures:
            return real(this, *arguments)
        failures.append(where)
        if where == "execute_async_v3":
            return False
        if where == "cudaStreamEndCapture":
            world.cuda.invalidated.add(*arguments)
            return real(this, *arguments)
        return world.cuda.fail(Status.cudaErrorInvalidValue, None)

    monkeypatch.setattr(owner, where, fail_once)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _same(runtime.run(FEEDS[2]), expected)
    assert failures == [where]
    assert world.cuda.launches == 1
    assert world.cuda.last_error == Status.cudaSuccess, "another library would take the error for its own"
    assert world.cuda.graphs == set()


def test_memory_that_is_asked_for_inside_a_capture_fails_it_cleanly(world: fake_tensorrt.World) -> None:
    cuda = Cuda(world.cuda)
    stream = Stream(cuda)

    def work() -> None:
        cuda.call("cudaMalloc", 16)

    with pytest.raises(DeviceError, match=r"operation not permitted when stream is capturing \(cudaMalloc\)"):
        stream.capture(work)
    assert world.cuda.last_error == Status.cudaSuccess
    graph = stream.capture(lambda: None)
    stream.launch(graph)
    stream.synchronize()
    graph.close()
    stream.close()


def test_the_garbage_collector_does_not_free_gpu_memory_inside_a_capture(
    world: fake_tensorrt.World, runtime: TensorRtRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when another engine, or a tensor of torch, lies in a cycle."""

    class Tensor:
        def __init__(self) -> None:
            self.cycle = self
            _, self.address = world.cuda.cudaMalloc(16)

        def __del__(self) -> None:
            world.cuda.cudaFree(self.address)

    collections: list[bool] = []
    real = fake_tensorrt.IExecutionContext.execute_async_v3

    def execute(context: fake_tensorrt.IExecutionContext, stream: int) -> bool:
        if world.cuda.capturing:
            collections.append(gc.isenabled())
            if gc.isenabled():
                gc.collect()
        return real(context, stream)

    monkeypatch.setattr(fake_tensorrt.IExecutionContext, "execute_async_v3", execute)
    expected = runtime.run(FEEDS[1])
    Tensor()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _same(runtime.run(FEEDS[1]), expected)
    assert collections == [False]
    assert gc.isenabled()
    gc.collect()


@pytest.mark.parametrize("on", [True, False])
def test_the_garbage_collector_is_left_as_it_was(on: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if on else gc.disable)()
        with pytest.raises(ValueError, match="in the block"), without_garbage_collection():
            assert not gc.isenabled()
            raise ValueError("in the block")
        assert gc.isenabled() is on
    finally:
        (gc.enable if before else gc.disable)()
