"""The versions of TensorRT that the engines here are made for, and where a Jetson gets its own."""

from __future__ import annotations

import ctypes
import platform
import sys
import warnings
from pathlib import Path
from types import ModuleType

from rtdetr_deploy.errors import MissingPackageError
from rtdetr_deploy.packages import install_command, install_commands, require
from rtdetr_deploy.runtimes.trt.sidecar import version_numbers

FLOOR = (10, 3)
"""JetPack 6 has it. Strong typing is there, but not complete; earlier versions lack calls that are made here."""
FULL = (10, 13)
"""From here on strong typing is complete, and what is written here is checked against the bindings."""
JETSON_RELEASE = Path("/etc/nv_tegra_release")
JETSON = (
    "on a Jetson TensorRT comes with JetPack: sudo apt install python3-libnvinfer, in a virtual environment made with "
    "python3 -m venv --system-site-packages"
)


def require_tensorrt(purpose: str) -> ModuleType:
    """Return the module `tensorrt`; `purpose` begins the message where it can't be used ("running engines").

    Raises `MissingPackageError` where it is missing or too old; a version that is not fully supported gives a warning.
    """
    try:
        trt = require("tensorrt", purpose, *package_extras())
    except MissingPackageError as error:
        if not on_jetson():
            raise
        raise MissingPackageError(f"{purpose} needs tensorrt, which can't be imported; {JETSON}") from error
    version = str(trt.__version__)
    if version_numbers(version)[:2] < FLOOR:
        remedy = "update JetPack to 6.1 or later" if on_jetson() else install_commands(*package_extras(), whole=True)
        raise MissingPackageError(f"{purpose} needs TensorRT {_text(FLOOR)} or later, and this is {version}: {remedy}")
    if version_numbers(version)[:2] < FULL:
        warnings.warn(
            f"TensorRT {version} is older than {_text(FULL)}, from which on strong typing is complete; engines are "
            "verified as ever, but may be refused",
            stacklevel=2,
        )
    return trt


def on_jetson() -> bool:
    """Tell whether this is a Jetson, whose TensorRT is the system's: pip's packages for ARM are made for servers."""
    return platform.machine() == "aarch64" and JETSON_RELEASE.exists()


def cuda_of_driver() -> int | None:
    """Return the newest CUDA that the driver runs: 13 from driver 580 on, 12 from 525 on; None without a driver."""
    version = ctypes.c_int()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        status = driver.cuDriverGetVersion(ctypes.byref(version))  # needs no GPU, and starts nothing
    except (AttributeError, OSError):
        return None
    return None if status else version.value // 1000


def package_extras() -> tuple[str, ...]:
    """Return the extras that have what engines need from pip on this machine; any one of them will do.

    Packages for CUDA 12 run on every driver that is supported.
    """
    if on_jetson():
        return ("jetson",)
    return ("tensorrt", "tensorrt-cu12") if (cuda_of_driver() or 0) >= 13 else ("tensorrt-cu12",)


def update_driver() -> str:
    """Return what to do where the driver is too old, as words of a message."""
    return "update JetPack, which has the driver" if on_jetson() else "update the driver"


def fit_driver() -> str:
    """Return what to do where packages are made for a later driver than the one here, as words of a message."""
    if on_jetson():
        return f"{update_driver()}, or {install_command('jetson', whole=True)}"
    return f"{update_driver()}, or {install_command('tensorrt-cu12', whole=True)}"


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
