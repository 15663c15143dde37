"""Write the folder of a format: all of its files, or none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rtdetr_deploy.artifacts.metadata import read_metadata
from rtdetr_deploy.errors import ExportError, OutputError
from rtdetr_deploy.files import reason
from rtdetr_deploy.runtimes.onnx_file import read_graph
from rtdetr_export.formats import FORMATS
from rtdetr_export.options import ExportOptions
from rtdetr_export.result import ExportResult, Package


def write_package(options: ExportOptions, export_onnx: Callable[[ExportOptions], ExportResult]) -> ExportResult:
    """Export with `export_onnx` and put the file into the folder of `options.format`, with what belongs beside it.

    Weights that are an ONNX file are copied instead. Everything is made in a temporary folder first: after any error
    the folder is as it was. Raises what `export_onnx` does, `ArtifactError` and `ExportError` for an ONNX file that was
    not written here, `OptionError` for a model that the format's system can't run, and `OutputError`.
    """
    assert options.format is not None
    form = FORMATS[options.format]
    with _writing(options.output or options.weights):
        temporary = TemporaryDirectory(dir=_existing(options.output or options.weights.parent), prefix=".part-")
    with temporary as name:
        onnx = Path(name, form.onnx)
        made = _copy(options, onnx) if options.from_onnx else export_onnx(replace(options, format=None, output=onnx))
        folder = options.output or options.default_output(made.info)
        form.check_folder(folder)
        files = form.make_files(made.info)
        with _writing(folder):
            for file, content in files.items():
                Path(name, file).write_bytes(content)
            moved = _move(Path(name), folder)
    return replace(made, path=folder / form.onnx, package=Package(folder, moved, form.next_steps(folder, made.info)))


def _copy(options: ExportOptions, onnx: Path) -> ExportResult:
    """Copy the ONNX file that is `options.weights` to `onnx`."""
    assert options.format is not None
    info = read_metadata(read_graph(options.weights).metadata, options.weights.name)
    if info is None:
        raise ExportError(f"{options.weights} was not written by rtdetr-export, so nothing is known of its classes")
    FORMATS[options.format].check_model(raw_input=info.raw_input, raw_output=info.outputs == "raw", batch=info.batch)
    with _writing(onnx):
        shutil.copyfile(options.weights, onnx)
    return ExportResult(onnx, info, None)


def _existing(folder: Path) -> Path:
    """Return `folder` or the first of its parents that exists: files there can be renamed into it."""
    folder = folder.absolute()
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def _move(source: Path, folder: Path) -> tuple[Path, ...]:
    """Move the files of `source` into `folder`, which is made if needed; return them, sorted by name."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(file.name for file in source.iterdir())
    for name in names:
        os.replace(source / name, folder / name)
    return tuple(folder / name for name in names)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"can't write {path}: {reason(error)}") from error
