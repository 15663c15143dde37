"""Doubles of `cuda.bindings.nvrtc` and `.driver`: the very kernel source is compiled by the C++ compiler, for the CPU.

Every thread of a launch is run in turn. What lies outside the double's memory is refused before anything runs.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fake_cuda import FakeCuda

COMPILER = shutil.which("c++") or shutil.which("g++")
SHIM = """
#include <cmath>
#include <cstddef>
#define __global__
#define __device__
static thread_local struct {{ int x, y, z; }} blockIdx, blockDim, threadIdx;
{source}
extern "C" void launch(int across, int down, int wide, int high, {parameters})
{{
    blockDim.x = wide;
    blockDim.y = high;
    for (blockIdx.y = 0; blockIdx.y < down; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < across; ++blockIdx.x)
            for (threadIdx.y = 0; threadIdx.y < high; ++threadIdx.y)
                for (threadIdx.x = 0; threadIdx.x < wide; ++threadIdx.x)
                    {name}({arguments});
}}
"""


class Status(enum.IntEnum):
    """Statuses of both modules; values are CUDA's."""

    SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_NOT_INITIALIZED = 3
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222
    NVRTC_ERROR_COMPILATION = 6


class PointerAttribute(enum.IntEnum):
    """What the driver tells about an address; values are CUDA's."""

    CU_POINTER_ATTRIBUTE_CONTEXT = 1


OK = (Status.SUCCESS,)
CONTEXTS = 9000
"""The handle of the first device's own context; the others follow."""


@functools.cache
def compile_for_cpu(source: str, name: str) -> ctypes.CDLL:
    """Return the kernel as a library with a function that runs all threads of a launch."""
    assert COMPILER is not None
    signature = source.partition(name + "(")[2].partition(")")[0]
    types = signature.replace("\n", " ").split(",")
    arguments = [part.split()[-1].strip("*") for part in types]
    text = SHIM.format(source=source, parameters=",".join(types), name=name, arguments=",".join(arguments))
    with tempfile.TemporaryDirectory() as folder:
        code, library = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
        code.write_text(text)
        subprocess.run([COMPILER, "-shared", "-fPIC", "-O2", "-o", str(library), str(code)], check=True)
        return ctypes.CDLL(str(library))


class FakeNvrtc:
    """The compiler; machine code and PTX are the source itself behind the architecture."""

    def __init__(self, missing: bool = False) -> None:
        self.missing = missing
        self.architectures = [75, 80, 90, 120]
        self.programs: dict[int, dict[str, bytes]] = {}

    def nvrtcGetSupportedArchs(self) -> tuple[Any, ...]:
        if self.missing:
            raise RuntimeError("Failure finding libnvrtc.so")
        return (*OK, self.architectures)

    def nvrtcCreateProgram(
        self, source: bytes, name: bytes, count: int, headers: list[bytes], names: list[bytes]
    ) -> tuple[Any, ...]:
        number = len(self.programs) + 1
        self.programs[number] = {"Source": source}
        return (*OK, number)

    def nvrtcCompileProgram(self, program: int, count: int, options: list[bytes]) -> tuple[Any, ...]:
        assert count == len(options)
        assert options[1:] == [b"--fmad=false"]
        kind, _, architecture = options[0].removeprefix(b"--gpu-architecture=").partition(b"_")
        made = self.programs[program]
        if int(architecture) not in self.architectures or b"#error" in made["Source"]:
            made["ProgramLog"] = b"nvrtc: error:\nthis is the log\0"
            return (Status.NVRTC_ERROR_COMPILATION,)
        result = kind + b"_" + architecture + b" " + made["Source"]
        made.update({"PTX": result + b"\0", **({"CUBIN": result} if kind == b"sm" else {})})
        return OK

    def nvrtcGetCUBINSize(self, program: int) -> tuple[Any, ...]:
        return (*OK, len(self.programs[program]["CUBIN"]))

    def nvrtcGetCUBIN(self, program: int, code: bytes) -> tuple[Any, ...]:
        return self._write(code, self.programs[program]["CUBIN"])

    def nvrtcGetPTXSize(self, program: int) -> tuple[Any, ...]:
        return (*OK, len(self.programs[program]["PTX"]))

    def nvrtcGetPTX(self, program: int, ptx: bytes) -> tuple[Any, ...]:
        return self._write(ptx, self.programs[program]["PTX"])

    def nvrtcGetProgramLogSize(self, program: int) -> tuple[Any, ...]:
        return (*OK, len(self.programs[program]["ProgramLog"]))

    def nvrtcGetProgramLog(self, program: int, log: bytes) -> tuple[Any, ...]:
        return self._write(log, self.programs[program]["ProgramLog"])

    def _write(self, target: bytes, content: bytes) -> tuple[Any, ...]:
        """Write into `bytes` in place, as the real one does."""
        assert len(target) == len(content)
        ctypes.memmove(id(target) + bytes.__basicsize__ - 1, content, len(content))
        return OK

    def nvrtcDestroyProgram(self, program: int) -> tuple[Any, ...]:
        del self.programs[program]
        return OK


