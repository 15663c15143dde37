"""From weights to the file that is asked for: the output's suffix decides, or the format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.packages import require
from rtdetr_export.checks import check_files
from rtdetr_export.options import ExportOptions
from rtdetr_export.progress import Progress
from rtdetr_export.result import ExportResult


def export(options: ExportOptions, progress: Progress | None = None) -> ExportResult:
    """Export a checkpoint as `options` say, or build an engine of an ONNX file, verify the file and write it.

    An engine is built from an ONNX file that is written beside it (NAME.engine.onnx), unless the weights are one. An
    INT8 engine is compared with the FP32 graph that its checkpoint gives. What is wrong with options, files and the GPU
    is told before any work is done.

    With `format` the ONNX file goes into a folder, with what a serving system wants beside it.

    Raises `CheckpointError`, `OptionError`, `ImageError` and `ArtifactError` for bad input, `MissingPackageError` and
    `DeviceError` for what this machine lacks, `ExportError` when the file disagrees with what it came from (it is not
    written then), `OutputError` when it can't be written.
    """
    if not isinstance(options, ExportOptions):
        raise OptionError(f"`options` is {options!r}, expected ExportOptions(weights, ...)")
    options = check_files(options)
    if options.format is not None:
        from rtdetr_export.formats.package import write_package

        return write_package(options, lambda onnx: _export_onnx(onnx, progress))
    return _export_engine(options, progress) if options.is_engine else _export_onnx(options, progress)


def _export_onnx(options: ExportOptions, progress: Progress | None, *, fp32_copy: Path | None = None) -> ExportResult:
    for module in ("onnx_ir", "onnxscript", "torch"):
        require(module, "exporting", "export")
    if options.is_xml:
        require("openvino", "writing .xml files", "openvino")
    from rtdetr_export.pipeline import export_onnx

    return export_onnx(options, progress, fp32_copy=fp32_copy)


def _export_engine(options: ExportOptions, progress: Progress | None) -> ExportResult:
    for module in ("onnx", "onnx_ir", "onnxruntime"):
        require(module, "building engines", "export")
    from rtdetr_export.trt.build import build_engine, require_gpu
    from rtdetr_export.trt.options import EngineOptions

    assert options.output is not None
    engine = options.engine or EngineOptions()
    gpu = require_gpu(engine)
    with TemporaryDirectory() as folder:
        exported, onnx = None, options.weights
        if not options.from_onnx:
            if options.precision == "int8":  # ONNX Runtime's emulation of INT8 rounds otherwise than TensorRT's
                engine = replace(engine, reference=Path(folder, f"{options.weights.stem}-fp32.onnx"))
            exported = _export_onnx(options.for_onnx(), progress, fp32_copy=engine.reference)
            onnx = exported.path
        built = build_engine(onnx, options.output, engine, calibration=options.calibration, progress=progress, gpu=gpu)
    return replace(built, onnx=exported)
