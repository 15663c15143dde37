"""Frames resized by the GPU: the kernel itself, run on the CPU, and what the engines' runtime makes of it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import fake_tensorrt
from conftest import slow_except
from engine_world import make_engine
from fake_driver import COMPILER, Status
from rtdetr_deploy import ArtifactError, DeviceError, MissingPackageError, OptionError, Predictor
from rtdetr_deploy.cli.detect import main as detect
from rtdetr_deploy.images.frame import Frame
from rtdetr_deploy.images.preprocess import prepare_batch
from rtdetr_deploy.images.preprocess_spec import PreprocessSpec
from rtdetr_deploy.runtimes import PreprocessingRuntime, open_runtime
from rtdetr_deploy.runtimes.trt.cuda import Cuda, DeviceMemory, Gpu, PinnedArray, Stream
from rtdetr_deploy.runtimes.trt.cuda_resize import FrameResizer, ResizeDestination, ResizeKernel

pytest_plugins = ("engine_world",)
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler, which stands in for the GPU's")

T4 = Gpu(0, "Tesla T4", "7.5", 1 << 34)


def _frames(seed: int = 0) -> list[Frame]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (108, 192, 3), np.uint8)
    smooth: NDArray[np.uint8] = cv2.GaussianBlur(coarse, (5, 5), 0)  # type: ignore[assignment]
    noise = rng.integers(0, 256, (31, 250, 3), np.uint8)
    return [Frame(smooth, rgb=False), Frame(noise, rgb=True), Frame(smooth[5:90:2, ::-1], False)]


def _resize(world: fake_tensorrt.World, frames: list[Frame], rows: int, columns: int, raw: bool) -> NDArray[Any]:
    """Return what the resizer writes to the GPU."""
    cuda = Cuda(world.cuda)
    shape = (len(frames), rows, columns, 3) if raw else (len(frames), 3, rows, columns)
    host = PinnedArray(cuda, shape, np.dtype(np.uint8 if raw else np.float32))
    memory, stream, kernel = DeviceMemory(cuda, host.array.nbytes), Stream(cuda), ResizeKernel(cuda, T4)
    resizer = FrameResizer(cuda, kernel)
    for _ in range(2):
        resizer.queue(stream, frames, ResizeDestination(memory, rows, columns, is_uint8=raw))
        stream.download(host, memory, host.array.nbytes)
        stream.synchronize()
    result: NDArray[Any] = host.array.copy()
    for resource in (resizer, resizer, kernel, kernel, stream, memory, host):
        resource.close()
    return result


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (160, 128), (31, 250), (200, 500), (1, 1), (17, 33)])
def test_the_kernel_does_what_opencv_does(world: fake_tensorrt.World, rows: int, columns: int, raw: bool) -> None:
    frames = _frames()
    found = _resize(world, frames, rows, columns, raw)
    expected = prepare_batch(frames, rows, columns, raw=raw)
    assert found.dtype == expected.dtype
    level = 1 if raw else 1 / 255
    difference = np.abs(found.astype(np.float64) - expected)
    assert difference.max() <= level * 1.001
    assert (difference > level / 2).mean() < 0.005


def test_memory_for_frames_grows_and_is_kept(world: fake_tensorrt.World) -> None:
    cuda = Cuda(world.cuda)
    kernel, stream, memory = ResizeKernel(cuda, T4), Stream(cuda), DeviceMemory(cuda, 32 * 32 * 3)
    resizer = FrameResizer(cuda, kernel)
    target = ResizeDestination(memory, 32, 32, is_uint8=True)
    counts = []
    for size in (10, 40, 20, 40, 41):
        resizer.queue(stream, [Frame(np.zeros((size, size, 3), np.uint8), rgb=True)], target)
        stream.synchronize()
        counts.append(world.cuda.log.count("free pinned"))
    assert counts == [0, 1, 1, 1, 2]
    for resource in (resizer, kernel, memory, stream):
        resource.close()


@pytest.mark.parametrize("raw", slow_except([True, False], True))
def test_detections_are_those_of_the_cpu_resizer(
    world: fake_tensorrt.World, raw: bool, small_export: Any, tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    onnx = small_export("dynamic.onnx", batch="dynamic", **({"raw_input": True} if raw else {}))
    large = cv2.resize(picture, (500, 300), interpolation=cv2.INTER_CUBIC)
    pictures = [large, picture, large[::-1], picture[:60]]
    engine = make_engine(onnx, tmp_path)
    with Predictor(engine, 0.0, resizer="cuda") as on_gpu, Predictor(engine, 0.0) as on_cpu:
        for batch in (1, 3, 4, 1, 3, 4, 1):
            for one, other in zip(
                on_gpu.detect_batch(pictures[:batch]), on_cpu.detect_batch(pictures[:batch]), strict=True
            ):
                assert np.abs(np.sort(one.scores) - np.sort(other.scores)).max() < 0.02
        assert len(on_gpu.detect(picture[:, :, ::-1], color="rgb")) == 300
    assert world.cuda.launches > 0


def test_only_frames_cross_the_bus(
    world: fake_tensorrt.World, dynamic_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    copy = world.cuda.cudaMemcpyAsync

    def note(target: int, source: int, size: int, kind: int, stream: int) -> tuple[Any, ...]:
        if kind == world.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice:
            sizes.append(size)
        return copy(target, source, size, kind, stream)

    monkeypatch.setattr(world.cuda, "cudaMemcpyAsync", note)
    frame = np.zeros((108, 192, 3), np.uint8)
    with Predictor(make_engine(dynamic_onnx, tmp_path), resizer="cuda") as predictor:
        for _ in range(3):
            predictor.detect(frame)
    assert sizes == [frame.nbytes] * 3


def test_rows_without_a_frame_are_black(
    world: fake_tensorrt.World, small_options: Any, tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    from rtdetr_export import export_onnx

    onnx = export_onnx(small_options("two.onnx", batch=2, verify=False)).path
    runtime = open_runtime(make_engine(onnx, tmp_path, profile=(2, 2, 2)))
    assert isinstance(runtime, PreprocessingRuntime)
    prepare = runtime.preprocessor("images", "cuda", PreprocessSpec.rtdetr((128, 160)))
    frame, black = Frame(picture, rgb=True), Frame(np.zeros((9, 9, 3), np.uint8), rgb=True)
    runtime.run({"images": prepare([frame, frame], 2)})
    outputs = runtime.run({"images": prepare([frame], 2)})
    expected = runtime.run({"images": prepare([black, black], 2)})
    assert np.array_equal(outputs["scores"][1], expected["scores"][0])
    assert not np.array_equal(outputs["scores"][0], expected["scores"][0])
    assert len(prepare([frame], 1)) == 2  # the engine takes no fewer
    with pytest.raises(ArtifactError, match="batch 3 is outside"):
        runtime.run({"images": prepare([frame] * 3, 3)})
    runtime.close()
    with pytest.raises(ArtifactError, match="is closed"):
        runtime.run({"images": prepare([frame], 2)})


def test_what_the_kernel_cannot_make_is_refused(
    world: fake_tensorrt.World, dynamic_onnx: Path, small_onnx: Path, tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    engine, plain = make_engine(dynamic_onnx, tmp_path), PreprocessSpec.rtdetr((128, 160), "uint8")
    runtime, other = open_runtime(engine), open_runtime(engine)
    assert isinstance(runtime, PreprocessingRuntime)
    assert isinstance(other, PreprocessingRuntime)
    for name, resizer in (("images", "opencv"), ("pictures", "cuda")):
        with pytest.raises(OptionError, match=f"has no `resizer` '{resizer}' for an input '{name}'"):
            runtime.preprocessor(name, resizer, plain)
    with pytest.raises(OptionError, match=r'`resizer="cuda"` makes RGB in \[0, 1\], stretched; dynamic.engine wants'):
        runtime.preprocessor("images", "cuda", replace(plain, letterbox=True))
    batch = other.preprocessor("images", "cuda", plain)([Frame(picture, rgb=True)], 1)
    with pytest.raises(ArtifactError, match="takes images from its own preprocessor, not another one's"):
        runtime.run({"images": batch})
    with pytest.raises(ArtifactError, match="takes images float32.*, not FrameBatch"):
        open_runtime(small_onnx).run({"images": batch})
    runtime.close()
    other.close()


def test_what_is_missing_is_one_clear_line(
    world: fake_tensorrt.World, dynamic_onnx: Path, small_onnx: Path, tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    with pytest.raises(OptionError, match="`resizer` is 'cuda', expected opencv or pillow: .* is run by ONNX Runtime"):
        Predictor(small_onnx, resizer="cuda")
    with pytest.raises(OptionError, match="does not work on the CPU; choose opencv or pillow"):
        prepare_batch([Frame(picture, rgb=True)], 8, 8, resizer="cuda")
    bindings: Any = sys.modules["cuda.bindings"]
    with Predictor(make_engine(dynamic_onnx, tmp_path), resizer="cuda") as predictor:
        bindings.nvrtc.missing = True
        with pytest.raises(
            MissingPackageError, match=r"run-time compiler .*: pip install .*'nvidia-cuda-nvrtc(-cu12)?[<>]"
        ):
            predictor.detect(picture)
        bindings.nvrtc.missing = False
        assert len(predictor.detect(picture, threshold=0.0)) == 300
        bindings.driver.cuLaunchKernel = lambda *_: (Status.CUDA_ERROR_INVALID_VALUE,)
        with pytest.raises(DeviceError, match=r"CUDA_ERROR_INVALID_VALUE \(cuLaunchKernel\)"):
            predictor.detect(picture)
    world.cuda.capability = (6, 1)
    with pytest.raises(DeviceError, match="can't be compiled for Tesla P4"):
        ResizeKernel(Cuda(world.cuda), Gpu(0, "Tesla P4", "6.1", 1))


def test_the_command_line_offers_it(small_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "a.png"
    cv2.imwrite(str(picture), np.zeros((20, 20, 3), np.uint8))
    assert detect([str(small_onnx), str(picture), "--resizer", "cuda"]) != 0
    assert (
        "--resizer is 'cuda', expected opencv or pillow: small.onnx is run by ONNX Runtime" in capsys.readouterr().err
    )
