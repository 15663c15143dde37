"""The same on a real NVIDIA GPU; skipped where there is none, or no TensorRT."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rtdetr_deploy import DeviceError, MissingPackageError, Predictor, open_runtime
from rtdetr_deploy.images.frame import Frame
from rtdetr_deploy.images.preprocess import prepare_batch
from rtdetr_deploy.runtimes.trt.cuda import Cuda, DeviceMemory, PinnedArray, Stream, import_cuda, native_handle
from rtdetr_deploy.runtimes.trt.cuda_resize import FrameResizer, ResizeDestination, ResizeKernel

pytestmark = pytest.mark.gpu


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
