"""Optional packages: imported where they are needed, and what to install where they are missing.

This project is on no package index, so its own name must not appear in an install command: the commands name the
packages themselves, as this distribution's metadata lists them for each extra ("export", "cpu", ...).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from types import ModuleType

from rtdetr_deploy.errors import MissingPackageError

DISTRIBUTION = "rtdetr-deploy"


def require(module: str, purpose: str, *extras: str) -> ModuleType:
    """Return the imported `module`; raise `MissingPackageError` where it is missing or can't be loaded.

    `purpose` begins the message ("running .onnx files"); each of `extras` holds a package that may be installed.
    """
    with needed_for(purpose, *extras):
        return import_module(module)


@contextmanager
def needed_for(purpose: str, *extras: str) -> Iterator[None]:
    """Turn an import that fails in the block into a `MissingPackageError`; see `require`."""
    try:
        yield
    except MissingPackageError:
        raise
    except ModuleNotFoundError as error:
        name = error.name or str(error)
        raise MissingPackageError(
            f"{purpose} needs {name}, which is not installed: {install_commands(*extras)}"
        ) from error
    except ImportError as error:
        name = error.name or "a package"
        raise MissingPackageError(
            f"{purpose} needs {name}, which can't be imported ({error}); install it again: {install_commands(*extras)}"
        ) from error


def install_command(extra: str, *, whole: bool = False) -> str:
    """Return the command that installs what is missing of an extra; all of it if `whole`, or if nothing is."""
    packages = _requirements(extra)
    if not packages:  # a source tree that is not installed
        return f"pip install '.[{extra}]' in the folder of the project"
    chosen = packages if whole else [package for package in packages if not _installed(package)] or packages
    return "pip install " + " ".join(f"'{package}'" for package in chosen)


def install_commands(*extras: str, whole: bool = False) -> str:
    """Return the commands for extras of which any one will do; see `install_command`."""
    return ", or ".join(install_command(extra, whole=whole) for extra in extras)


def _requirements(extra: str) -> list[str]:
    """Return the requirements of an extra, e.g. "onnx>=1.16"; none where this project is not installed."""
    try:
        listed = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []
    parts = [text.partition(";") for text in listed]
    return [name.strip() for name, _, marker in parts if re.search(rf"""extra == ['"]{re.escape(extra)}['"]""", marker)]


def _installed(requirement: str) -> bool:
    name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
