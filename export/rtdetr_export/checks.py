"""What can be told of an export from the files that it names, before torch is loaded."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from rtdetr_deploy.artifacts.weights_file import find_weights, is_exported
from rtdetr_deploy.errors import CheckpointError, ExportError, OptionError
from rtdetr_deploy.files import check_writable, refuse_overwriting, require_file
from rtdetr_export.formats import FORMATS
from rtdetr_export.options import ExportOptions


def check_files(options: ExportOptions) -> ExportOptions:
    """Look at the files that `options` name, and return the options with class names read from their file.

    Raises `CheckpointError` for missing weights, `ExportError` for a missing ONNX file, `ImageError` for a calibration
    folder without images, `OptionError` for class names or a timing cache that can't be read, `OutputError` for an
    output that can't be written or is one of the inputs.
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
    if options.engine is not None and options.engine.timing_cache is not None:
        _check_timing_cache(options.engine.timing_cache)
        written["`timing_cache`"] = options.engine.timing_cache
    if options.is_engine:
        written |= _beside_engine(options)
    if options.is_xml and options.output is not None:
        written["the weights beside `output`"] = options.output.with_suffix(".bin")
    if options.format is not None and options.output is not None:
        check_writable(options.output, folder=True)
        written = _in_folder(options.output, options.format)
    refuse_overwriting(written, read)
    if options.format is None or options.output is None:
        check_writable(options.output or options.weights.with_suffix(".onnx"))
    return replace(options, class_names=read_class_names(names)) if isinstance(names, Path) else options


def _check_timing_cache(path: Path) -> None:
    """Raise `OptionError` for a cache that can't be read, `OutputError` for one that can't be written."""
    if os.path.exists(path):
        require_file(path, OptionError)
    check_writable(path)


def _beside_engine(options: ExportOptions) -> dict[str, Path | None]:
    """Return every file that is written beside an engine, by what it is called in errors."""
    from rtdetr_deploy.runtimes.trt.sidecar import sidecar_path  # numpy, as above
    from rtdetr_export.trt.diagnosis import BEGINNINGS, kept_paths

    assert options.output is not None
    kept = [path for suffix in BEGINNINGS for path in kept_paths(options.output, suffix) if not path.is_dir()]
    files: dict[str, Path | None] = {"the metadata beside `output`": sidecar_path(options.output)}
    if not options.from_onnx:
        files["the ONNX file beside `output`"] = options.for_onnx().output
    return {**files, **{f"what is kept as {path.name}": path for path in kept}}


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
