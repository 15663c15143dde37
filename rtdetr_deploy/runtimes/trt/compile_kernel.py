"""Compiling a kernel of our own at run time, by NVIDIA's NVRTC."""

from __future__ import annotations

from typing import Any

from rtdetr_deploy.errors import DeviceError, MissingPackageError
from rtdetr_deploy.packages import install_commands, needed_for
from rtdetr_deploy.runtimes.trt.cuda import Gpu
from rtdetr_deploy.runtimes.trt.supported import on_jetson, package_extras

LOG_LENGTH = 400
"""Characters of the compiler's log that an error shows."""
JETSON_NVRTC = "on a Jetson it comes with JetPack: sudo apt install nvidia-jetpack"


def compile_kernel(source: str, name: str, gpu: Gpu) -> bytes:
    """Return a kernel as `cuModuleLoadData` takes it: machine code, which any driver that runs the GPU can load.

    Where NVRTC is older than the GPU it is PTX of the last architecture that both know, which the driver compiles.
    Raises `MissingPackageError` without NVRTC, `DeviceError` with its log where it fails.
    """
    with needed_for('`resizer="cuda"`', *package_extras()):
        from cuda.bindings import nvrtc
    compiler = _Compiler(nvrtc, gpu)
    architecture, is_native = compiler.choose_architecture()
    kind = "sm" if is_native else "compute"
    # Multiplication and addition are rounded apart, as on the CPU.
    options = [f"--gpu-architecture={kind}_{architecture}".encode(), b"--fmad=false"]
    program = compiler.call("nvrtcCreateProgram", source.encode(), f"{name}.cu".encode(), 0, [], [])
    try:
        compiler.compile(program, options)
        return compiler.read(program, "CUBIN" if is_native else "PTX")
    finally:
        compiler.call("nvrtcDestroyProgram", program)


class _Compiler:
    """NVRTC, whose failures are `DeviceError`."""

    def __init__(self, nvrtc: Any, gpu: Gpu) -> None:
        self._nvrtc, self._gpu = nvrtc, gpu

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function and return what it returns beside the status."""
        status, *values = getattr(self._nvrtc, function)(*arguments)
        if int(status) != 0:
            raise self._failure(f"{status.name} ({function})")
        return values[0] if values else None

    def choose_architecture(self) -> tuple[int, bool]:
        """Return the last architecture up to the GPU's that NVRTC knows, e.g. 75, and whether it is the GPU's."""
        try:
            known = sorted(int(one) for one in self.call("nvrtcGetSupportedArchs"))
        except RuntimeError as error:  # cuda-python finds no library
            remedy = JETSON_NVRTC if on_jetson() else install_commands(*package_extras(), whole=True)
            raise MissingPackageError(
                f'`resizer="cuda"` needs NVIDIA\'s run-time compiler ({error}): {remedy}'
            ) from error
        wanted = int(self._gpu.capability.replace(".", ""))
        fitting = [one for one in known if one <= wanted]
        if not fitting:
            raise self._failure(
                f"it has compute capability {self._gpu.capability}, and this NVRTC begins at {known[0]}"
            )
        return fitting[-1], fitting[-1] == wanted

    def compile(self, program: Any, options: list[bytes]) -> None:
        """Compile a program; where that fails, the error has the compiler's log."""
        (status,) = self._nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(status) != 0:
            log = " ".join(self.read(program, "ProgramLog").decode(errors="replace").strip("\0").split())
            raise self._failure(f"{status.name}: {log[:LOG_LENGTH] or 'without a log'}")

    def read(self, program: Any, what: str) -> bytes:
        """Return a text or code that NVRTC has made of a program."""
        content: bytes = b" " * self.call(f"nvrtcGet{what}Size", program)
        self.call(f"nvrtcGet{what}", program, content)  # which writes into it
        return content

    def _failure(self, reason: str) -> DeviceError:
        return DeviceError(f"the kernel that resizes can't be compiled for {self._gpu.name}: {reason}")
