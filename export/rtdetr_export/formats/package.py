"""Write the folder of a format: all of its files, or none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rtdetr_deploy.errors import OutputError
from rtdetr_deploy.files import reason
from rtdetr_export.formats import FORMATS
from rtdetr_export.options import ExportOptions
from rtdetr_export.result import ExportResult, Package


def write_package(options: ExportOptions, export_onnx: Callable[[ExportOptions], ExportResult]) -> ExportResult:
    """Export with `export_onnx` and put the file into the folder of `options.format`, with what belongs beside it.

    Everything is made in a temporary folder first: after any error the folder is as it was. Raises what `export_onnx`
    does, `OptionError` for a model that the format's system can't run, and `OutputError`.
    """
    assert options.format is not None
    form = FORMATS[options.format]
    with _writing(options.output or options.weights):
        temporary = TemporaryDirectory(dir=_existing(options.output or options.weights.parent), prefix=".part-")
    with temporary as name:
        made = export_onnx(replace(options, format=None, output=Path(name, form.onnx)))
        folder = options.output or options.default_output(made.info)
        form.check_folder(folder)
        files = form.make_files(made.info)
        with _writing(folder):
            for file, content in files.items():
                Path(name, file).write_bytes(content)
            moved = _move(Path(name), folder)
    return replace(made, path=folder / form.onnx, package=Package(folder, moved, form.next_steps(folder, made.info)))


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
