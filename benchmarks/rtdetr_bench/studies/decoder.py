"""What each decoder layer costs and brings (the paper's Table 5), and what each encoder costs (its Table 3).

Both export their models to temporary ONNX files and time them in turn, as `rtdetr-bench latency` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from rtdetr_bench.accuracy import evaluate
from rtdetr_bench.options import (
    AccuracyOptions,
    DecoderStudyOptions,
    EncoderStudyOptions,
    RunOptions,
    TimingOptions,
)
from rtdetr_bench.ratios import Ratio, compare_medians
from rtdetr_bench.timing import Latency, measure, open_all
from rtdetr_deploy import OptionError
from rtdetr_deploy.artifacts.input_size import DEFAULT_INPUT_SIZE
from rtdetr_deploy.artifacts.weights_file import is_exported
from rtdetr_deploy.evaluate.coco import Accuracy
from rtdetr_deploy.evaluate.published import ENCODERS, published_decoder
from rtdetr_deploy.images.frame import ImageLike
from rtdetr_deploy.packages import needed_for

OnStep = Callable[[str], object]


@dataclass(frozen=True)
class StudyRow:
    """A model of a study: its name, its latency, the ratio to the last row's paper span, AP, millions of parameters."""

    name: str
    latency: Latency
    ratio: Ratio
    accuracy: Accuracy | None = None
    parameters: float | None = None

    @property
    def rounds(self) -> int:
        """How many times the model was timed."""
        return len(self.latency.paper)

    def to_json(self) -> dict[str, Any]:
        """Return the row for a JSON file."""
        return {
            "name": self.name,
            "milliseconds": self.latency.rows(),
            "ratio": [self.ratio.value, self.ratio.low, self.ratio.high],
            "AP": None if self.accuracy is None else self.accuracy.metrics["AP"],
            "parameters_million": self.parameters,
            "samples": {span: values.tolist() for span, values in self.latency.samples.items()},
        }


def study_decoder(options: DecoderStudyOptions, *, on_step: OnStep = lambda _: None) -> list[StudyRow]:
    """Time the checkpoint with n .. 1 decoder layers; with annotations also measure its AP.

    `on_step` is called with what is being done. Raises `CheckpointError` for a file that is not a checkpoint,
    `OptionError` for annotations that don't fit.
    """
    weights, run, evaluation = options.weights, options.run, options.images.evaluation
    if is_exported(weights):
        raise OptionError(
            f"`weights` is {weights.name}, a model file; expected a checkpoint, which can run fewer layers"
        )
    _check_resizer(run)
    export_onnx, export_options, load_checkpoint = _exporter()
    images = options.images.find()
    checkpoint = load_checkpoint(weights)
    if evaluation is not None:  # what doesn't fit is said before anything is timed
        evaluation.read(checkpoint.class_names)
    layers = checkpoint.model.layers
    with TemporaryDirectory() as place:
        files = []
        for count in range(layers, 0, -1):
            on_step(f"export {count} of {layers} layers")
            path = Path(place, f"{count}-layer{'s' * (count > 1)}.onnx")
            export_onnx(export_options(weights, path, layers=count, size=run.size, verify=False))
            files.append(path)
        on_step("time them in turn")
        exported = replace(run, size=None)
        latencies = _time(files, options.timing, exported, images)
        accuracies: list[Accuracy | None] = [None] * len(files)
        if evaluation is not None:
            for index, path in enumerate(files):
                on_step(f"AP of {path.stem}")
                accuracies[index] = evaluate(AccuracyOptions(path, evaluation, exported))
    return [
        StudyRow(path.stem.replace("-", " "), latency, compare_medians(latency.paper, latencies[0].paper), accuracy)
        for path, latency, accuracy in zip(files, latencies, accuracies, strict=True)
    ]


