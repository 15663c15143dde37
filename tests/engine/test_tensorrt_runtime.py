"""The TensorRT runtime over strict doubles of TensorRT and CUDA (neither can run here), backed by ONNX Runtime."""

from __future__ import annotations

import inspect
import json
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fake_tensorrt
from conftest import shared_folder
from engine_world import make_engine
from fake_cuda import FakeCuda
from fake_driver import FakeDriver, FakeNvrtc
from onnx_files import write_released_style
from rtdetr_deploy import (
    ArtifactError,
    DeviceError,
    MissingPackageError,
    OptionError,
    Predictor,
    ThirdPartyInfo,
    open_runtime,
)
from rtdetr_deploy.runtimes import RuntimeOptions
from rtdetr_deploy.runtimes.trt.cuda import native_handle
from rtdetr_deploy.runtimes.trt.runtime import TensorRtRuntime
from rtdetr_deploy.runtimes.trt.sidecar import sidecar_path

pytest_plugins = ("engine_world",)


pytest.importorskip("onnxruntime")


def test_an_engine_detects_what_its_onnx_file_does(
    world: fake_tensorrt.World, engine: Path, dynamic_onnx: Path, picture: NDArray[np.uint8]
) -> None:
    pictures = [picture, picture[::-1].copy(), picture[:, ::-1].copy(), picture[:50], picture[:, :70], picture]
    with Predictor(engine, 0.0) as predictor, Predictor(dynamic_onnx, 0.0) as reference:
        assert predictor.runtime == "TensorRT 10.13.3.9 (Tesla T4)"
        assert predictor.class_names == ("red", "white", "platelet")
        for batch in (1, 6, 3, 1, 1, 3, 6):  # 6 is split: the profile ends at 4
            for one, other in zip(
                predictor.detect_batch(pictures[:batch]), reference.detect_batch(pictures[:batch]), strict=True
            ):
                assert np.abs(one.boxes - other.boxes).max() < 0.01
                assert np.abs(one.scores - other.scores).max() < 1e-4
    assert world.cuda.launches > 0


