"""What can be told of an export from the files that it names, before torch is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rtdetr_deploy.artifacts.weights_file import find_weights, is_exported
from rtdetr_deploy.errors import CheckpointError, ExportError
from rtdetr_deploy.files import check_writable, refuse_overwriting, require_file
from rtdetr_export.formats import FORMATS
from rtdetr_export.options import ExportOptions


def check_files(options: ExportOptions) -> ExportOptions:
    """Look at the files that `options` name, and return the options with class names read from their file.

    Raises `CheckpointError` for missing weights, `ExportError` for a missing ONNX file, `ImageError` for a calibration
    folder without images, `OptionError` for class names that can't be read, `OutputError` for an output that can't be
    written or is one of the inputs.
    """
    from rtdetr_deploy.artifacts.class_names import read_class_names  # numpy: loaded where an interrupt is handled
    from rtdetr_deploy.images.find import find_images

    names = options.class_names
    read = [_find_weights(options), *([names] if isinstance(names, Path) else [])]
    if options.calibration is not None:
        find_images([options.calibration])
    written = {"`output`": options.output}
    if options.engine is not None and options.engine.reference is not None:
        read.append(_find_model(options.engine.reference))
    if options.engine is not None:
        written["`timing_cache`"] = options.engine.timing_cache
    if options.is_engine and not options.from_onnx:
        written["the ONNX file beside `output`"] = options.for_onnx().output
    if options.format is not None and options.output is not None:
        check_writable(options.output, folder=True)
        written = _in_folder(options.output, options.format)
    refuse_overwriting(written, read)
    if options.format is None or options.output is None:
        check_writable(options.output or options.weights.with_suffix(".onnx"))
    return replace(options, class_names=read_class_names(names)) if isinstance(names, Path) else options


def _in_folder(folder: Path, form: str) -> dict[str, Path | None]:
    """Return every file that goes into the `folder` of the format `form`, by what it is called in errors.

    Raises `OutputError` as `Format.check_folder`.
    """
    FORMATS[form].check_folder(folder)
    return {f"{name} in `output`": folder / name for name in (FORMATS[form].onnx, *FORMATS[form].file_names)}


def _find_weights(options: ExportOptions) -> Path:
    """Return the file that is read; an ONNX file is one for engines and folders alone."""
    if options.is_engine or options.format is not None:
        return _find_model(options.weights)
    return find_weights(options.weights)


def _find_model(path: Path) -> Path:
    """Return the file that is read of a checkpoint or an ONNX file."""
    if path.suffix.lower() == ".onnx":
        require_file(path, ExportError)
        return path
    if path.is_file() and is_exported(path):
        raise CheckpointError(f"{path} is an engine already; expected an .onnx, .pth, .pt or .safetensors file")
    return find_weights(path)
