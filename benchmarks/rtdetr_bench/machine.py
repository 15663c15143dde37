"""Hardware and software environment of a measurement."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rtdetr_deploy.runtimes import processor
from rtdetr_deploy.words import plural

try:
    import psutil
except ImportError:  # what it tells is left out then
    psutil = None  # type: ignore[assignment]

PACKAGES = (
    "rtdetr-deploy", "numpy", "opencv-python-headless", "onnxruntime", "onnxruntime-gpu", "openvino", "torch",
    "tensorrt", "tensorrt-cu12",
)  # fmt: skip
GPU_FIELDS = {
    "name": ("name",),
    "driver": ("driver_version",),
    "clock": ("clocks.sm",),
    "max clock": ("clocks.max.sm",),
    "temperature": ("temperature.gpu",),
    "power limit": ("power.limit",),
    "throttled by": ("clocks_event_reasons.active", "clocks_throttle_reasons.active"),  # new and old drivers
    "memory": ("memory.used",),
}
"""What is asked of nvidia-smi, as drivers call it, by the name that it gets here; MHz, degrees Celsius, W and MiB."""
CPU_INFO = Path("/proc/cpuinfo")
LIMITING = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Variables of the environment by which oneDNN, which OpenVINO and torch compute with, is kept from using them."""


def today() -> str:
    """Return date and time in UTC, as ISO 8601 writes them, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def describe_machine() -> dict[str, object]:
    """Return processor, its instruction sets, usable cores and their numbers, system, Python and package versions.

    Instruction sets are those of `instruction_sets`; "limits" are variables that keep some from use.
    """
    limits = {name: os.environ[name] for name in LIMITING if name in os.environ}
    return {
        "processor": _processor(),
        "instructions": list(instruction_sets()),
        **({"limits": limits} if limits else {}),
        "cores": len(usable_cores()),
        "affinity": usable_cores(),
        "pinned": len(usable_cores()) < (os.cpu_count() or 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def machine_text(machine: Mapping[str, Any], threads: int | None = None) -> str:
    """Return what `describe_machine` found, and the number of threads asked for, as one line to read."""
    cores = machine["cores"]
    parts = [machine["processor"], plural(cores, "core")]
    if machine.get("pinned") and machine.get("affinity"):
        parts[-1] += f" of more (numbers {_ranges(machine['affinity'])})"
    if machine.get("instructions"):
        parts.append(" ".join(machine["instructions"]))
    parts += [f"{name} {value}" for name, value in machine.get("limits", {}).items()]
    parts.append("threads as the runtime chooses" if threads is None else plural(threads, "thread"))
    packages = [f"{name} {found}" for name, found in machine["packages"].items()]
    return ", ".join([*parts, machine["system"], f"Python {machine['python']}", *packages])


def state_text(state: Mapping[str, Any]) -> str:
    """Return what `describe_state` found as one line to read."""
    parts = []
    for name, value in state.items():
        if isinstance(value, Mapping):
            parts.append(f"{name}: {state_text(value)}")
        else:
            parts.append(f"{name} {value}")
    return ", ".join(parts)


def _ranges(numbers: Sequence[int]) -> str:
    """Return sorted numbers as text, neighbours joined: 0-3, 6."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def describe_state(device: str | None = None) -> dict[str, object]:
    """Return what changes while one measures, as far as the machine tells: load, clocks, temperatures, the GPU.

    `device` ("cuda:1") tells which GPU; by default it is the first.
    """
    state: dict[str, object] = {}
    if psutil is not None:
        state["load"] = round(psutil.getloadavg()[0], 2)
        clock = psutil.cpu_freq()
        if clock is not None and clock.current:
            state["clock"] = f"{clock.current:.0f} MHz" + (f" of {clock.max:.0f}" if clock.max else "")
        temperatures: dict[str, list[Any]] = getattr(psutil, "sensors_temperatures", dict)()  # Linux and FreeBSD only
        hottest = max((one.current for group in temperatures.values() for one in group), default=None)
        if hottest is not None:
            state["temperature"] = f"{hottest:.0f} C"
    gpu = _gpu(device)
    if gpu:
        state["gpu"] = gpu
    return state


def resident_memory() -> int | None:
    """Return the bytes of memory that this process holds; None where psutil is not installed."""
    return None if psutil is None else int(psutil.Process().memory_info().rss)


def gpu_memory(device: str | None = None) -> int | None:
    """Return the bytes in use on the GPU `device` (default: the first), by whomever; None without one."""
    used = _gpu(device).get("memory", "")
    return int(used) << 20 if used.isdigit() else None


def usable_cores() -> list[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def visible_gpu(device: str | None, visible: str | None) -> str:
    """Return what nvidia-smi calls the GPU `device` ("cuda:1"; default: the first) of CUDA_VISIBLE_DEVICES' `visible`.

    CUDA counts the GPUs that are visible to it.
    """
    kind, _, number = (device or "").lower().partition(":")
    index = int(number) if kind == "cuda" and number.isdecimal() else 0
    names = [name.strip() for name in (visible or "").split(",") if name.strip()]
    return names[index] if index < len(names) else str(index)


def _gpu(device: str | None = None) -> dict[str, str]:
    """Return what nvidia-smi tells about a GPU; empty where there is none."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    index = visible_gpu(device, os.environ.get("CUDA_VISIBLE_DEVICES"))
    names, values = gpu_fields(command, index), None
    if names:
        values = _ask(command, index, list(names.values()))
    return {} if values is None else parse_gpu(dict(zip(names, values, strict=True)))


@cache
def gpu_fields(command: str, index: str) -> dict[str, str]:
    """Return those of `GPU_FIELDS` that the driver knows, as it calls them; an unknown one fails a whole query."""
    first = {name: fields[0] for name, fields in GPU_FIELDS.items()}
    if _ask(command, index, list(first.values())) is not None:
        return first
    known = {}
    for name, fields in GPU_FIELDS.items():
        found = next((field for field in fields if _ask(command, index, [field]) is not None), None)
        if found is not None:
            known[name] = found
    return known


def _ask(command: str, index: str, fields: Sequence[str]) -> list[str] | None:
    """Return what nvidia-smi tells of these fields of a GPU; None where it doesn't."""
    query = [command, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", f"--id={index}"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    values = [value.strip() for value in result.stdout.strip().split(",")]
    return values if len(values) == len(fields) else None


def parse_gpu(values: Mapping[str, str]) -> dict[str, str]:
    """Return the values that nvidia-smi gave, without those that it doesn't know of this GPU."""
    return {name: value for name, value in values.items() if not _is_unknown(value)}


def _is_unknown(value: str) -> bool:
    return value.startswith("[")  # [N/A], [Not Supported], [Unknown Error]


def instruction_sets() -> tuple[str, ...]:
    """Return what `processor.INSTRUCTION_SETS` finds, as results write it: avx2, avx512; none where nobody tells."""
    found = processor.instruction_sets() or ()
    return tuple(name.lower().replace("-", "") for name in processor.INSTRUCTION_SETS if name in found)


def gpu_name(device: str | None = None) -> str | None:
    """Return the name of the NVIDIA GPU `device` (default: the first); None without one."""
    return _gpu(device).get("name")


def _processor() -> str:
    """Return the processor's name, which hypervisors may have shortened."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_info(key: str) -> str:
    """Return what Linux says of the first core; empty where it doesn't, and on other systems."""
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return ""


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
