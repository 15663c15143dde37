"""Which TensorRT is taken, and where a Jetson finds its own."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fake_tensorrt
from fake_cuda import FakeCuda
from rtdetr_deploy import DeviceError, MissingPackageError, open_runtime
from rtdetr_deploy.runtimes.trt import supported
from rtdetr_deploy.runtimes.trt.compile_kernel import compile_kernel
from rtdetr_deploy.runtimes.trt.cuda import Cuda, Gpu, import_cuda
from rtdetr_deploy.runtimes.trt.runtime import start
from rtdetr_deploy.runtimes.trt.supported import require_tensorrt
from rtdetr_export import build_engine

pytest_plugins = ("engine_world",)


@pytest.fixture
def jetson(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(supported, "JETSON_RELEASE", tmp_path)


def test_jetpack_6_builds_and_runs(
    world: fake_tensorrt.World, small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its TensorRT is 10.3, which lacks some enumerations and settings."""
    monkeypatch.setattr(fake_tensorrt, "__version__", "10.3.0.30")
    monkeypatch.delattr(fake_tensorrt, "TilingOptimizationLevel")
    with pytest.warns(UserWarning, match="TensorRT 10.3.0.30 is older than 10.13, from which on strong typing"):
        result = build_engine(small_onnx, tmp_path / "a.engine")
    assert result.engine_info is not None
    assert result.engine_info.tensorrt == "10.3.0.30"
    with pytest.warns(UserWarning, match="older than 10.13"):
        open_runtime(result.path).close()


@pytest.mark.parametrize("version", ["8.5.2.2", "8.6.2.3", "10.0.1"])
def test_a_tensorrt_that_is_too_old_is_told_by_its_version(
    version: str, world: fake_tensorrt.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_tensorrt, "__version__", version)
    message = f"running engines needs TensorRT 10.3 or later, and this is {version}: pip install .*'tensorrt-cu12"
    with pytest.raises(MissingPackageError, match=message):
        require_tensorrt("running engines")


def test_on_a_jetson_the_systems_tensorrt_is_named(
    jetson: None, world: fake_tensorrt.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_tensorrt, "__version__", "8.6.2.3")
    with pytest.raises(MissingPackageError, match="this is 8.6.2.3: update JetPack to 6.1 or later"):
        require_tensorrt("running engines")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingPackageError, match="sudo apt install python3-libnvinfer, in .* --system-site-packages"):
        require_tensorrt("running engines")
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingPackageError) as caught:
        import_cuda()
    assert "'tensorrt" not in str(caught.value)


def _words(kind: type[Exception], use: Callable[[], object]) -> str:
    """Return the message of the error that `use` raises."""
    with pytest.raises(kind) as caught:
        use()
    return str(caught.value)


def test_on_a_jetson_no_message_names_packages_of_servers(
    jetson: None, world: fake_tensorrt.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvrtc = sys.modules["cuda.bindings"].nvrtc
    gpu = Gpu(0, "Orin", "8.7", 1 << 33)
    nvrtc.missing = True
    messages = [_words(MissingPackageError, lambda: compile_kernel("", "kernel", gpu))]
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    messages.append(_words(MissingPackageError, lambda: compile_kernel("", "kernel", gpu)))
    messages.append(_words(DeviceError, lambda: Cuda(FakeCuda(gpus=-1)).gpu()))
    messages.append(_words(DeviceError, lambda: start(lambda _: int("nullptr"), None)))
    for message, remedy in zip(
        messages,
        ("sudo apt install nvidia-jetpack", "cuda-python", "update JetPack, which has the driver", "update JetPack"),
        strict=True,
    ):
        assert remedy in message
        assert not re.search("tensorrt-cu12|nvidia-cuda-nvrtc|'tensorrt>=", message)


def test_elsewhere_the_packages_that_fit_the_driver_are_named() -> None:
    for use in (lambda: Cuda(FakeCuda(gpus=-1)).gpu(), lambda: start(lambda _: int("nullptr"), None)):
        assert re.search("update the driver, or pip install .*tensorrt-cu12", _words(DeviceError, use))


class _Driver:
    """The driver's library, as ctypes shows it; it tells the newest CUDA that it runs."""

    def __init__(self, version: int, status: int = 0) -> None:
        self.version, self.status = version, status

    def cuDriverGetVersion(self, target: Any) -> int:
        target._obj.value = self.version
        return self.status


@pytest.mark.parametrize(
    ("driver", "newest", "both"),
    [
        (_Driver(12020), 12, False),  # 535
        (_Driver(12080), 12, False),  # 570
        (_Driver(13000), 13, True),  # 580
        (_Driver(0, 34), None, False),  # the toolkit's stub
        (OSError("libcuda.so.1: cannot open shared object file"), None, False),
        (object(), None, False),
    ],
)
def test_the_packages_that_are_named_run_on_the_driver(
    driver: object, newest: int | None, both: bool, world: fake_tensorrt.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> object:
        assert name == ("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        if isinstance(driver, Exception):
            raise driver
        return driver

    monkeypatch.setattr("ctypes.CDLL", load)
    assert supported.cuda_of_driver() == newest
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    message = _words(MissingPackageError, lambda: require_tensorrt("running engines"))
    assert message.startswith("running engines needs tensorrt, which is not installed: pip install '")
    assert "'tensorrt-cu12<" in message
    assert ("'tensorrt>=" in message) == both
    assert message.count("pip install") == 1 + both
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    message = _words(MissingPackageError, import_cuda)
    assert message.count("pip install") == 1 + both


def test_packages_that_replace_those_of_a_later_cuda_are_all_named() -> None:
    """cuda-python is installed here, but that of CUDA 13 doesn't help a driver of CUDA 12."""
    assert "'cuda-python<13,>=12.9.1'" in _words(DeviceError, Cuda(FakeCuda(gpus=-1)).gpu)


def test_a_supported_version_is_taken_without_a_word(world: fake_tensorrt.World) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert require_tensorrt("running engines") is fake_tensorrt


def test_an_arm_server_is_not_a_jetson(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(supported, "JETSON_RELEASE", tmp_path / "none")
    assert not supported.on_jetson()