def study_encoders(options: EncoderStudyOptions, *, on_step: OnStep = lambda _: None) -> list[StudyRow]:
    """Time a variant with each of the paper's encoders, weights random. Raises `OptionError` for an unknown variant."""
    run = options.run
    _check_resizer(run)
    with TemporaryDirectory() as place:
        files, parameters = [], []
        for name in options.encoders:
            on_step(f"export encoder {name}")
            path = Path(place, f"{name}.onnx")
            parameters.append(_export_encoder(name, options.variant, path, run.size or DEFAULT_INPUT_SIZE))
            files.append(path)
        on_step("time them in turn")
        latencies = _time(files, options.timing, replace(run, size=None))
    return [
        StudyRow(path.stem, latency, compare_medians(latency.paper, latencies[-1].paper), None, count)
        for path, latency, count in zip(files, latencies, parameters, strict=True)
    ]


def _check_resizer(run: RunOptions) -> None:
    if run.resizer == "cuda":
        raise OptionError('`resizer="cuda"` is for TensorRT engines; this study exports and times ONNX files')


def _time(
    files: Sequence[Path], timing: TimingOptions, run: RunOptions, images: Sequence[ImageLike] = ()
) -> list[Latency]:
    with open_all(files, run) as loaded:
        return measure(loaded, timing, images=images)


def _exporter() -> tuple[Any, Any, Any]:
    with needed_for("this study", "export"):
        from rtdetr_deploy.model import load_checkpoint
        from rtdetr_export import ExportOptions, export_onnx
    return export_onnx, ExportOptions, load_checkpoint


def _export_encoder(name: str, variant: str, path: Path, size: tuple[int, int]) -> float:
    """Write a model with this encoder and random weights; return millions of parameters before folding."""
    _exporter()
    from rtdetr_bench.studies.encoders import build_encoder
    from rtdetr_deploy.model import RTDETR
    from rtdetr_deploy.model.random_weights import fill_randomly
    from rtdetr_deploy.model.variants import find_variant
    from rtdetr_export import ExportOptions
    from rtdetr_export.pipeline import build_deployed, trace
    from rtdetr_export.simplify import serialize, simplify

    described = find_variant(variant)
    model = RTDETR(described)
    model.encoder = build_encoder(name, described)  # type: ignore[assignment]
    fill_randomly(model)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    options = ExportOptions(path, size=size)
    traced = trace(build_deployed(model.eval(), "gather", options), options)
    path.write_bytes(serialize(simplify(traced.content), {}, ""))
    return count


def format_decoder(rows: Sequence[StudyRow]) -> str:
    """Return the table of `study_decoder`, beside the paper's."""
    published = published_decoder(len(rows))
    head = f"{'':<10}{'ms (p50)':>9}{'ratio [95 %]':>24}{'AP':>9}"
    base = f" (to its {rows[0].name})" if published else ""
    lines = [f"{head}   published (R50, T4): AP, ms, ratio{base}"]
    for row in rows:
        paper = published.get(int(row.name.split()[0]))
        told = "-" if paper is None else f"{paper.ap:.1f}, {paper.milliseconds:.1f}, {paper.ratio:.3f}"
        lines.append(_line(row, f"{row.name:<10}") + f"   {told}")
    return "\n".join(lines)


def format_encoders(rows: Sequence[StudyRow]) -> str:
    """Return the table of `study_encoders`, beside the paper's."""
    head = f"{'encoder':<8}{'params M':>9}{'ms (p50)':>9}{'ratio [95 %]':>24}"
    base = ENCODERS[rows[-1].name][2]
    lines = [f"{head}   published (R50, T4): AP, params M, ms, ratio (both ratios to {rows[-1].name})"]
    for row in rows:
        ap, parameters, milliseconds = ENCODERS[row.name]
        told = f"{ap:.1f}, {parameters}, {milliseconds:.1f}, {milliseconds / base:.3f}"
        lines.append(_line(row, f"{row.name:<8}{row.parameters:>9.1f}", accuracy=False) + f"   {told}")
    return "\n".join(lines)


def _line(row: StudyRow, head: str, *, accuracy: bool = True) -> str:
    ap = f"{row.accuracy.metrics['AP']:>9.4f}" if row.accuracy is not None else f"{'-':>9}"
    return f"{head}{np.median(row.latency.paper):>9.2f}{row.ratio!s:>24}" + (ap if accuracy else "")
