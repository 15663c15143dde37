"""Runs each check in a process of its own: one that hangs, crashes or breaks the GPU's state ends alone.

`python -m gpu_check.apart NAME OUTCOME OPTIONS` is that process: it performs a check and writes what came of it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu_check.check import Check, Outcome, Situation, perform
from gpu_check.options import CheckOptions
from rtdetr_deploy.runtimes.options import cpu_or_cuda
from rtdetr_deploy.runtimes.trt.cuda import import_cuda


def perform_apart(check: Check, options: CheckOptions, module: str = "gpu_check.apart") -> Outcome:
    """Perform a check in a new process, which is killed at the check's limit; `module` is what the process runs."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        outcome, errors = Path(folder, "outcome.json"), Path(folder, "errors")
        command = [sys.executable, "-m", module, check.name, str(outcome), _to_text(options)]
        with errors.open("wb") as stream:
            process = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
            )
            reason = _wait(process, check.seconds)
        seconds = time.perf_counter() - start
        if outcome.exists():
            return Outcome(**json.loads(outcome.read_text()))
        last = errors.read_text(errors="replace").strip().rpartition("\n")[2]
        return Outcome(check.name, "failed", f"{reason}: {last}" if last else reason, seconds)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Wait for a process, at most for so long; return how it ended, in words."""
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"it took longer than {seconds:g} s"
    finally:
        with suppress(ProcessLookupError):  # what it has started goes with it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return f"it was ended by {signal.Signals(-status).name}" if status < 0 else f"it ended with status {status}"


def _to_text(options: CheckOptions) -> str:
    return json.dumps(
        {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
    )


def from_text(text: str) -> CheckOptions:
    """Return the options that `perform_apart` wrote as text."""
    values: dict[str, Any] = json.loads(text)
    paths = {name: Path(values[name]) for name in ("weights", "annotations", "images", "output") if values[name]}
    return CheckOptions(**{**values, "only": tuple(values["only"]), **paths})


def main(argv: Sequence[str]) -> int:
    """Perform one check and write its outcome."""
    from gpu_check.table import CHECKS

    name, target, text = argv
    options = from_text(text)
    cuda = import_cuda()
    _, number = cpu_or_cuda(options.device, "CUDA")
    gpu = cuda.gpu(number)
    cuda.call("cudaSetDevice", gpu.number)
    outcome = perform(CHECKS[name], Situation(cuda, gpu, options))
    partial = Path(f"{target}.part")
    partial.write_text(json.dumps(outcome.to_json()))
    partial.replace(target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
