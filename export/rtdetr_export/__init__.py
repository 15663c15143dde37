"""Export RT-DETR checkpoints to files that run without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rtdetr_export.options import ExportOptions

if TYPE_CHECKING:
    from rtdetr_export.pipeline import ExportResult, export_onnx

__all__ = ["ExportOptions", "ExportResult", "export_onnx"]


def __getattr__(name: str) -> Any:
    """Import torch only when an export is wanted, so that `rtdetr-export` can say what is missing."""
    if name in __all__:
        from rtdetr_export import pipeline as to_onnx

        return getattr(to_onnx, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