class FakeDriver:
    """The calls of the driver that load and launch a kernel, and those of contexts."""

    CUpointer_attribute = PointerAttribute

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self._sources: dict[int, str] = {}
        self.kernels: dict[int, tuple[int, str]] = {}
        self._ready = False
        self.reads_ptx = True  # False: the compiler is newer than the driver

    def cuInit(self, flags: int) -> tuple[Any, ...]:
        self._ready = True
        return OK

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        if not self._ready or not 0 <= ordinal < self._cuda.gpus:
            return (Status.CUDA_ERROR_NOT_INITIALIZED, None)
        return (*OK, ordinal)

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Any, ...]:
        self._cuda.initialized.add(device)
        return (*OK, CONTEXTS + device)

    def cuCtxGetCurrent(self) -> tuple[Any, ...]:
        if not self._ready:
            return (Status.CUDA_ERROR_NOT_INITIALIZED, None)
        contexts = self._cuda.thread.contexts
        return (*OK, CONTEXTS + contexts[-1] if contexts else 0)

    def cuCtxPushCurrent(self, context: int) -> tuple[Any, ...]:
        assert context - CONTEXTS in self._cuda.initialized
        self._cuda.thread.contexts.append(context - CONTEXTS)
        return OK

    def cuCtxPopCurrent(self) -> tuple[Any, ...]:
        return (*OK, CONTEXTS + self._cuda.thread.contexts.pop())

    def cuPointerGetAttribute(self, attribute: PointerAttribute, address: int) -> tuple[Any, ...]:
        assert attribute is PointerAttribute.CU_POINTER_ATTRIBUTE_CONTEXT
        start = self._cuda.start_of(address)
        if start not in self._cuda.device:
            return (Status.CUDA_ERROR_INVALID_VALUE, None)
        owner = self._cuda.contexts_of.get(start, CONTEXTS + self._cuda.gpus_of.get(start, 0))
        return (Status.CUDA_ERROR_INVALID_VALUE, None) if owner is None else (*OK, owner)

    def cuModuleLoadData(self, code: bytes) -> tuple[Any, ...]:
        architecture, _, source = code.partition(b" ")
        kind, _, number_of_it = architecture.partition(b"_")
        own = int("{}{}".format(*self._cuda.capability))
        if not (int(number_of_it) == own if kind == b"sm" else int(number_of_it) <= own and code.endswith(b"\0")):
            return (Status.CUDA_ERROR_NO_BINARY_FOR_GPU, None)
        if kind != b"sm" and not self.reads_ptx:
            return (Status.CUDA_ERROR_UNSUPPORTED_PTX_VERSION, None)
        number = 5000 + len(self._sources)
        self._sources[number] = source.rstrip(b"\0").decode()
        self._cuda.modules.add(number)
        return (*OK, number)

    def cuModuleGetFunction(self, module: int, name: bytes) -> tuple[Any, ...]:
        self.kernels[module + 1000] = (module, name.decode())
        return (*OK, module + 1000)

    def cuModuleUnload(self, module: int) -> tuple[Any, ...]:
        if module not in self._cuda.modules:
            return (Status.CUDA_ERROR_INVALID_VALUE,)
        self._cuda.modules.remove(module)
        return OK

    def cuLaunchKernel(
        self, kernel: int, *rest: Any
    ) -> tuple[Any, ...]:  # grid x y z, block x y z, shared bytes, stream, (values, types), extra
        across, down, deep, wide, high, thick, shared, stream, (values, types), extra = rest
        module, name = self.kernels[kernel]
        fits = (deep, thick, shared, extra) == (1, 1, 0, 0) and wide * high <= 1024 and module in self._cuda.modules
        if not fits or len(values) != len(types) or not self._is_inside(values):
            return (Status.CUDA_ERROR_INVALID_VALUE,)
        library = compile_for_cpu(self._sources[module], name)
        arguments = [kind(value) for kind, value in zip(types, values, strict=True)]
        uses = module, self._cuda.start_of(values[0]), self._cuda.start_of(values[9])
        done = self._cuda.enqueue(stream, lambda: library.launch(across, down, wide, high, *arguments), *uses)
        return OK if done else (Status.CUDA_ERROR_INVALID_VALUE,)

    def _is_inside(self, values: Sequence[int]) -> bool:
        """Tell whether the kernel's frame and target lie in memory of the GPU."""
        source, height, width, _, *steps, _, _, target, rows, columns, as_bytes = values
        first = source + sum(min(0, step) * (count - 1) for step, count in zip(steps, (height, width, 3), strict=True))
        last = source + sum(max(0, step) * (count - 1) for step, count in zip(steps, (height, width, 3), strict=True))
        size = rows * columns * 3 * (1 if as_bytes else 4)
        holds = self._cuda.holds
        return holds(self._cuda.device, first, last - first + 1) and holds(self._cuda.device, target, size)
