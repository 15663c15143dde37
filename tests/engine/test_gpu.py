"""The same on a real NVIDIA GPU; skipped where there is none, or no TensorRT."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rtdetr_deploy import ArtifactError, DeviceError, ImageError, MissingPackageError, Predictor, open_runtime
from rtdetr_deploy.images.frame import Frame
from rtdetr_deploy.images.preprocess import prepare_batch
from rtdetr_deploy.runtimes.protocol import GpuRuntime
from rtdetr_deploy.runtimes.trt.cuda import Cuda, DeviceMemory, PinnedArray, Stream, import_cuda, native_handle
from rtdetr_deploy.runtimes.trt.cuda_resize import FrameResizer, ResizeDestination, ResizeKernel

pytestmark = pytest.mark.gpu

EQUAL = 1e-5
"""Difference of two runs of one engine: its kernels are the same, sums of some may be taken in another order."""


@pytest.fixture(scope="module")
def cuda() -> Cuda:
    try:
        cuda = import_cuda()
        cuda.gpu()
    except (DeviceError, MissingPackageError) as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")
    return cuda


@pytest.fixture(scope="module")
def tensorrt(cuda: Cuda) -> Any:
    return pytest.importorskip("tensorrt", reason="needs TensorRT")


@pytest.fixture(scope="module")
def real_engine(tensorrt: Any, dynamic_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine in FP32, for up to three uint8 images."""
    from rtdetr_export import EngineOptions, build_engine

    target = tmp_path_factory.mktemp("engines") / "real.engine"
    return build_engine(dynamic_onnx, target, EngineOptions(opt_batch=2, max_batch=3)).path


@pytest.fixture
def torch(cuda: Cuda) -> Any:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs torch with CUDA")
    return torch


@pytest.fixture
def pictures(picture: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [picture, picture[::-1], np.roll(picture, 40, 1), np.zeros_like(picture), 255 - picture]


def test_pinned_arrays_make_the_round_trip(cuda: Cuda) -> None:
    stream = Stream(cuda)
    source, target = (PinnedArray(cuda, (64, 64), np.dtype(np.float32)) for _ in range(2))
    memory = DeviceMemory(cuda, source.array.nbytes)
    try:
        source.array[:] = np.arange(64 * 64).reshape(64, 64)

        def work() -> None:
            stream.upload(memory, source, source.array.nbytes)
            stream.download(target, memory, target.array.nbytes)

        work()
        stream.synchronize()
        assert np.array_equal(source.array, target.array)
        graph = stream.capture(work)
        source.array[:] = 7
        stream.launch(graph)
        stream.synchronize()
        assert (target.array == 7).all()
        graph.close()
    finally:
        for resource in (memory, target, source, stream):
            resource.close()


def test_the_context_of_the_caller_stays_current(cuda: Cuda) -> None:
    """In a thread that has used no GPU none is current afterwards; memory of the block is usable from a later one."""

    def use() -> None:
        before.append(native_handle(cuda.call_driver("cuCtxGetCurrent")))
        with cuda.using(gpu):
            numbers.append(int(cuda.call("cudaGetDevice")))
            memory = DeviceMemory(cuda, 1 << 20)
        after.append(native_handle(cuda.call_driver("cuCtxGetCurrent")))
        with cuda.using(gpu):
            memory.close()

    gpu = cuda.gpu(cuda.call("cudaGetDeviceCount") - 1)
    before: list[int] = []
    numbers: list[int] = []
    after: list[int] = []
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert numbers == [gpu.number]
    assert before == after == [0]


def test_a_capture_that_asks_for_memory_fails_cleanly_and_the_next_one_is_right(cuda: Cuda) -> None:
    stream = Stream(cuda)
    host, memory = PinnedArray(cuda, (4,), np.dtype(np.int32)), DeviceMemory(cuda, 16)
    try:
        with pytest.raises(DeviceError, match="captur"):
            stream.capture(lambda: DeviceMemory(cuda, 16).close())
        host.array[:] = 7
        graph = stream.capture(lambda: stream.upload(memory, host, 16))
        stream.launch(graph)
        stream.synchronize()
        host.array[:] = 0
        stream.download(host, memory, 16)
        stream.synchronize()
        assert (host.array == 7).all()
        graph.close()
    finally:
        for resource in (stream, memory, host):
            resource.close()


def test_too_much_memory_is_one_clear_line(cuda: Cuda) -> None:
    with pytest.raises(DeviceError, match="out of memory"):
        DeviceMemory(cuda, 1 << 50)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_real_engine_is_built_verified_and_detects(
    precision: str, tensorrt: Any, small_options: Any, tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    from rtdetr_export import EngineOptions, build_engine, export_onnx

    onnx = export_onnx(small_options(f"gpu-{precision}.onnx", precision=precision, batch="dynamic")).path
    target = tmp_path / "real.engine"
    result = build_engine(onnx, target, EngineOptions(opt_batch=2, max_batch=3))
    assert result.report is not None
    assert result.report.problems() == []
    with Predictor(target, 0.0) as predictor, Predictor(onnx, 0.0) as reference:
        for batch in (1, 3, 2, 1, 3):
            found = predictor.detect_batch([picture] * batch)
            expected = reference.detect_batch([picture] * batch)
            for one, other in zip(found, expected, strict=True):
                assert np.abs(one.scores - other.scores).max() < 0.05
    with Predictor(target, 0.0, resizer="cuda") as on_gpu:
        assert np.abs(on_gpu.detect(picture).scores - expected[0].scores).max() < 0.05
    runtime = open_runtime(target)
    runtime.close()
    runtime.close()


@pytest.mark.parametrize("raw", [True, False])
def test_frames_are_resized_as_opencv_does(raw: bool, cuda: Cuda, picture: NDArray[np.uint8]) -> None:
    frames = [Frame(picture, rgb=False), Frame(picture[::2, ::-1], rgb=True)]
    expected = prepare_batch(frames, 64, 96, raw=raw)
    host = PinnedArray(cuda, expected.shape, expected.dtype)
    memory, stream, kernel = DeviceMemory(cuda, expected.nbytes), Stream(cuda), ResizeKernel(cuda, cuda.gpu())
    resizer = FrameResizer(cuda, kernel)
    try:
        resizer.queue(stream, frames, ResizeDestination(memory, 64, 96, is_uint8=raw))
        stream.download(host, memory, expected.nbytes)
        stream.synchronize()
        assert np.abs(host.array.astype(np.float64) - expected).max() <= (1.001 if raw else 1.001 / 255)
    finally:
        for resource in (resizer, kernel, stream, memory, host):
            resource.close()


def _distance(one: Any, other: Any) -> float:
    return float(np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)).max())


