"""Double precision in the resizing kernel: a T4 has 1/32 of its float rate for it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from gpu_check.check import Figures, Situation, SkippedError
from gpu_check.sass import count_double, count_instructions
from rtdetr_deploy.runtimes.trt.compile_kernel import compile_kernel
from rtdetr_deploy.runtimes.trt.cuda import Gpu
from rtdetr_deploy.runtimes.trt.cuda_resize import KERNEL, NAME

CAPABILITIES = ("7.5", "9.0")
T4_DOUBLE = 40 * 2 * 1.59e9
"""Double operations per second of a T4: 40 multiprocessors, 2 per clock each, at the boost clock."""
PIXELS = 640 * 640


def check_double(situation: Situation) -> Figures:
    """Count the kernel's instructions of double precision for a T4 and an H100, and what they cost on a T4."""
    figures: Figures = {}
    for capability in CAPABILITIES:
        text = disassemble(compile_kernel(KERNEL, NAME, Gpu(0, f"a GPU of {capability}", capability, 0)))
        double = count_double(text)
        figures[f"sm_{capability.replace('.', '')}"] = {
            "double": double, "all": sum(count_instructions(text).values()),
        }  # fmt: skip
        figures.setdefault("t4_estimate_ms", 1000 * double * PIXELS / T4_DOUBLE)
    return figures


def disassemble(code: bytes) -> str:
    """Return machine code as text. Raises `SkippedError` without NVIDIA's tools."""
    tool = shutil.which("cuobjdump") or shutil.which("nvdisasm")
    if tool is None:
        raise SkippedError("neither cuobjdump nor nvdisasm is on the PATH")
    options = ["-sass"] if tool.endswith("cuobjdump") else []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(code)
        done = subprocess.run([tool, *options, str(path)], capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout
