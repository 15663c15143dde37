"""When an engine's memory is freed: by close, by the garbage collector, and not in a forked child."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fake_tensorrt
from fake_cuda import FakeCuda, Status
from fake_driver import FakeDriver
from rtdetr_deploy import ArtifactError, DeviceError, Predictor, open_runtime
from rtdetr_deploy.images.preprocess_spec import PreprocessSpec
from rtdetr_deploy.runtimes.trt import resources
from rtdetr_deploy.runtimes.trt.cuda import Cuda, Stream
from rtdetr_deploy.runtimes.trt.runtime import TensorRtRuntime

pytest_plugins = ("engine_world",)
FEED = {"images": np.zeros((1, 128, 160, 3), np.uint8)}


@pytest.fixture
def runtime(world: fake_tensorrt.World, engine: Path) -> Iterator[TensorRtRuntime]:
    runtime = open_runtime(engine)
    assert isinstance(runtime, TensorRtRuntime)
    yield runtime
    runtime.close()


def test_an_engine_that_is_forgotten_frees_its_memory_and_warns(
    world: fake_tensorrt.World, engine: Path, picture: NDArray[np.uint8]
) -> None:
    world.cuda.gpus = 2
    predictor = Predictor(engine, resizer="cuda", device="cuda:1")
    for _ in range(2):
        predictor.detect(picture)
    runtime = predictor._runtime
    assert isinstance(runtime, TensorRtRuntime)
    runtime.run_timed(FEED)
    gone = weakref.ref(runtime)
    gc.disable()  # nothing here may be in a cycle: GPU memory can't wait for the collector
    try:
        with pytest.warns(
            ResourceWarning, match=r"dynamic.engine was not closed; call `close`, or use `with Predictor"
        ):
            del predictor, runtime
    finally:
        gc.enable()
    assert gone() is None
    assert world.cuda.alive == 0
    assert (world.engines_alive, world.contexts_alive, world.cuda.current) == (0, 0, 0)


def test_an_engine_that_was_closed_is_forgotten_in_silence(world: fake_tensorrt.World, engine: Path) -> None:
    runtime = open_runtime(engine)
    runtime.close()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        del runtime
        gc.collect()
    assert [str(warning.message) for warning in told] == []


def test_every_call_after_close_is_our_error(runtime: TensorRtRuntime) -> None:
    runtime.close()
    runtime.close()
    for use in (
        lambda: runtime.run(FEED),
        lambda: runtime.run_timed(FEED),
        runtime.layers,
        lambda: runtime.preprocessor("images", "cuda", PreprocessSpec.rtdetr((128, 160))),
    ):
        with pytest.raises(ArtifactError, match="dynamic.engine is closed; open it again"):
            use()


def test_close_waits_for_the_call_of_another_thread(
    world: fake_tensorrt.World, runtime: TensorRtRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = threading.Event()
    real = FakeCuda.cudaStreamSynchronize
    results: list[Any] = []

    def slowly(cuda: FakeCuda, stream: int) -> tuple[Any, ...]:
        inside.set()
        time.sleep(0.2)
        return real(cuda, stream)

    monkeypatch.setattr(FakeCuda, "cudaStreamSynchronize", slowly)
    thread = threading.Thread(target=lambda: results.append(runtime.run(FEED)))
    thread.start()
    assert inside.wait(60)
    runtime.close()
    thread.join()
    assert results[0]["scores"].shape == (1, 300)
    assert world.cuda.alive == 0


@contextmanager
def call_of_another_thread(runtime: TensorRtRuntime) -> Iterator[threading.Event]:
    """Let another thread be in a call until the event is set, at the latest at the end of the block."""
    inside, end = threading.Event(), threading.Event()

    def call() -> None:
        with runtime._resources.in_use():
            inside.set()
            assert end.wait(60)

    thread = threading.Thread(target=call)
    thread.start()
    assert inside.wait(60)
    try:
        yield end
    finally:
        end.set()
        thread.join()


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals of threads")
@pytest.mark.parametrize("closed_again", [True, False])
def test_an_interrupted_close_loses_no_memory(
    closed_again: bool, world: fake_tensorrt.World, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while it waits for a call: the engine is open as before, and freed by the next close or when forgotten."""
    runtime = open_runtime(engine)
    assert isinstance(runtime, TensorRtRuntime)
    real, main = threading.Condition.wait_for, threading.get_ident()

    def wait_for(*arguments: Any) -> Any:
        threading.Timer(0.1, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
        return real(*arguments)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
    try:
        with call_of_another_thread(runtime), monkeypatch.context() as waiting:
            waiting.setattr(threading.Condition, "wait_for", wait_for)
            with pytest.raises(KeyboardInterrupt):
                runtime.close()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert runtime.run(FEED)["scores"].shape == (1, 300)
    if closed_again:
        runtime.close()
        assert world.cuda.alive == 0
    else:
        with pytest.warns(ResourceWarning, match="was not closed"):
            del runtime
    assert world.cuda.alive == 0


def test_a_signal_handler_that_closes_is_told_how(
    world: fake_tensorrt.World, runtime: TensorRtRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call that it interrupts can't end before it does: to wait for that would be to wait for ever."""
    errors: list[str] = []

    def close(*_: object) -> None:
        if runtime._resources._callers == [threading.get_ident()]:
            with pytest.raises(
                DeviceError, match="can't be closed by a signal handler in the middle of a call"
            ) as told:
                runtime.close()
            errors.append(str(told.value))

    real = fake_tensorrt.IExecutionContext._execute

    def execute(context: fake_tensorrt.IExecutionContext) -> None:
        signal.raise_signal(signal.SIGINT)
        real(context)

    monkeypatch.setattr(fake_tensorrt.IExecutionContext, "_execute", execute)
    before = signal.signal(signal.SIGINT, close)
    try:
        assert runtime.run(FEED)["scores"].shape == (1, 300)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(errors) == 1
    runtime.close()
    assert world.cuda.alive == 0


def test_memory_that_can_not_be_freed_is_told_once(
    world: fake_tensorrt.World, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is forgotten after a close that failed was closed all the same."""
    runtime = open_runtime(engine)
    real = FakeCuda.cudaStreamDestroy
    with monkeypatch.context() as failing:
        failing.setattr(FakeCuda, "cudaStreamDestroy", lambda *of: (real(*of), (Status.cudaErrorInvalidValue,))[1])
        with pytest.raises(DeviceError, match="cudaStreamDestroy"):
            runtime.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del runtime
        gc.collect()
    assert world.cuda.alive == 0


def test_a_stream_is_destroyed_though_its_event_can_not_be(
    world: fake_tensorrt.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(Cuda(world.cuda), blocking=True)
    real = FakeCuda.cudaEventDestroy
    monkeypatch.setattr(FakeCuda, "cudaEventDestroy", lambda *of: (real(*of), (Status.cudaErrorInvalidValue,))[1])
    with pytest.raises(DeviceError, match="cudaEventDestroy"):
        stream.close()
    assert world.cuda.streams == {}


def test_the_context_of_a_gpu_is_retained_once(world: fake_tensorrt.World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when several threads are the first to need it."""
    retained: list[int] = []
    real = FakeDriver.cuDevicePrimaryCtxRetain

    def retain(driver: FakeDriver, device: int) -> tuple[Any, ...]:
        retained.append(device)
        time.sleep(0.1)
        return real(driver, device)

    monkeypatch.setattr(FakeDriver, "cuDevicePrimaryCtxRetain", retain)
    cuda = Cuda(world.cuda)
    gpu = cuda.gpu()

    def use() -> bool:
        with cuda.using(gpu):
            return True

    with ThreadPoolExecutor(4) as threads:
        assert all(done.result(60) for done in [threads.submit(use) for _ in range(4)])
    assert retained == [0]


@pytest.mark.parametrize("stuck", [False, True])
def test_nothing_is_in_flight_when_a_failed_call_is_followed_by_close(
    stuck: bool, world: fake_tensorrt.World, runtime: TensorRtRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copies in are queued when the engine refuses to run; the double notes what is destroyed meanwhile."""
    runtime.run(FEED)
    world.refuse = True
    real = FakeCuda.cudaStreamSynchronize
    answers: list[tuple[Any, ...]] = []

    def synchronize(cuda: FakeCuda, stream: int) -> tuple[Any, ...]:
        result = real(cuda, stream)
        answers.append((Status.cudaErrorInvalidValue,) if stuck else result)
        return answers[-1]

    monkeypatch.setattr(FakeCuda, "cudaStreamSynchronize", synchronize)
    with pytest.raises(DeviceError, match="refused execution"), pytest.warns(UserWarning, match="CUDA graphs"):
        runtime.run(FEED)
    assert len(answers) == 1
    assert not world.cuda.in_flight()
    runtime.close()
    assert world.cuda.faults == []


def test_a_forked_child_is_told_to_open_its_own_and_touches_nothing(
    world: fake_tensorrt.World, runtime: TensorRtRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = runtime.run(FEED)
    logged = list(world.cuda.log)
    message = r"dynamic.engine was opened in another process, and CUDA does not survive a fork; open it in this one"
    with monkeypatch.context() as child, warnings.catch_warnings():
        child.setattr(os, "getpid", lambda: 1)  # a real one follows below
        warnings.simplefilter("error")
        for use in (lambda: runtime.run(FEED), lambda: runtime.run_timed(FEED), runtime.layers):
            with pytest.raises(DeviceError, match=message):
                use()
        runtime.close()
        runtime._resources.free_forgotten()
    assert world.cuda.log == logged
    assert runtime._resources in resources._kept_after_fork
    resources._kept_after_fork.clear()
    assert np.array_equal(runtime.run(FEED)["boxes"], expected["boxes"])
    runtime.close()
    assert world.cuda.alive == 0


def test_a_forgotten_engine_that_never_ends_its_call_is_left_alone(
    world: fake_tensorrt.World, runtime: TensorRtRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of Python: threads that are in a call have been stopped, or are still in it."""
    monkeypatch.setattr(resources, "PATIENCE", 0.01)
    with call_of_another_thread(runtime), pytest.warns(ResourceWarning, match="was not closed"):
        runtime._resources.free_forgotten()
    assert runtime.run(FEED)["scores"].shape == (1, 300)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_real_child_is_told_so(world: fake_tensorrt.World, runtime: TensorRtRuntime) -> None:
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads of other libraries
        child = os.fork()
    if child == 0:
        try:
            runtime.run(FEED)
        except DeviceError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    assert b"open it in this one" in os.read(read, 1000)
    os.close(read)
    os.waitpid(child, 0)