def test_two_slots_run_side_by_side_and_give_what_one_does(
    real_engine: Path, pictures: list[NDArray[np.uint8]]
) -> None:
    """Plain, recorded, timed and on-device calls of four threads; no call gets the results of another."""
    with Predictor(real_engine, slots=1) as single:
        batches: list[Any] = [single.prepare(single.load([one] * (1 + row % 3))) for row, one in enumerate(pictures)]
        expected = [single.infer(batch)["scores"] for batch in batches]
    assert min(_distance(one[0], other[0]) for one in expected for other in expected if one is not other) > 10 * EQUAL
    with Predictor(real_engine, slots=2) as predictor:
        runtime: Any = predictor._runtime
        assert runtime.slots == 2
        uses: list[Callable[[Any], Any]] = [
            lambda batch: predictor.infer(batch)["scores"],
            lambda batch: runtime.run_timed({"images": batch})[0]["scores"],
            lambda batch: predictor.infer(batch, on_device=True)["scores"],
        ]

        def work(thread: int) -> float:
            worst = 0.0
            for turn in range(60):
                number = (5 * thread + 3 * turn) % len(batches)
                worst = max(worst, _distance(uses[(thread + turn) % len(uses)](batches[number]), expected[number]))
            return worst

        with ThreadPoolExecutor(4) as threads:
            assert max(threads.map(work, range(4))) < EQUAL
        found = list(predictor.stream(iter(pictures * 4), threshold=0.0, batch=2))
        for row, one in enumerate(found):
            assert _distance(one.scores, np.sort(expected[row % len(pictures)][0])[::-1]) < EQUAL


def test_outputs_that_stay_on_the_gpu_are_those_that_are_copied(
    real_engine: Path, pictures: list[NDArray[np.uint8]]
) -> None:
    with Predictor(real_engine) as predictor:
        runtime = predictor._runtime
        assert isinstance(runtime, GpuRuntime)
        first, second = (predictor.prepare(predictor.load([one, one])) for one in pictures[:2])
        expected = predictor.infer(first)
        held = predictor.infer(first, on_device=True)
        for _ in range(4):  # plain, recorded, replayed; in memory of their own
            predictor.infer(second, on_device=True)
        for role, output in held.items():
            assert runtime._cuda.gpu_of(output.__cuda_array_interface__["data"][0]) == runtime._gpu.number  # type: ignore[attr-defined]
            assert _distance(output, expected[role]) < EQUAL
    with pytest.raises(ArtifactError, match="real.engine is closed"):
        np.asarray(held["boxes"])


def test_torch_shares_outputs_and_is_waited_for(
    torch: Any, real_engine: Path, pictures: list[NDArray[np.uint8]]
) -> None:
    """Frames and inputs are read where they lie, after the work of torch's current stream that makes them."""
    with Predictor(real_engine, 0.0, resizer="cuda") as predictor:
        expected = predictor.detect(pictures[0])
        host: Any = np.random.default_rng(0).integers(0, 256, (2, *predictor.input_size, 3), np.uint8)
        outputs = predictor.infer(host)
        sources = [torch.from_numpy(one.copy()).pin_memory() for one in (pictures[0], host)]
        with torch.cuda.stream(torch.cuda.Stream()):
            frame = torch.zeros((90, 120, 3), dtype=torch.uint8, device="cuda")
            tensor = torch.zeros(host.shape, dtype=torch.uint8, device="cuda")
            torch.cuda.current_stream().synchronize()
            for _ in range(3):
                frame.zero_()
                tensor.zero_()
                torch.cuda._sleep(50_000_000)  # cycles: tens of milliseconds, in which nothing may be read
                frame.copy_(sources[0], non_blocking=True)
                tensor.copy_(sources[1], non_blocking=True)
                assert _distance(predictor.detect(frame).scores, expected.scores) < EQUAL
                left = predictor.infer(tensor, on_device=True)
                shared = torch.as_tensor(left["boxes"], device="cuda")
                assert shared.data_ptr() == left["boxes"].__cuda_array_interface__["data"][0]
                assert _distance(shared.cpu().numpy(), outputs["boxes"]) < EQUAL
        assert torch.cuda.current_device() == 0


def test_torch_tensors_on_another_gpu_are_refused_with_its_number(
    torch: Any, real_engine: Path, picture: NDArray[np.uint8]
) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    message = 'the image is on GPU 1, and real.engine runs on GPU 0: open it with `device="cuda:1"`'
    with Predictor(real_engine, device="cuda:0") as predictor, pytest.raises(ImageError, match=message):
        predictor.detect(torch.from_numpy(picture).to("cuda:1"))
