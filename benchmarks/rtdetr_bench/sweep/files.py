"""The first part of a sweep: its files, exported and verified, and kept in its folder for use."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rtdetr_bench.sweep.axes import ModelFile
from rtdetr_bench.sweep.options import SweepOptions
from rtdetr_bench.sweep.state import Json, digest_file
from rtdetr_deploy.cli.arguments import flag
from rtdetr_deploy.errors import MissingPackageError, OutputError, RtdetrError
from rtdetr_deploy.options import find_options
from rtdetr_export import ExportOptions, export
from rtdetr_export.progress import Progress


def export_options(file: ModelFile, options: SweepOptions, folder: Path | None = None) -> ExportOptions:
    """Return how a file is exported into a `folder`. Raises what `ExportOptions` does."""
    calibration = options.calibration if file.precision == "int8" else None
    output = (options.output if folder is None else folder) / file.name
    return ExportOptions(options.weights, output, calibration=calibration, **file.choices())


def make_file(file: ModelFile, options: SweepOptions, progress: Progress | None = None) -> Json:
    """Export a file and return what is kept of it; what goes wrong with the file is in `failed`.

    Raises `OutputError` and `MissingPackageError`, which all other files would meet, too.
    """

    def work() -> Json:
        path = export(export_options(file, options), progress).path
        return {"digest": digest_file(path), "mb": round(path.stat().st_size / 1e6, 2)}

    return attempt(work)


def attempt(work: Callable[[], Json]) -> Json:
    """Return what `work` does, or the reason where it fails: one model must not end the sweep of others."""
    try:
        return work()
    except (OutputError, MissingPackageError):
        raise
    except RtdetrError as error:
        return {"failed": str(error)}
    except Exception as error:
        told = " ".join(str(error).split())[:300]
        return {"failed": f"{type(error).__name__}: {told}" if told else type(error).__name__}


def is_there(file: ModelFile, folder: Path, kept: Json | None) -> bool:
    """Tell whether a file need not be exported again: it has failed, or lies in the folder as it was written."""
    if kept is None or "failed" in kept:
        return kept is not None
    path = folder / file.name
    return path.is_file() and digest_file(path) == kept["digest"]


def export_command(options: ExportOptions) -> str:
    """Return the command line that writes the file: all that differs from the defaults."""
    words = ["rtdetr-export"]
    for name, (item, how) in find_options(ExportOptions).items():
        value = getattr(options, name)
        if value != item.default and not _follows(name, options):
            words += [how.flag or flag(name), typed(name, value)]
    return shlex.join(words)


def _follows(name: str, options: ExportOptions) -> bool:
    """Tell whether an option was decided by `ExportOptions` from the others: typing it would change nothing."""
    usual = ExportOptions(
        options.weights, options.output, precision=options.precision, calibration=options.calibration,
        batch=options.batch,
    )  # fmt: skip
    return name not in ("weights", "output", "precision", "calibration", "batch") and (
        getattr(usual, name) == getattr(options, name)
    )


def typed(name: str, value: Any) -> str:
    """Return the value of the option `name` as it is typed."""
    if value is None:
        return "dynamic"
    between = ":" if name == "cascade" else "x"
    return between.join(map(str, value)) if isinstance(value, tuple) else str(value)
