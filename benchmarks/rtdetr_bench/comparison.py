"""Several models timed in turn in one run, compared pair by pair, with their AP where annotations are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from rtdetr_bench.machine import describe_state
from rtdetr_bench.models.timed_model import TimedModel
from rtdetr_bench.options import LatencyOptions, TimingOptions
from rtdetr_bench.ratios import Ratio, compare_medians
from rtdetr_bench.scenarios.measure import SHORT, measure_scenario, measure_throughput
from rtdetr_bench.scenarios.results import ScenarioResult, Throughput, format_scenarios
from rtdetr_bench.timing import Latency, check_batch, measure, open_all, synthetic_image
from rtdetr_deploy import Detections
from rtdetr_deploy.evaluate.coco import Annotations, average_precision
from rtdetr_deploy.images.frame import ImageLike
from rtdetr_deploy.predictor import MAX_BATCH
from rtdetr_deploy.words import plural

COLUMNS = ("p50", "p90", "p99", "mean", "min")


@dataclass(frozen=True)
class ModelPair:
    """How much longer `name` takes than `base`, at one batch: in the paper's span, and in the whole call."""

    name: str
    base: str
    batch: int
    paper: Ratio
    whole: Ratio

    def to_json(self) -> dict[str, Any]:
        """Return the pair for a JSON file."""
        spans = {"paper": vars(self.paper), "whole": vars(self.whole)}
        return {"name": self.name, "base": self.base, "batch": self.batch, **spans}


@dataclass(frozen=True)
class Comparison:
    """Latencies by batch and model, every pair of models, and AP by model (empty without annotations).

    `throughputs` belong to the latencies, in their order (empty: not measured).
    """

    latencies: tuple[Latency, ...]
    pairs: tuple[ModelPair, ...]
    accuracy: dict[str, float]
    threshold: float
    state: dict[str, object] = field(default_factory=dict)
    real_images: bool = False
    throughputs: tuple[Throughput, ...] = ()
    scenarios: tuple[ScenarioResult, ...] = ()

    def throughput_of(self, latency: Latency) -> Throughput | None:
        """Return the throughput that was measured beside `latency`; None where there was none."""
        return next((t for one, t in zip(self.latencies, self.throughputs, strict=False) if one is latency), None)

    def to_json(self) -> dict[str, Any]:
        """Return everything for a JSON file, each sample included."""
        return {
            "threshold": self.threshold,
            "state": self.state,
            "real_images": self.real_images,
            "rounds": len(self.latencies[0].paper),
            "models": [
                {
                    "name": one.name,
                    "facts": one.facts,
                    "batch": one.batch,
                    "opened_seconds": one.opened,
                    "memory_mb": None if one.memory is None else one.memory / 1e6,
                    "gpu_memory_mb": None if one.gpu_memory is None else one.gpu_memory / 1e6,
                    "warmup_calls": one.warmup,
                    "nms_input_boxes": one.nms_input_boxes,
                    "images_per_second": one.throughput,
                    "back_to_back": None if (flow := self.throughput_of(one)) is None else flow.to_json(),
                    "AP": self.accuracy.get(one.name),
                    "milliseconds": one.rows(),
                    "samples": {span: values.round(4).tolist() for span, values in one.samples.items()},
                }
                for one in self.latencies
            ],
            "pairs": [pair.to_json() for pair in self.pairs],
        }


def compare_models(options: LatencyOptions, *, on_round: Callable[[], object] | None = None) -> Comparison:
    """Time the models in turn at each batch, the first being the base; with annotations measure their AP too.

    `on_round` is called after each round. Raises what opening raises, and `OptionError` when a model can't take a
    batch, or annotations don't fit.
    """
    images, evaluation = options.images.find(), options.images.evaluation
    latencies: list[Latency] = []
    throughputs: list[Throughput] = []
    with open_all(options.models, options.run) as loaded:
        rename(models := [one.model for one in loaded])
        batches = options.batch or (models[0].batch or 1,)
        for batch in batches:
            for model in models:
                check_batch(model, batch)
        truths: dict[str, Annotations] = {}
        if evaluation is not None:  # what doesn't fit is said before anything is timed
            truths = {model.name: evaluation.read(model.class_names) for model in models}
        for batch in batches:
            latencies += measure(loaded, options.timing, batch=batch, images=images, on_round=on_round)
            throughputs += _throughputs(models, batch, options.timing, images)
        scenarios = tuple(_scenarios(models, options, images))
        state = describe_state(options.run.where.device)
        accuracy = {model.name: measure_precision(model, truths[model.name]) for model in models if truths}
    pairs = tuple(_pairs(latencies))
    threshold = options.run.nms.threshold
    flows = tuple(throughputs)
    return Comparison(tuple(latencies), pairs, accuracy, threshold, state, bool(images), flows, scenarios)


def _throughputs(
    models: Sequence[TimedModel], batch: int, timing: TimingOptions, images: Sequence[ImageLike]
) -> list[Throughput]:
    """Return what each model gets done back to back, in `SHORT` seconds and as many calls as rounds at most."""
    seconds = min(SHORT, timing.duration or SHORT)
    sources = images or [synthetic_image()]
    return [measure_throughput(one, batch, sources, calls=timing.rounds, seconds=seconds) for one in models]


def _scenarios(
    models: Sequence[TimedModel], options: LatencyOptions, images: Sequence[ImageLike]
) -> Iterator[ScenarioResult]:
    sources = images or [synthetic_image()]
    for name in options.scenario:
        yield from (measure_scenario(name, model, options.timing, sources) for model in models)


