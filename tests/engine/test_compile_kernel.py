"""Compiling the kernel that resizes, by a double of NVRTC and by NVRTC itself, which needs no GPU."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

import fake_tensorrt
from fake_driver import FakeNvrtc, Status
from rtdetr_deploy import DeviceError
from rtdetr_deploy.runtimes.trt.compile_kernel import compile_kernel
from rtdetr_deploy.runtimes.trt.cuda import Cuda, Gpu
from rtdetr_deploy.runtimes.trt.cuda_resize import KERNEL, NAME, ResizeKernel

pytest_plugins = ("engine_world",)


def _gpu(capability: str) -> Gpu:
    return Gpu(0, "GPU", capability, 1 << 34)


@pytest.mark.parametrize(
    ("capability", "made"),
    [("7.5", b"sm_75 "), ("8.6", b"compute_80 "), ("10.3", b"compute_90 "), ("12.0", b"sm_120 ")],
)
def test_a_gpu_that_the_compiler_does_not_know_gets_ptx_of_an_earlier_one(
    capability: str, made: bytes, world: fake_tensorrt.World
) -> None:
    code = compile_kernel(KERNEL, NAME, _gpu(capability))
    assert code.startswith(made)
    assert code.endswith(b"\0") == made.startswith(b"compute")


def test_the_driver_loads_ptx_and_no_other_gpus_code(world: fake_tensorrt.World) -> None:
    world.cuda.capability = (10, 3)
    cuda = Cuda(world.cuda)
    module = cuda.call_driver("cuModuleLoadData", compile_kernel(KERNEL, NAME, _gpu("10.3")))
    cuda.call_driver("cuModuleUnload", module)
    with pytest.raises(DeviceError, match=r"CUDA's driver says: CUDA_ERROR_NO_BINARY_FOR_GPU \(cuModuleLoadData\)"):
        cuda.call_driver("cuModuleLoadData", compile_kernel(KERNEL, NAME, _gpu("9.0")))


def test_a_driver_that_is_older_than_the_compiler_is_to_be_updated(world: fake_tensorrt.World) -> None:
    """Machine code is loaded all the same; PTX, for a GPU that the compiler doesn't know, is not."""
    world.cuda.capability = (10, 3)
    driver: Any = sys.modules["cuda.bindings"].driver
    driver.reads_ptx = False
    message = (
        r"CUDA_ERROR_UNSUPPORTED_PTX_VERSION \(cuModuleLoadData\); the driver is older than .*: update the driver$"
    )
    with pytest.raises(DeviceError, match=message):
        ResizeKernel(Cuda(world.cuda), _gpu("10.3"))


def test_a_gpu_older_than_the_compiler_is_named(world: fake_tensorrt.World) -> None:
    with pytest.raises(DeviceError, match=r"for GPU: it has compute capability 6.1, and this NVRTC begins at 75"):
        compile_kernel(KERNEL, NAME, _gpu("6.1"))


def test_the_compilers_log_is_shown(world: fake_tensorrt.World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="NVRTC_ERROR_COMPILATION: nvrtc: error: this is the log$"):
        compile_kernel("#error", NAME, _gpu("7.5"))
    programs: Any = sys.modules["cuda.bindings"].nvrtc.programs
    assert programs == {}, "a program was not destroyed"
    monkeypatch.setattr(FakeNvrtc, "nvrtcCreateProgram", lambda *_: (Status.NVRTC_ERROR_COMPILATION, None))
    with pytest.raises(DeviceError, match=r"NVRTC_ERROR_COMPILATION \(nvrtcCreateProgram\)"):
        compile_kernel(KERNEL, NAME, _gpu("7.5"))


REAL = """
import re
from rtdetr_deploy import DeviceError
from rtdetr_deploy.runtimes.trt.compile_kernel import compile_kernel
from rtdetr_deploy.runtimes.trt.cuda import Gpu
from rtdetr_deploy.runtimes.trt.cuda_resize import KERNEL, NAME

def make(capability, source=KERNEL):
    return compile_kernel(source, NAME, Gpu(0, "GPU", capability, 0))

codes = [make(capability) for capability in ("7.5", "8.6", "9.0", "12.0")]
assert all(code.startswith(b"\\x7fELF") and len(code) > 1000 for code in codes)
ptx = make("99.0")
assert ptx.endswith(b"\\0") and b".entry resize_frame" in ptx, ptx[:200]
assert not re.search(rb"fma\\.rn\\.f(32|64)", ptx), "rounded otherwise than on the CPU"
try:
    make("7.5", "this is not C++")
except DeviceError as error:
    print(error)
"""


def test_nvidias_compiler_takes_the_kernel() -> None:
    """The code for a T4 and for newer GPUs is really made, PTX for one to come, and misuse is really refused."""
    result = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, check=False)
    if "run-time compiler" in result.stderr or "No module named 'cuda" in result.stderr:
        pytest.skip("needs NVIDIA's run-time compiler (nvidia-cuda-nvrtc), which is for Linux and Windows only")
    assert result.returncode == 0, result.stderr
    assert re.search(r"NVRTC_ERROR_COMPILATION: resize_frame.cu\(1\): error: ", result.stdout), result.stdout
