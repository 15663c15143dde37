"""How OpenVINO compiles a model: device, arithmetic, calls side by side, threads, cache.

OpenVINO takes hints, and does something else where it can't follow them: asked for FP16, a CPU computes in BF16. So
what a device has is asked first, and what a compiled model does is read back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rtdetr_deploy.artifacts.metadata import ArtifactInfo
from rtdetr_deploy.errors import DeviceError, OptionError, OutputError
from rtdetr_deploy.files import check_writable, reason
from rtdetr_deploy.runtimes.cores import default_threads
from rtdetr_deploy.runtimes.options import MAX_SLOTS, RuntimeOptions
from rtdetr_deploy.runtimes.processor import instruction_sets

DEVICES = ("CPU", "GPU", "NPU")
COMBINED = ("AUTO", "MULTI", "HETERO")
"""Devices that stand for several ("AUTO:GPU,CPU"), or for OpenVINO's own choice ("AUTO")."""
_ISA_SETTINGS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Environment variables that limit the instruction sets that OpenVINO's kernels use; the first that is set counts."""
_ISA_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
_TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""OpenVINO's names."""


def find_device(given: str, available: list[str]) -> str:
    """Return a device as OpenVINO spells it.

    Raises `OptionError` for one that OpenVINO doesn't know, `DeviceError` for one that is not there.
    """
    device = given.upper()
    for name in _named(device):
        kind = _kind(name)
        if kind not in DEVICES + COMBINED:
            known = ", ".join(DEVICES + COMBINED)
            raise OptionError(f"`device` is {given!r}, but OpenVINO runs on {known}")
        if (
            kind in DEVICES
            and not name.startswith("-")
            and not any(there.partition(".")[0] == kind for there in available)
        ):
            raise DeviceError(f"OpenVINO finds no {kind} here, only {', '.join(available)}; is its driver installed?")
    return device


def choose_precision(options: RuntimeOptions, device: str, core: Any, info: ArtifactInfo | None) -> str | None:
    """Return what to compute in; None where that is left to a device without FP32.

    "auto" is BF16 where all devices are known to have it and the file's `info` says that it keeps the detections.
    Raises `DeviceError` for what a device lacks.
    """
    asked = options.precision
    if asked == "auto":
        allowed = info is not None and "bf16" in info.arithmetics
        return "bf16" if allowed and _lacking("bf16", device, core, sure=True) is None else _plain(device, core)
    if asked is None:
        return _plain(device, core)
    lacking = _lacking(asked, device, core)
    if lacking is not None:
        raise DeviceError(
            f'`precision="{asked}"` needs {asked.upper()} arithmetic, which the {lacking} here doesn\'t have'
        )
    return asked


def make_settings(options: RuntimeOptions, device: str, precision: str | None) -> dict[str, Any]:
    """Return OpenVINO's settings. Raises `OptionError` for threads of other devices than the CPU, and `OutputError`."""
    hint = find_hint(options)
    settings: dict[str, Any] = {"PERFORMANCE_HINT": hint.upper()}
    if precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = _TYPES[precision]
    if hint == "throughput" and options.slots is not None:
        settings["PERFORMANCE_HINT_NUM_REQUESTS"] = options.slots
    if options.threads is not None and device != "CPU":
        raise OptionError(f"`threads` is for the CPU; leave it out for {device}")
    threads = options.threads or (default_threads() if device == "CPU" else None)
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = int(threads)
    if options.cache is not None:
        settings["CACHE_DIR"] = str(_make_folder(options.cache))
    return settings


def find_hint(options: RuntimeOptions) -> str:
    """Return "latency" or "throughput": several calls side by side need the latter, or each waits for the others."""
    return options.hint or ("throughput" if (options.slots or 1) > 1 else "latency")


def count_slots(options: RuntimeOptions, compiled: Any) -> int:
    """Return how many calls run side by side: what was asked for, or the CPU's streams where they are fewer."""
    if options.slots is not None or find_hint(options) == "latency":
        return min(options.slots or 1, _streams(compiled))
    return int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))


def _streams(compiled: Any) -> int:
    """Return how many calls OpenVINO computes at once; a maximum for devices that don't tell."""
    try:
        return max(1, int(compiled.get_property("NUM_STREAMS")))
    except RuntimeError:  # AUTO, MULTI and HETERO
        return MAX_SLOTS


def read_arithmetic(compiled: Any) -> str | None:
    """Return what a compiled model computes in: "fp32", "bf16" or "fp16"; None where its devices differ."""
    try:
        told = [compiled.get_property("INFERENCE_PRECISION_HINT")]
    except RuntimeError:  # AUTO, MULTI and HETERO tell it for each of their devices
        devices: Mapping[str, Mapping[str, Any]] = compiled.get_property("DEVICE_PROPERTIES")
        told = [properties.get("INFERENCE_PRECISION_HINT") for properties in devices.values()]
    names = {one.get_type_name() for one in told if one is not None}
    return next((name for name, known in _TYPES.items() if names == {known}), None)


def _plain(device: str, core: Any) -> str | None:
    return "fp32" if _lacking("fp32", device, core) is None else None


def _lacking(precision: str, device: str, core: Any, *, sure: bool = False) -> str | None:
    """Return the first of the devices that doesn't compute in `precision` by itself; None where all do.

    Where nobody tells what the processor has, OpenVINO's word is taken, unless it has to be `sure`.
    """
    named = [name.partition("(")[0] for name in _named(device)]
    members = [name for name in named if name.partition(".")[0] in DEVICES]
    members = members or [name for name in core.available_devices if f"-{name}" not in named]
    for name in members:
        known = core.get_property(name, "OPTIMIZATION_CAPABILITIES")
        emulated = precision == "bf16" and _kind(name) == "CPU" and _has_bf16() in ((False, None) if sure else (False,))
        if precision.upper() not in known or emulated:
            return name
    return None


def _has_bf16() -> bool | None:
    """Tell whether OpenVINO computes in BF16 here; with AVX-512 alone it would emulate it. None where nobody tells."""
    limit = next((os.environ[name] for name in _ISA_SETTINGS if name in os.environ), "")
    if limit.upper() in _ISA_WITHOUT_BF16:
        return False
    there = instruction_sets()
    return None if there is None else "BF16" in there


def _named(device: str) -> list[str]:
    """Return the devices that a device is said to stand for, or itself."""
    first, _, listed = device.partition(":")
    return listed.split(",") if first in COMBINED and listed else [device]


def _kind(name: str) -> str:
    return name.lstrip("-").partition("(")[0].partition(".")[0]


def _make_folder(path: Path) -> Path:
    """Make the folder where it is missing. Raises `OutputError`; OpenVINO would go on without a cache, in silence."""
    check_writable(path, folder=True)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't write {path}: {reason(error)}") from error
    return path