def rename(models: Sequence[TimedModel]) -> None:
    """Add numbers to names that several models share."""
    seen: dict[str, int] = {}
    for model in models:
        seen[model.name] = seen.get(model.name, 0) + 1
        if seen[model.name] > 1:
            model.name = f"{model.name} ({seen[model.name]})"


def measure_precision(model: TimedModel, truth: Annotations) -> float:
    """Return COCO's AP of a model, with the thresholds that it was timed with."""
    return average_precision(_detect(model, [path for _, path in truth.images]), truth, model.class_names).ap


def _detect(model: TimedModel, paths: Sequence[Path]) -> Iterator[Detections]:
    """Yield what a model finds in each image, in full batches."""
    step = model.batch or min(MAX_BATCH, model.max_batch or MAX_BATCH)
    for start in range(0, len(paths), step):
        part = list(paths[start : start + step])
        found, _ = model.call(part + part[-1:] * (step - len(part)))
        yield from found[: len(part)]


def _pairs(latencies: Sequence[Latency]) -> list[ModelPair]:
    return [
        ModelPair(
            other.name,
            base.name,
            base.batch,
            compare_medians(other.paper, base.paper),
            compare_medians(other.total(), base.total()),
        )
        for base, other in combinations(latencies, 2)
        if base.batch == other.batch
    ]


def format_comparison(comparison: Comparison) -> str:
    """Return the tables: every span of each model, then the models beside the first, then the scenarios."""
    latencies = comparison.latencies
    text = _format_models(comparison) if len({one.name for one in latencies}) > 1 else _format_alone(comparison)
    return f"{text}\n\n{format_scenarios(comparison.scenarios)}" if comparison.scenarios else text


def _format_alone(comparison: Comparison) -> str:
    return "\n".join(
        format_latency(one, comparison.accuracy.get(one.name), comparison.throughput_of(one))
        for one in comparison.latencies
    )


def _format_models(comparison: Comparison) -> str:
    latencies = comparison.latencies
    width = max(len(one.name) for one in latencies)
    spans = list(dict.fromkeys(span for one in latencies for span in one.samples))
    heads = "".join(f"{span:>12}" for span in (*spans, "paper p50", "p90", "whole p50", "images/s"))
    lines = [f"median milliseconds per call, in turn, {plural(len(latencies[0].total()), 'round')}"]
    lines.append(f"{'':<{width}}{'batch':>6}{heads}{'boxes':>7}{'AP':>8}{'MB':>7}{'open s':>8}")
    for one in latencies:
        parts = [float(np.median(one.samples[span])) if span in one.samples else None for span in spans]
        parts += [float(np.median(one.paper)), float(np.percentile(one.paper, 90)), float(np.median(one.total()))]
        columns = "".join(f"{'-':>12}" if part is None else f"{part:>12.2f}" for part in (*parts, one.throughput))
        ap = f"{comparison.accuracy[one.name]:>8.4f}" if one.name in comparison.accuracy else f"{'-':>8}"
        memory = f"{_megabytes(one):>7}{one.opened:>8.2f}"
        boxes = "-" if one.nms_input_boxes is None else f"{one.nms_input_boxes:.0f}"
        lines.append(f"{one.name:<{width}}{one.batch:>6}{columns}{boxes:>7}{ap}{memory}")
    lines.append("boxes: what NMS outside the graph was given, per image")
    if not comparison.real_images and any(one.nms_input_boxes is not None for one in latencies):
        lines.append("a synthetic image holds no objects: without --images NMS has next to nothing to do")
    lines.append(f"ratio of medians to {latencies[0].name} [95 % confidence], the paper's span and the whole call")
    for pair in comparison.pairs:
        if pair.base == latencies[0].name:
            lines.append(f"{pair.name:<{width}}{pair.batch:>6}  {pair.paper!s:<24}{pair.whole!s}")
    lines.append("")
    lines += [f"{one.name}, batch {one.batch}: {flow}" for one in latencies if (flow := comparison.throughput_of(one))]
    lines += [f"{one.name}: " + ", ".join(f"{k} {v}" for k, v in one.facts.items()) for one in _first(latencies)]
    return "\n".join(lines)


def format_latency(latency: Latency, accuracy: float | None = None, throughput: Throughput | None = None) -> str:
    """Return one model's table."""
    facts = ", ".join(f"{name} {value}" for name, value in latency.facts.items())
    warm = f"{plural(latency.warmup, 'call')} to warm up"
    opened = f"opened in {latency.opened:.2f} s, memory {_megabytes(latency)} MB, {warm}"
    lines = [f"{latency.name}, batch {latency.batch}: {opened}", facts]
    lines.append(f"{'milliseconds per call':<24}" + "".join(f"{column:>9}" for column in COLUMNS))
    for name, row in latency.rows().items():
        lines.append(f"{name:<24}" + "".join(f"{row[column]:>9.2f}" for column in COLUMNS))
    end = "" if accuracy is None else f"; AP {accuracy:.4f}"
    lines.append(f"{latency.throughput:.1f} images per second{end}; the paper's span is infer + decode")
    lines += [] if throughput is None else [str(throughput)]
    return "\n".join(lines)


def _megabytes(latency: Latency) -> str:
    return "-" if latency.memory is None else f"{latency.memory / 1e6:.0f}"


def _first(latencies: Sequence[Latency]) -> list[Latency]:
    """Return one latency per model."""
    return list({one.name: one for one in latencies}.values())
