"""`make gpu-check`, or `python -m gpu_check`: check the CUDA code on this machine's GPU.

Status 0: all checks passed or were skipped; 1: one has failed; 2: wrong input, or no NVIDIA GPU.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpu_check.apart import perform_apart
from gpu_check.check import Check, Outcome
from gpu_check.options import ROOT, CheckOptions
from gpu_check.table import CHECKS
from rtdetr_bench.machine import describe_machine, describe_state, today
from rtdetr_bench.results import Json, write_json
from rtdetr_deploy import DeviceError, OptionError
from rtdetr_deploy.cli.arguments import Parser, add_options, options_of
from rtdetr_deploy.cli.run import run_main
from rtdetr_deploy.files import check_writable
from rtdetr_deploy.runtimes.options import cpu_or_cuda
from rtdetr_deploy.runtimes.trt.cuda import Gpu, import_cuda
from rtdetr_deploy.runtimes.trt.supported import cuda_of_driver

FAILED = 1
CUDA_OF_PACKAGES = 13
"""What the packages of the repository's virtual environment are made for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_main("gpu-check", lambda: _run(argv), "nothing was written")


def _run(argv: Sequence[str] | None) -> int:
    width = max(map(len, CHECKS))
    checks = "\n".join(f"  {check.name:<{width}}  {check.title} ({check.seconds} s)" for check in CHECKS.values())
    parser = Parser("gpu-check", "Check the CUDA code on this machine's NVIDIA GPU.", f"checks (at most):\n{checks}")
    add_options(parser, CheckOptions)
    options = CheckOptions(**options_of(CheckOptions, parser.parse_args(argv)))
    wanted = choose(options.only)
    gpu = find_gpu(options.device)
    target = options.output or (result_path(gpu) if options.is_standard else None)
    if target is not None:
        check_writable(target)
    started = today()
    print(f"{gpu.name}, compute capability {gpu.capability}", flush=True)
    outcomes = [announce(perform_apart(check, options)) for check in wanted]
    if target is not None:
        write_json(target, to_json(started, gpu, outcomes, options))
        print(f"wrote {target}")
    return FAILED if any(outcome.status == "failed" for outcome in outcomes) else 0


def choose(names: Sequence[str], checks: Mapping[str, Check] = CHECKS) -> list[Check]:
    """Return the checks called so, or all. Raises `OptionError` for an unknown name."""
    for name in names:
        if name not in checks:
            raise OptionError(f"`only` is {name!r}, expected one of {', '.join(checks)}")
    return [check for name, check in checks.items() if not names or name in names]


def find_gpu(device: str) -> Gpu:
    """Return the GPU. Raises `DeviceError` where there is none, `MissingPackageError` without cuda-python."""
    kind, number = cpu_or_cuda(device, "CUDA")
    if kind != "cuda":
        raise OptionError(f"`device` is {device!r}, expected cuda or cuda:N: these are checks of a GPU")
    try:
        return import_cuda().gpu(number)
    except DeviceError as error:
        if (cuda_of_driver() or 0) >= CUDA_OF_PACKAGES:
            raise
        raise DeviceError(f"{error}; to check on a driver before 580: make gpu-check CUDA=12") from error


def announce(outcome: Outcome) -> Outcome:
    """Print what came of a check."""
    print(format_outcome(outcome), flush=True)
    return outcome


def format_outcome(outcome: Outcome) -> str:
    """Return a line about the check, and a line for each figure below it."""
    head = f"{outcome.status:<8}{outcome.name:<16}{outcome.seconds:>7.1f} s"
    lines = [f"{head}  {outcome.reason}".rstrip()]
    return "\n".join([*lines, *(f"{'':<10}{name}: {_shown(value)}" for name, value in outcome.figures.items())])


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    return str(value)


def result_path(gpu: Gpu) -> Path:
    """Return where the results of a whole run go."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    return ROOT / "benchmarks" / "results" / f"gpu-check-{name}.json"


def to_json(started: str, gpu: Gpu, outcomes: Sequence[Outcome], options: CheckOptions) -> Json:
    """Return everything for a JSON file."""
    return {
        "schema": 1,
        "date": started,
        "gpu": {"name": gpu.name, "capability": gpu.capability, "memory_mb": gpu.memory / 1e6},
        "machine": describe_machine(),
        "state": describe_state(options.device),
        "checks": [outcome.to_json() for outcome in outcomes],
    }


if __name__ == "__main__":
    sys.exit(main())
