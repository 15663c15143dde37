"""Measure RT-DETR models where they run."""

from rtdetr_bench.latency import Latency, measure_latency

__all__ = ["Latency", "measure_latency"]
