"""Export RT-DETR checkpoints to files that run without torch.

    from rtdetr_export import ExportOptions, export

    result = export(ExportOptions(Path("r50.pth"), Path("r50.engine"), precision="fp16", batch=None))

`result.report` says how the file's detections agree with those of what it came from.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rtdetr_export.options import ExportOptions
from rtdetr_export.progress import Progress, Step
from rtdetr_export.result import ExportResult
from rtdetr_export.targets import export
from rtdetr_export.trt.options import EngineOptions

if TYPE_CHECKING:
    from rtdetr_export.pipeline import export_onnx
    from rtdetr_export.trt.build import build_engine
    from rtdetr_export.trt.lint import Finding, lint_file
    from rtdetr_export.variant_table import VariantRow, measure_variants
    from rtdetr_export.verify.report import Report

__all__ = [
    "EngineOptions", "ExportOptions", "ExportResult", "Finding", "Progress", "Report", "Step", "VariantRow",
    "build_engine", "export", "export_onnx", "lint_file", "measure_variants",
]  # fmt: skip

_LAZY = {
    "export_onnx": "pipeline",
    "build_engine": "trt.build",
    "Finding": "trt.lint",
    "lint_file": "trt.lint",
    "VariantRow": "variant_table",
    "measure_variants": "variant_table",
    "Report": "verify.report",
}
"""What needs torch or onnx is imported when it is wanted, so that `rtdetr-export` can say what is missing."""


def __getattr__(name: str) -> Any:
    """Import what `_LAZY` lists."""
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
