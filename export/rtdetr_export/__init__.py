"""Export RT-DETR checkpoints to files that run without torch."""

from rtdetr_export.options import ExportOptions
from rtdetr_export.to_onnx import ExportResult, export_onnx

__all__ = ["ExportOptions", "ExportResult", "export_onnx"]