def test_a_file_of_a_fixed_batch_runs_too(
    world: fake_tensorrt.World, small_onnx: Path, tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    with Predictor(make_engine(small_onnx, tmp_path), 0.0) as predictor:
        assert predictor.batch == 1
        assert len(predictor.detect(picture)) == 300


def _feed(batch: int, seed: int = 0) -> dict[str, Any]:
    return {"images": np.random.default_rng(seed).integers(0, 256, (batch, 128, 160, 3), np.uint8)}


def test_the_second_call_of_a_batch_size_is_one_graph(world: fake_tensorrt.World, engine: Path) -> None:
    runtime = open_runtime(engine)
    first = runtime.run(_feed(2))
    assert (world.cuda.launches, world.executions) == (0, 1)
    second = runtime.run(_feed(2))
    assert (world.cuda.launches, world.executions) == (1, 2)
    other = runtime.run(_feed(2, seed=1))
    assert (world.cuda.launches, world.executions) == (2, 3)
    runtime.run(_feed(1))
    assert world.cuda.launches == 2
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(first["boxes"], other["boxes"])
    runtime.close()
    runtime.close()


@pytest.mark.parametrize("slots", [1, 2])
def test_resources_are_released_in_order(world: fake_tensorrt.World, engine: Path, slots: int) -> None:
    runtime = open_runtime(engine, options=RuntimeOptions(slots=slots))
    runtime.run(_feed(1))
    runtime.run(_feed(1))
    runtime.close()
    log = world.cuda.log
    assert "free device" not in log[: log.index("destroy graph")] or slots == 2
    assert log[-1] == "destroy stream"
    assert log.count("free device") == 5 * slots  # images, labels, boxes, scores, working memory
    assert log.count("free pinned") == 4 * slots
    with pytest.raises(ArtifactError, match="is closed"):
        runtime.run(_feed(1))


def test_inputs_must_have_the_same_number_of_rows(world: fake_tensorrt.World, tmp_path: Path) -> None:
    path = tmp_path / "third.engine"
    path.write_bytes(fake_tensorrt.MAGIC + write_released_style(tmp_path / "third.onnx").read_bytes())
    runtime = open_runtime(path)
    feed: dict[str, NDArray[Any]]
    feed = {"images": np.zeros((1, 3, 64, 96), np.float32), "orig_target_sizes": np.ones((1, 2), np.int64)}
    assert runtime.run(feed)["boxes"].shape == (1, 2, 4)
    with pytest.raises(ArtifactError, match="third.engine takes the same number of rows in each input"):
        runtime.run({**feed, "orig_target_sizes": np.ones((2, 2), np.int64)})
    runtime.close()


@pytest.mark.parametrize(
    ("owner", "method", "answer", "error", "message"),
    [
        (
            "ICudaEngine",
            "create_execution_context",
            None,
            DeviceError,
            "no execution context could be made",
        ),
        ("IExecutionContext", "infer_shapes", ["images"], ArtifactError, "the shapes of images are not determined"),
        (
            "IExecutionContext",
            "get_tensor_shape",
            (7,),
            ArtifactError,
            r"labels is \(7,\) for 1 image; expected a row for each",
        ),
        ("IExecutionContext", "set_tensor_address", False, DeviceError, "TensorRT refused images: it gave no reason"),
    ],
)
def test_a_context_that_cannot_be_made_is_one_clear_line(
    owner: str,
    method: str,
    answer: object,
    error: type[Exception],
    message: str,
    world: fake_tensorrt.World,
    engine: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = open_runtime(engine)
    with monkeypatch.context() as patch:
        patch.setattr(getattr(fake_tensorrt, owner), method, lambda *_: answer)
        with pytest.raises(error, match=f"dynamic.engine: .*{message}"):
            runtime.run(_feed(1))
    assert runtime.run(_feed(1))["scores"].shape == (1, 300)
    runtime.close()


@pytest.mark.parametrize(
    ("owner", "method", "error", "message"),
    [
        ("ICudaEngine", "create_execution_context", DeviceError, "no execution context could be made: pybind's words"),
        ("IExecutionContext", "infer_shapes", DeviceError, "TensorRT refused shapes for 1 image: pybind's words"),
        ("IExecutionContext", "set_input_shape", DeviceError, "TensorRT refused images: pybind's words"),
        ("IExecutionContext", "execute_async_v3", DeviceError, "TensorRT refused execution: pybind's words"),
        (
            "ICudaEngine",
            "create_engine_inspector",
            ArtifactError,
            "the engine inspector gives no layers: pybind's words",
        ),
        ("EngineInspector", "get_engine_information", ArtifactError, "gives no layers: pybind's words"),
    ],
)
@pytest.mark.parametrize("kind", [RuntimeError, TypeError])
def test_what_the_bindings_raise_is_our_error(
    kind: type[Exception],
    owner: str,
    method: str,
    error: type[Exception],
    message: str,
    world: fake_tensorrt.World,
    engine: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise kind("pybind's words")

    runtime = open_runtime(engine)
    assert isinstance(runtime, TensorRtRuntime)
    use = runtime.layers if error is ArtifactError else lambda: runtime.run(_feed(1))
    with monkeypatch.context() as patch:
        patch.setattr(getattr(fake_tensorrt, owner), method, fail)
        with pytest.raises(error, match=f"dynamic.engine: .*{message}"):
            use()
    use()
    runtime.close()


def test_an_engine_that_the_bindings_raise_for_is_our_error(
    world: fake_tensorrt.World, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        world.say(fake_tensorrt.ILogger.ERROR, "in TensorRT's words")
        raise RuntimeError("std::bad_alloc")

    monkeypatch.setattr(fake_tensorrt.Runtime, "deserialize_cuda_engine", fail)
    with pytest.raises(ArtifactError, match=r"can't be loaded by TensorRT 10.13.3.9: in TensorRT's words$"):
        open_runtime(engine)


def test_the_lean_runtime_is_named_where_it_is_missing(
    world: fake_tensorrt.World, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        world.say(fake_tensorrt.ILogger.ERROR, "Unable to load library: libnvinfer_lean.so.10")

    monkeypatch.setattr(fake_tensorrt.Runtime, "deserialize_cuda_engine", fail)
    with pytest.raises(
        ArtifactError,
        match=r"libnvinfer_lean.so.10; the lean runtime, .*: pip install tensorrt-lean==10.13.3.9 \(beside",
    ):
        open_runtime(engine)


def test_a_tensorrt_that_cannot_start_says_why(
    world: fake_tensorrt.World, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def fail(*_: object) -> None:
        for text in said:
            world.say(fake_tensorrt.ILogger.ERROR, text)
        raise TypeError("factory function returned nullptr")

    monkeypatch.setattr(fake_tensorrt.Runtime, "__init__", fail)
    with pytest.raises(DeviceError, match=r"can't be started \(factory function returned nullptr\): its CUDA version"):
        open_runtime(engine)
    said.append("CUDA initialization failure with error: 35")
    with pytest.raises(DeviceError, match=r"can't be started \(CUDA initialization failure with error: 35\)"):
        open_runtime(engine)


def test_layers_are_read_though_names_hold_control_characters(world: fake_tensorrt.World, engine: Path) -> None:
    runtime = open_runtime(engine)
    assert isinstance(runtime, TensorRtRuntime)
    assert runtime.layers()[0]["LayerType"] == "CaskConvolution"
    runtime.close()


@pytest.mark.parametrize("text", ["not JSON", "{}", "[]"])
def test_an_inspector_that_gives_no_layers_is_refused(
    text: str, world: fake_tensorrt.World, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_tensorrt.EngineInspector, "get_engine_information", lambda *_: text)
    runtime = open_runtime(engine)
    assert isinstance(runtime, TensorRtRuntime)
    with pytest.raises(ArtifactError, match=r"the engine inspector gives no layers \("):
        runtime.layers()
    runtime.close()


def test_engines_with_other_formats_or_inputs_on_the_cpu_are_refused(world: fake_tensorrt.World, engine: Path) -> None:
    world.formats = {"images": fake_tensorrt.TensorFormat.HWC8}
    with pytest.raises(ArtifactError, match=r"dynamic.engine: images has the format HWC8, expected LINEAR; build"):
        open_runtime(engine)
    world.formats = {}
    world.locations = {"images": fake_tensorrt.TensorLocation.HOST}
    with pytest.raises(ArtifactError, match="images is a shape that TensorRT reads on the CPU; only images are fed"):
        open_runtime(engine)


def test_a_refused_execution_is_an_error_in_tensorrts_words(world: fake_tensorrt.World, engine: Path) -> None:
    runtime = open_runtime(engine)
    world.refuse = True
    with pytest.raises(DeviceError, match=r"refused execution: Error Code 3: API Usage Error"):
        runtime.run(_feed(1))
    world.refuse = False
    assert runtime.run(_feed(1))["scores"].shape == (1, 300)
    runtime.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensorrt": "11.4.0.106"}, "was built by TensorRT 11.4.0.106, this is 10.13.3.9"),
        (
            {"capability": "8.6", "gpu": "A10"},
            r"was built for A10 \(compute capability 8.6\), this is Tesla T4",
        ),
        ({"engine_digest": "0"}, "belongs to an engine other than"),
        ({"tensorrt": "11.4.0.106", "version_compatible": True}, "same major number"),
        ({"tensorrt": "10.16.1.11", "version_compatible": True}, "same major number"),
        ({"capability": "8.6", "hardware_compatible": True}, "build it again here"),
    ],
)
def test_engines_of_another_machine_are_refused(
    changes: dict[str, Any], message: str, world: fake_tensorrt.World, dynamic_onnx: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=message):
        open_runtime(make_engine(dynamic_onnx, tmp_path, **changes))


def test_another_gpu_of_the_same_capability_is_warned_of(
    world: fake_tensorrt.World, dynamic_onnx: Path, tmp_path: Path
) -> None:
    message = (
        "dynamic.engine was built on RTX 2080, this is Tesla T4: it may be slow or run out of memory; build it again"
    )
    with pytest.warns(UserWarning, match=message):
        open_runtime(make_engine(dynamic_onnx, tmp_path, gpu="RTX 2080")).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for changes in ({}, {"gpu": "RTX 2080", "hardware_compatible": "same-compute-capability"}):
            open_runtime(make_engine(dynamic_onnx, tmp_path, **changes)).close()


def test_compatible_engines_of_another_machine_run(
    world: fake_tensorrt.World, dynamic_onnx: Path, tmp_path: Path
) -> None:
    world.cuda.capability = (8, 9)
    other = {"tensorrt": "10.1", "capability": "8.6", "version_compatible": True, "hardware_compatible": True}
    runtime = open_runtime(make_engine(dynamic_onnx, tmp_path, **other))
    assert isinstance(runtime, TensorRtRuntime)
    assert runtime._loaded.runtime is not None
    assert runtime._loaded.runtime.engine_host_code_allowed
    runtime.close()


def test_an_engine_without_sidecar_runs_as_a_file_of_others(
    world: fake_tensorrt.World, engine: Path, picture: NDArray[np.uint8]
) -> None:
    sidecar_path(engine).unlink()
    with Predictor(engine, 0.0) as predictor:
        assert isinstance(predictor.info, ThirdPartyInfo)
        assert predictor.detect(picture).names[0].startswith("class ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "can't be read"),
        ("{}", "does not describe an engine"),
        ('{"format": 99}', "newer rtdetr-deploy"),
        ('{"format": 1, "info": {}}', "does not describe an engine"),
    ],
)
def test_damaged_sidecars_are_refused(content: str, message: str, world: fake_tensorrt.World, engine: Path) -> None:
    sidecar_path(engine).write_text(content)
    with pytest.raises(ArtifactError, match=message):
        open_runtime(engine)


def test_a_sidecar_with_damaged_info_is_refused(world: fake_tensorrt.World, engine: Path) -> None:
    stored = json.loads(sidecar_path(engine).read_text())
    del stored["info"]["height"]
    sidecar_path(engine).write_text(json.dumps(stored))
    with pytest.raises(ArtifactError, match="lacks height"):
        open_runtime(engine)


def test_a_file_that_is_no_engine_is_refused_in_tensorrts_words(world: fake_tensorrt.World, tmp_path: Path) -> None:
    path = tmp_path / "x.engine"
    path.write_bytes(b"something else")
    with pytest.raises(ArtifactError, match=r"can't be loaded by TensorRT 10.13.3.9: Serialization assertion magicTag"):
        open_runtime(path)


def test_too_little_memory_is_one_clear_line_and_leaks_nothing(world: fake_tensorrt.World, engine: Path) -> None:
    world.cuda.memory = 10_000
    with pytest.raises(DeviceError, match=r"out of memory \(cuda.*smaller batch"):
        open_runtime(engine)


@pytest.mark.parametrize("gpus", [0, -1])
def test_no_gpu_is_one_clear_line(gpus: int, world: fake_tensorrt.World, engine: Path) -> None:
    world.cuda.gpus = gpus
    with pytest.raises(DeviceError, match="no NVIDIA GPU can be used"):
        open_runtime(engine)


def test_options_that_engines_do_not_have_are_refused(world: fake_tensorrt.World, engine: Path) -> None:
    with pytest.raises(
        OptionError, match=r'`device="cpu"` is not for engines: dynamic.engine runs on NVIDIA GPUs only'
    ):
        open_runtime(engine, options=RuntimeOptions(device="cpu"))
    with pytest.raises(OptionError, match="`device` is 'npu', but TensorRT runs on cuda or cuda:1"):
        open_runtime(engine, options=RuntimeOptions(device="npu"))
    with pytest.raises(OptionError, match="`threads` is not for engines"):
        open_runtime(engine, options=RuntimeOptions(threads=2))
    open_runtime(engine, options=RuntimeOptions(device="cuda")).close()


def test_the_gpu_of_a_number_is_used_by_every_thread(world: fake_tensorrt.World, engine: Path) -> None:
    world.cuda.gpus = 2
    with pytest.raises(DeviceError, match="GPU 2 can't be used: CUDA finds 2 GPUs, counted from 0"):
        open_runtime(engine, options=RuntimeOptions(device="cuda:2"))
    runtime = open_runtime(engine, options=RuntimeOptions(device="cuda:1"))
    expected = runtime.run(_feed(1))
    assert set(world.cuda.home.values()) == {1}  # the double refuses work on a stream of another device

    def use() -> None:
        results.append(runtime.run(_feed(1)))

    results: list[Any] = []
    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    assert [np.array_equal(result["boxes"], expected["boxes"]) for result in results] == [True] * 2
    runtime.close()


def test_the_callers_device_stays_current_and_no_other_gpu_is_touched(
    world: fake_tensorrt.World, engine: Path, dynamic_onnx: Path, picture: NDArray[np.uint8]
) -> None:
    """Setting the device back with cudaSetDevice would make a context, of hundreds of MB, on a GPU that nobody uses."""
    world.cuda.gpus = 3
    options = RuntimeOptions(device="cuda:1")
    runtime = open_runtime(engine, options=options)
    assert isinstance(runtime, TensorRtRuntime)
    runtime.run(_feed(1))
    assert (world.cuda.current, world.cuda.initialized) == (0, {1})
    world.cuda.cudaSetDevice(2)  # as torch.cuda.set_device
    uses: list[Callable[[], object]] = [
        lambda: runtime.run(_feed(1)),
        lambda: runtime.run_timed(_feed(1)),
        runtime.layers,
        lambda: runtime.run({}),
        lambda: open_runtime(b"something else", runtime="tensorrt", options=options),
        lambda: predictor.detect(picture),
        runtime.close,
    ]
    with Predictor(engine, device="cuda:1", resizer="cuda") as predictor:
        for use in uses:
            with suppress(ArtifactError):
                use()
            assert (world.cuda.current, world.cuda.thread.contexts) == (2, [2])
    assert (world.cuda.current, world.cuda.thread.contexts) == (2, [2])
    assert world.cuda.initialized == {1, 2}
    world.cuda.cudaSetDevice(0)


def test_the_device_is_not_set_where_it_is_current_already(
    world: fake_tensorrt.World, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = open_runtime(engine)
    world.cuda.cudaSetDevice(0)
    monkeypatch.delattr(FakeDriver, "cuCtxPushCurrent")
    runtime.run(_feed(1))
    runtime.close()


class Handle:
    """A handle as later versions of cuda-python have it: `int` no longer takes it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __int__(self) -> int:
        raise TypeError("int() of a handle was removed")


def test_handles_need_not_be_numbers(world: fake_tensorrt.World, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utils = ModuleType("cuda.bindings.utils")
    utils.get_cuda_native_handle = lambda handle: handle.number  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings.utils", utils)
    assert native_handle(Handle(7)) == 7
    monkeypatch.setitem(sys.modules, "cuda.bindings.utils", ModuleType("cuda.bindings.utils"))
    assert native_handle(np.int64(7)) == 7


def test_handles_of_the_real_cuda_python_are_numbers() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    driver = pytest.importorskip("cuda.bindings.driver")
    handles = (runtime.cudaStream_t(5), driver.CUcontext(7), driver.CUcontext(), runtime.cudaGraphExec_t(9))
    assert [native_handle(handle) for handle in handles] == [5, 7, 0, 9]


def test_content_is_opened_as_a_third_party_engine(world: fake_tensorrt.World, engine: Path) -> None:
    runtime = open_runtime(engine.read_bytes(), runtime="tensorrt")
    assert (runtime.file, runtime.info, runtime.metadata) == ("the engine", None, {})
    assert runtime.run(_feed(1))["scores"].shape == (1, 300)
    runtime.close()


@pytest.mark.parametrize(("hidden", "package"), [("tensorrt", "tensorrt(-cu12)?"), ("cuda.bindings", "cuda-python")])
def test_missing_packages_are_named(
    hidden: str, package: str, world: fake_tensorrt.World, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, hidden, None)
    with pytest.raises(MissingPackageError, match=rf"needs {hidden}, .*: pip install .*'{package}[<>]"):
        open_runtime(engine)


@pytest.mark.parametrize("version", ["10.13.3.9", "10.16.1.11", "11.4.0.106"])
def test_the_double_has_only_what_the_bindings_have(version: str) -> None:
    """Every public name of the double exists in the real bindings, and methods take the same arguments."""
    api = json.loads((shared_folder("tensorrt") / f"api_{version}.json").read_text())
    compared = 0
    for name in ("Runtime", "ICudaEngine", "IExecutionContext", "ILogger"):
        listed = api["classes"][name]
        double = getattr(fake_tensorrt, name)
        for member, function in vars(double).items():
            if member.startswith("_") or not inspect.isfunction(function):
                continue
            signatures = listed["methods"][member]
            arguments = [argument for argument in inspect.signature(function).parameters if argument != "self"]
            assert any(all(f"{argument}:" in text for argument in arguments) for text in signatures), (
                member,
                signatures,
            )
            compared += 1
    assert compared >= 13
    assert {"device_memory_size_v2", "num_io_tensors"} <= set(api["classes"]["ICudaEngine"]["props"])
    assert "engine_host_code_allowed" in api["classes"]["Runtime"]["props"]
    for name in ("TensorLocation", "TensorFormat"):
        listed = api["enums"][name]
        assert {member.name: member.value for member in getattr(fake_tensorrt, name)}.items() <= listed.items()
    for name in ("TensorIOMode", "ExecutionContextAllocationStrategy"):
        assert {member.name for member in getattr(fake_tensorrt, name)} == set(api["enums"][name])
    assert {member.name for member in fake_tensorrt.ILogger.Severity} == set(api["enums"]["ILogger.Severity"])
    assert {member.name for member in fake_tensorrt.DataType} <= set(api["enums"]["DataType"])


def test_the_cuda_double_has_only_what_cuda_python_has() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    for name in vars(FakeCuda):
        if name.startswith("cuda"):
            assert hasattr(runtime, name), name
    for double, module in ((FakeDriver, "driver"), (FakeNvrtc, "nvrtc")):
        real = pytest.importorskip(f"cuda.bindings.{module}")
        names = [name for name in vars(double) if name.lower().startswith(("cu", "nvrtc"))]
        assert len(names) >= 4
        assert all(hasattr(real, name) for name in names)
    for kind in ("cudaMemcpyKind", "cudaMemoryType", "cudaStreamCaptureMode"):
        for member in vars(getattr(FakeCuda, kind)):
            assert hasattr(getattr(runtime, kind), member), member
    attributes = pytest.importorskip("cuda.bindings.driver").CUpointer_attribute
    assert all(getattr(attributes, member.name) == member for member in FakeDriver.CUpointer_attribute)
