"""The checks of the runtime over the doubles of CUDA: their kernels run on the CPU, and a planted defect is found."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnx")
pytest.importorskip("torch")

import fake_tensorrt
from fake_driver import COMPILER, FakeDriver, Status, compile_for_cpu
from gpu_check.check import CheckFailedError, Figures, Situation
from gpu_check.checks import capture, interpreter, resize, runtime
from gpu_check.options import CheckOptions
from gpu_check.stub import tensorrt as stub
from gpu_check.stub.detector import make_detector
from gpu_check.stub.kernels import POINTER
from rtdetr_deploy import Predictor, open_runtime
from rtdetr_deploy.runtimes.trt import cuda as cuda_module
from rtdetr_deploy.runtimes.trt.batch_context import BatchContext
from rtdetr_deploy.runtimes.trt.cuda import Cuda
from rtdetr_deploy.runtimes.trt.cuda_resize import NAME
from rtdetr_deploy.runtimes.trt.runtime import TensorRtRuntime
from rtdetr_deploy.runtimes.trt.slot import Slot

pytest_plugins = ("engine_world",)
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler, which stands in for the GPU's")


class AnyKernel(FakeDriver):
    """The driver's double for kernels with other arguments than the resizing one: what points must point to memory."""

    def cuLaunchKernel(self, kernel: int, *rest: Any) -> tuple[Any, ...]:
        across, down, _, wide, high, _, _, stream, (values, types), _ = rest
        module, name = self.kernels[kernel]
        if name == NAME:
            return super().cuLaunchKernel(kernel, *rest)
        starts = [self._cuda.start_of(value) for value, kind in zip(values, types, strict=True) if kind is POINTER]
        if None in starts or module not in self._cuda.modules:
            return (Status.CUDA_ERROR_INVALID_VALUE,)
        library = compile_for_cpu(self._sources[module], name)
        arguments = [kind(value) for kind, value in zip(types, values, strict=True)]
        self._cuda.enqueue(stream, lambda: library.launch(across, down, wide, high, *arguments), module, *starts)
        return (Status.SUCCESS,)


@pytest.fixture
def situation(world: fake_tensorrt.World) -> Situation:
    bindings: Any = sys.modules["cuda.bindings"]
    bindings.driver = AnyKernel(world.cuda)
    cuda = Cuda(world.cuda)
    return Situation(cuda, cuda.gpu(), CheckOptions())


