"""Measure RT-DETR models where they run, beside others."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rtdetr_bench.accuracy import evaluate
    from rtdetr_bench.comparison import Comparison, compare_models
    from rtdetr_bench.models.nms import NmsOptions
    from rtdetr_bench.options import (
        AblationOptions,
        AccuracyOptions,
        DecoderStudyOptions,
        EncoderStudyOptions,
        EvaluationSet,
        ImageOptions,
        InsertNmsOptions,
        LatencyOptions,
        NmsStudyOptions,
        PrecisionStudyOptions,
        ProfileOptions,
        ReportOptions,
        RooflineOptions,
        RunOptions,
        TimingOptions,
    )
    from rtdetr_bench.profiling.study import study_profile
    from rtdetr_bench.report.page import combine_results
    from rtdetr_bench.roofline.study import Roofline, study_roofline
    from rtdetr_bench.studies.ablation import study_ablation
    from rtdetr_bench.studies.decoder import study_decoder, study_encoders
    from rtdetr_bench.studies.nms import study_nms
    from rtdetr_bench.studies.precision import study_precision
    from rtdetr_bench.timing import Latency, measure_latency
    from rtdetr_bench.tools.insert_nms import insert_nms

__all__ = [
    "AblationOptions", "AccuracyOptions", "Comparison", "DecoderStudyOptions", "EncoderStudyOptions",
    "EvaluationSet", "ImageOptions", "InsertNmsOptions", "Latency", "LatencyOptions", "NmsOptions",
    "NmsStudyOptions", "PrecisionStudyOptions", "ProfileOptions", "ReportOptions", "Roofline", "RooflineOptions",
    "RunOptions", "TimingOptions", "combine_results", "compare_models", "evaluate", "insert_nms", "measure_latency",
    "study_ablation", "study_decoder", "study_encoders", "study_nms", "study_precision", "study_profile",
    "study_roofline",
]  # fmt: skip

_MODULES = {
    "Comparison": "comparison",
    "Latency": "timing",
    "NmsOptions": "models.nms",
    "Roofline": "roofline.study",
    "combine_results": "report.page",
    "compare_models": "comparison",
    "evaluate": "accuracy",
    "insert_nms": "tools.insert_nms",
    "measure_latency": "timing",
    "study_ablation": "studies.ablation",
    "study_decoder": "studies.decoder",
    "study_encoders": "studies.decoder",
    "study_nms": "studies.nms",
    "study_precision": "studies.precision",
    "study_profile": "profiling.study",
    "study_roofline": "roofline.study",
}
"""Where names are defined; all others are in `options`."""


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, so that the command can be interrupted from its first moment on."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'options')}"), name)
