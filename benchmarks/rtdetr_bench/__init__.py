"""Measure RT-DETR models where they run, beside others."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rtdetr_bench.comparison import Comparison, compare_models
    from rtdetr_bench.models.contestants import Entry
    from rtdetr_bench.models.nms import NmsOptions
    from rtdetr_bench.timing import Latency, Plan, measure_latency

__all__ = ["Comparison", "Entry", "Latency", "NmsOptions", "Plan", "compare_models", "measure_latency"]

_MODULES = {
    "Comparison": "comparison",
    "compare_models": "comparison",
    "Entry": "models.contestants",
    "NmsOptions": "models.nms",
}
"""Where names are defined; all others are in `timing`."""


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, so that the command can be interrupted from its first moment on."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'timing')}"), name)