CHECKS: dict[str, Callable[[Situation], Figures]] = {
    "calls": runtime.check_calls,
    "frames": runtime.check_frames_of_the_host,
    "memory": lambda situation: runtime.check_memory(situation, times=3),
    "devices": runtime.check_devices,
    "resize": lambda situation: resize.check_sizes(situation, cases=16),
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_runtime_passes(name: str, situation: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resize, "MAX_FRAME", (300, 400))
    monkeypatch.setattr(resize.random_frame, "__defaults__", ((300, 400),))
    assert CHECKS[name](situation)


def test_calls_of_threads_are_compared_one_by_one(situation: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "CALLS", 6)
    monkeypatch.setattr(runtime, "THREADS", 2)
    assert runtime.check_threads(situation) == {"calls": 12, "slots": 2}
    run = TensorRtRuntime.run

    def mixed_up(self: TensorRtRuntime, feed: Any) -> dict[str, NDArray[Any]]:
        return {name: np.roll(values, 1, axis=-1) for name, values in run(self, feed).items()}

    monkeypatch.setattr(TensorRtRuntime, "run", mixed_up)
    with pytest.raises(CheckFailedError, match=r"thread \d, call \d: labels differs"):
        runtime.check_threads(situation)


def test_stale_graphs_are_found(situation: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay that does nothing leaves the outputs of the call before."""
    monkeypatch.setattr(situation.cuda._module, "cudaGraphLaunch", lambda executable, stream: (0,))
    with pytest.raises(CheckFailedError, match=r"run(_timed)? in slot 0, batch \d: \w+ differs"):
        runtime.check_calls(situation)


@pytest.mark.parametrize(
    ("check", "method", "message"),
    [
        (runtime.check_calls, "run", r"run in slot 1, batch 1: \w+ differs"),
        (runtime.check_calls, "run_timed", r"run_timed in slot 1, batch 1: \w+ differs"),
        (runtime.check_frames_of_the_host, "run", "a batch of 1 frames in slot 1 differs from single ones"),
        (capture._collect_inside, "run", r"call 0 in slot 1 with garbage inside: \w+ differs"),
    ],
)
def test_a_defect_of_the_second_slot_is_found(
    check: Callable[[Situation], Any], method: str, message: str, situation: Situation, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Slot] = []
    start, right = Slot.__init__, getattr(Slot, method)

    def open_slot(self: Slot, *given: Any) -> None:
        opened.append(self)
        start(self, *given)

    def mixed_up(self: Slot, *given: Any) -> Any:
        found = right(self, *given)
        if opened.index(self) % 2:
            for values in (found[0] if isinstance(found, tuple) else found).values():
                values[:] = np.roll(values, 1)
        return found

    monkeypatch.setattr(Slot, "__init__", open_slot)
    monkeypatch.setattr(Slot, method, mixed_up)
    with pytest.raises(CheckFailedError, match=message):
        check(situation)


def test_every_slot_is_called(situation: Situation) -> None:
    assert runtime.check_calls(situation) == {"calls": 2 * 2 * 30, "slots": 2, "batches": [1, 3, 8]}
    assert runtime.check_frames_of_the_host(situation) == {"batches": 10, "slots": 2}


def test_calls_that_cannot_be_recorded_are_found(situation: Situation) -> None:
    situation.cuda._module.records = False
    with pytest.raises(Warning, match="without CUDA graphs"):
        runtime.check_calls(situation)
    situation.cuda._module.records = True


def test_memory_that_is_not_given_back_is_found(situation: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter((1 << 40, 1 << 30))
    monkeypatch.setattr(runtime, "free_memory", lambda cuda: next(left))
    with pytest.raises(CheckFailedError, match="bytes of the GPU were not given back after 1 engines"):
        runtime.check_memory(situation, times=1)


def test_a_gpu_that_stays_switched_is_found(situation: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    situation.cuda._module.gpus = 2
    assert runtime.check_devices(situation) == {"gpus": 2, "shown": True}
    run = TensorRtRuntime.run

    def switching(self: TensorRtRuntime, feed: Any) -> dict[str, NDArray[Any]]:
        found = run(self, feed)
        situation.cuda.call("cudaSetDevice", 0)
        return found

    monkeypatch.setattr(TensorRtRuntime, "run", switching)
    with pytest.raises(CheckFailedError, match="GPU 1 was current before a call, GPU 0 after it"):
        runtime.check_devices(situation)


def test_a_resizer_that_is_off_is_found(situation: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resize.random_frame, "__defaults__", ((60, 80),))
    exact = resize.resize_on_gpu
    monkeypatch.setattr(resize, "resize_on_gpu", lambda *given: exact(*given).astype(np.float64) + 4)
    with pytest.raises(CheckFailedError, match="levels off"):
        resize.check_sizes(situation, cases=8)


def test_wrong_pixels_have_a_status_of_their_own_under_compute_sanitizer(
    situation: Situation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resize.random_frame, "__defaults__", ((60, 80),))
    assert resize.main("cuda") == 0
    exact = resize.resize_on_gpu
    monkeypatch.setattr(resize, "resize_on_gpu", lambda *given: exact(*given).astype(np.float64) + 4)
    assert resize.main("cuda") == resize.WRONG
    assert "levels off" in capsys.readouterr().err


@pytest.mark.parametrize("raw", [True, False])
def test_the_kernel_of_the_stub_is_its_onnx_file(raw: bool, situation: Situation) -> None:
    with stub.tensorrt_stub(situation.gpu):
        with Predictor(stub.open_stub(situation.gpu, 20, 30, raw=raw), 0.0) as predictor:
            picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
            found = predictor.detect(picture)
        with Predictor(make_detector(20, 30, raw=raw), 0.0) as reference:
            expected = reference.detect(picture)
    assert len(found) == len(expected) == 8
    assert np.array_equal(found.boxes, expected.boxes)
    assert np.array_equal(found.scores, expected.scores)
    assert fake_tensorrt.IExecutionContext.__name__ == "IExecutionContext"  # the stub has gone


def test_the_stub_holds_callers_to_the_contract(situation: Situation) -> None:
    with stub.tensorrt_stub(situation.gpu):
        runtime_ = stub.open_stub(situation.gpu)
        context = fake_tensorrt.IExecutionContext(
            fake_tensorrt.ICudaEngine(make_detector(8, 8, raw=True)),
            fake_tensorrt.ExecutionContextAllocationStrategy.USER_MANAGED,
        )
        assert not context.execute_async_v3(1)  # neither memory nor addresses nor shapes
        assert not context.set_tensor_address("images", 0)
        assert not context.set_tensor_address("pictures", 4096)
        del context
        runtime_.close()


def test_capture_passes_but_for_what_needs_torch(situation: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "operation not permitted when stream is capturing" in capture._fail_inside(situation.cuda)
    assert capture._collect_inside(situation) == "24 blocks freed, none in 8 captures"
    monkeypatch.setattr(situation.cuda._module, "cudaGraphLaunch", lambda executable, stream: (0,))
    with pytest.raises(CheckFailedError, match="a capture after one that failed is wrong"):
        capture._fail_inside(situation.cuda)


def test_garbage_that_is_collected_inside_a_capture_is_found(
    situation: Situation, world: fake_tensorrt.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_module, "without_garbage_collection", nullcontext)
    with pytest.raises(CheckFailedError, match="blocks could not be freed: .*not permitted when stream is capturing"):
        capture._collect_inside(situation)
    world.cuda.device.clear()  # what could not be freed
    assert gc.get_threshold()[0] > 0


def test_calls_without_a_capture_prove_nothing_about_garbage(
    situation: Situation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BatchContext, "_record", lambda *given: None)
    with pytest.raises(CheckFailedError, match="could not be collected in 0 calls, expected the 8 recorded ones"):
        capture._collect_inside(situation)


def test_a_thread_that_is_held_up_is_found(situation: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stub, "SPIN", 'extern "C" __global__ void spin(long long nanoseconds) { (void)nanoseconds; }')
    monkeypatch.setattr(interpreter, "CALLS", 3)
    with pytest.raises(CheckFailedError, match="less than the kernel's 20: it didn't run"):
        interpreter.check_lock(situation)
    monkeypatch.setattr(interpreter, "BUSY_MS", 0.001)
    counts = iter(((100.0, 1.0), (1.0, 1.0)))
    monkeypatch.setattr(interpreter, "count_beside", lambda work: next(counts))
    with pytest.raises(CheckFailedError, match="another thread ran at 1% of its speed"):
        interpreter.check_lock(situation)


def test_a_thread_counts_beside_work() -> None:
    import time

    rate, seconds = interpreter.count_beside(lambda: time.sleep(0.05))
    assert rate > 1000
    assert seconds >= 0.05
    assert interpreter.bindings_versions().keys() <= {"cuda-bindings", "cuda-python"}


def test_times_of_resizing_are_taken_for_each_size(situation: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resize, "FRAMES", {"small": (30, 40)})
    monkeypatch.setattr(resize, "RUNS", 2)
    monkeypatch.setattr(resize.median_ms, "__defaults__", (2,))
    figures = resize.check_times(situation)["small"]
    assert set(figures) == {"gpu_ms", "cpu_ms", "cpu_resize_ms", "pinned_copy_ms", "upload_ms"}
    assert all(value > 0 for value in figures.values())


def test_white_pixels_are_certain_detections() -> None:
    reference = open_runtime(make_detector(8, 8, raw=True))
    images = np.full((2, 8, 8, 3), 255, np.uint8)
    outputs = reference.run({"images": images})
    assert (outputs["scores"] == 1.0).all()
    assert (outputs["labels"] == 3).all()
    assert (outputs["boxes"][0, 0] == [0.25, 0.25, 1.0, 1.0]).all()
