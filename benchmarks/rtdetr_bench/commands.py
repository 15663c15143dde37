"""The work of each verb of `rtdetr-bench`: one call, its table printed, its figures returned for the JSON.

Studies are imported where they are run: some need packages of extras.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from rtdetr_bench.accuracy import evaluate, format_accuracy
from rtdetr_bench.comparison import compare_models, format_comparison
from rtdetr_bench.machine import describe_machine, machine_text
from rtdetr_bench.options import (
    AblationOptions,
    AccuracyOptions,
    DecoderStudyOptions,
    EncoderStudyOptions,
    InsertNmsOptions,
    LatencyOptions,
    NmsStudyOptions,
    PipelineOptions,
    PrecisionStudyOptions,
    ProfileOptions,
    ReportOptions,
    RooflineOptions,
)
from rtdetr_bench.report.page import combine_results, require_plots, write_report
from rtdetr_bench.results import Json
from rtdetr_bench.studies.ablation import format_ablation, study_ablation
from rtdetr_bench.studies.decoder import format_decoder, format_encoders, study_decoder, study_encoders
from rtdetr_bench.studies.nms import format_nms, study_nms
from rtdetr_bench.studies.pipeline import format_pipeline, study_pipeline
from rtdetr_bench.sweep.options import SweepOptions
from rtdetr_bench.tools.insert_nms import insert_nms
from rtdetr_deploy.packages import needed_for
from rtdetr_deploy.words import printable

__all__ = [
    "ablation", "accuracy", "decoder", "encoder", "insert", "latency", "nms", "precision", "profile", "report",
    "require_plots", "roofline", "sweep", "write_report",
]  # fmt: skip


def latency(options: LatencyOptions) -> Json:
    """Time models in turn."""
    rounds = options.timing.rounds
    total = None if rounds is None else rounds * max(1, len(options.batch))
    with _bar("round", total) as bar:
        comparison = compare_models(options, on_round=bar.update)
    print(machine_text(describe_machine(), options.run.where.threads))
    print(format_comparison(comparison))
    scenarios = [result.to_json() for result in comparison.scenarios]
    return {"comparison": comparison.to_json()} | ({"scenarios": scenarios} if scenarios else {})


def accuracy(options: AccuracyOptions) -> Json:
    """Evaluate a model."""
    with _image_bar() as on_image:
        found = evaluate(options, on_image=on_image)
    size = options.run.size
    print(format_accuracy(options.engine, found))
    print(f"resized with {options.run.resizer}" + ("" if size is None else f" to {size[0]}x{size[1]}"))
    return {
        "engine": options.engine.name,
        "annotations": options.data.annotations.name,
        "resizer": options.run.resizer,
        "images": found.images,
        "detections": found.detections,
        "metrics": found.metrics,
        "per_class": found.per_class,
    }


def ablation(options: AblationOptions) -> Json:
    """Evaluate a checkpoint with one thing changed at a time."""
    with _image_bar() as on_image:
        rows = study_ablation(options, on_image=on_image)
    print(format_ablation(rows))
    return {
        "weights": options.weights.name,
        "annotations": options.data.annotations.name,
        "images": rows[0].accuracy.images,
        "rows": [row.to_json() for row in rows],
    }


def nms(options: NmsStudyOptions) -> Json:
    """Study what NMS costs."""
    with _bar("image") as bar:
        study = study_nms(options, on_image=bar.update)
    print(format_nms(study))
    return {"nms": study.to_json()}


def decoder(options: DecoderStudyOptions) -> Json:
    """Time each number of decoder layers."""
    rows = study_decoder(options, on_step=_say)
    print(format_decoder(rows))
    figures = {"weights": options.weights.name, "rounds": rows[0].rounds}
    return {"decoder": {**figures, "rows": [row.to_json() for row in rows]}}


def pipeline(options: PipelineOptions) -> Json:
    """Measure what is around a model."""
    found = study_pipeline(options)
    print(format_pipeline(found))
    return {"pipeline": {"engine": options.engine.name, **found.to_json()}}


def encoder(options: EncoderStudyOptions) -> Json:
    """Time the paper's encoders."""
    rows = study_encoders(options, on_step=_say)
    print(format_encoders(rows))
    figures = {"variant": options.variant, "rounds": rows[0].rounds}
    return {"encoder": {**figures, "rows": [row.to_json() for row in rows]}}


def precision(options: PrecisionStudyOptions) -> Json:
    """Compare exports in reduced precision with the checkpoint."""
    with needed_for("this study", "export"):
        from rtdetr_bench.studies.precision import format_precision, precision_heads, study_precision
    print(precision_heads())
    rows = study_precision(options, on_row=lambda row: print(format_precision(row), flush=True))
    if options.calibration is not None:
        print("* what rtdetr-export chooses")
    reference = rows[0].agreement
    expected = 0 if reference is None else reference.expected
    print(
        "casts: between float types; FP32: nodes; adds: those behind INT8 convolutions that TensorRT can fuse, of all"
    )
    print(f"{expected} detections of the torch model with score >= 0.3")
    return {
        "weights": options.weights.name,
        "annotations": options.data.annotations.name,
        "expected": expected,
        "rows": [row.to_json() for row in rows],
    }


def roofline(options: RooflineOptions) -> Json:
    """Estimate what models cost on a GPU."""
    with needed_for("the cost model", "bench"):
        from rtdetr_bench.roofline.study import format_roofline, study_roofline
    found = study_roofline(options)
    print(format_roofline(found))
    return {"roofline": found.to_json()}


def profile(options: ProfileOptions) -> Json:
    """Profile a file."""
    with needed_for("profiles", "bench"):
        from rtdetr_bench.profiling.study import format_profile, study_profile
    found = study_profile(options)
    print(machine_text(describe_machine(), options.where.threads))
    print(format_profile(found))
    return {"profile": found.to_json()}


def sweep(options: SweepOptions) -> Json:
    """Say what should be deployed."""
    with needed_for("a sweep", "export"):
        from rtdetr_bench.sweep.study import study_sweep
    found = study_sweep(options)
    print(found)
    return {} if isinstance(found, str) else found.to_json()


def report(options: ReportOptions) -> Json:
    """Make one page of several results."""
    combine_results(options)
    print(f"wrote {printable(options.output)}")
    return {}


def insert(options: InsertNmsOptions) -> Json:
    """Write a YOLO with NMS in its graph."""
    insert_nms(options)
    told = f"NMS at score threshold {options.nms.threshold:g}, IoU {options.nms.iou:g}"
    print(f"wrote {printable(options.output)} with {told}")
    return {}


def _bar(unit: str, total: int | None = None) -> Any:
    return tqdm(total=total, unit=unit, leave=False, disable=not sys.stderr.isatty())


@contextmanager
def _image_bar() -> Iterator[Callable[[int], None]]:
    """Show a progress bar; the function is called with the number of all images after each of them."""
    with _bar("image") as bar:

        def on_image(total: int) -> None:
            bar.total = total
            bar.update()

        yield on_image


def _say(step: str) -> None:
    """Show a step on a terminal."""
    if sys.stderr.isatty():
        print(f"{step} ...", file=sys.stderr)
