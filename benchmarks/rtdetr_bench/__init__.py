"""Measure RT-DETR models where they run, beside others."""

from rtdetr_bench.comparison import Comparison, compare_models
from rtdetr_bench.contestants import Entry
from rtdetr_bench.latency import Latency, Plan, measure_latency
from rtdetr_bench.nms import NmsOptions

__all__ = ["Comparison", "Entry", "Latency", "NmsOptions", "Plan", "compare_models", "measure_latency"]
