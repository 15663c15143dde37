"""The repository's own tests of a GPU, and the resizing kernel under compute-sanitizer."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys

from gpu_check.check import CheckFailedError, Figures, Situation, SkippedError
from gpu_check.checks.resize import WRONG
from gpu_check.options import ROOT

SANITIZER_ERROR = 86


def check_tests(situation: Situation) -> Figures:
    """Run tests/engine/test_gpu.py: calls of cuda-bindings, pinned memory, capture and replay, errors, the kernel."""
    if importlib.util.find_spec("pytest") is None:
        raise SkippedError("pytest is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-rfs", "-p", "no:cacheprovider", "tests/engine/test_gpu.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    told = tail(done.stdout)
    if done.returncode != 0:
        raise CheckFailedError(f"pytest ended with status {done.returncode}: {told}")
    return {"pytest": told, "skipped": re.findall(r"SKIPPED.*", done.stdout)}


def check_memory_accesses(situation: Situation) -> Figures:
    """Let compute-sanitizer look for accesses outside of what was allocated while frames of all sizes are resized."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        raise SkippedError("compute-sanitizer is not on the PATH")
    command = [tool, "--tool", "memcheck", "--error-exitcode", str(SANITIZER_ERROR)]
    command += [sys.executable, "-m", "gpu_check.checks.resize", situation.options.device]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ})  # noqa: S603
    if done.returncode == SANITIZER_ERROR:
        raise CheckFailedError(f"memcheck: {tail(done.stdout)}")
    if done.returncode == WRONG:
        raise CheckFailedError(f"under memcheck: {tail(done.stderr)}")
    if done.returncode != 0:
        raise SkippedError(f"compute-sanitizer doesn't work here: {tail(done.stdout + done.stderr)}")
    return {"memcheck": tail(done.stdout)}


def tail(text: str) -> str:
    """Return the last line that isn't empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
