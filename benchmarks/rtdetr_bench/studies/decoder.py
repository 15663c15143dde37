"""What each decoder layer costs and brings (the paper's Table 5), and what each encoder costs (its Table 3).

Both export their models to temporary ONNX files and time them in turn, as `rtdetr-bench --against` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from rtdetr_bench.accuracy import evaluate
from rtdetr_bench.models.contestants import Entry
from rtdetr_bench.ratios import Ratio, compare_medians
from rtdetr_bench.timing import Latency, Plan, measure, open_all
from rtdetr_deploy import OptionError
from rtdetr_deploy.artifacts.weights_file import is_exported
from rtdetr_deploy.evaluate.coco import Accuracy, read_annotations, require_evaluator
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


def _check_resizer(entry: Entry) -> None:
    if entry.resizer == "cuda":
        raise OptionError("resizer cuda is for TensorRT engines; this study exports and times ONNX files")


def study_decoder(
    weights: Path,
    plan: Plan,
    entry: Entry,
    *,
    annotations: Path | None = None,
    folder: Path | None = None,
    images: Sequence[ImageLike] = (),
    on_step: OnStep = lambda _: None,
) -> list[StudyRow]:
    """Time the checkpoint with 1 .. n decoder layers, most first; with `annotations` and `folder` also its AP.

    Raises `CheckpointError` for a file that is not a checkpoint, `OptionError` for annotations that don't fit.
    """
    if is_exported(weights):
        raise OptionError(f"--decoder-study exports a checkpoint with fewer layers; {weights.name} is a model file")
    _check_resizer(entry)
    export_onnx, options, load_checkpoint = _exporter()
    checkpoint = load_checkpoint(weights)
    if annotations is not None and folder is not None:  # what doesn't fit is said before anything is timed
        require_evaluator()
        read_annotations(annotations, folder, checkpoint.class_names)
    layers = checkpoint.model.layers
    with TemporaryDirectory() as place:
        files = []
        for count in range(layers, 0, -1):
            on_step(f"export {count} of {layers} layers")
            path = Path(place, f"{count}-layer{'s' * (count > 1)}.onnx")
            export_onnx(options(weights, path, layers=count, size=entry.size, verify=False))
            files.append(path)
        on_step("time them in turn")
        latencies = _time(files, plan, entry, images)
        accuracies: list[Accuracy | None] = [None] * len(files)
        if annotations is not None and folder is not None:
            for index, path in enumerate(files):
                on_step(f"AP of {path.stem}")
                accuracies[index] = evaluate(path, annotations, folder, resizer=entry.resizer, threads=entry.threads)
    return [
        StudyRow(path.stem.replace("-", " "), latency, compare_medians(latency.paper, latencies[0].paper), accuracy)
        for path, latency, accuracy in zip(files, latencies, accuracies, strict=True)
    ]


def study_encoders(
    variant: str, plan: Plan, entry: Entry, *, names: Sequence[str] = tuple(ENCODERS), on_step: OnStep = lambda _: None
) -> list[StudyRow]:
    """Time `variant` with each of the paper's encoders, weights random. Raises `OptionError` for unknown names."""
    unknown = [name for name in names if name not in ENCODERS]
    if unknown:
        raise OptionError(f"unknown encoder {', '.join(unknown)}; choose from {', '.join(ENCODERS)}")
    if not names or len(set(names)) < len(names):
        raise OptionError(f"name each encoder once, and one at least; choose from {', '.join(ENCODERS)}")
    _check_resizer(entry)
    with TemporaryDirectory() as place:
        files, parameters = [], []
        for name in names:
            on_step(f"export encoder {name}")
            path = Path(place, f"{name}.onnx")
            parameters.append(_export_encoder(name, variant, path, entry.size or (640, 640)))
            files.append(path)
        on_step("time them in turn")
        latencies = _time(files, plan, entry, ())
    return [
        StudyRow(path.stem, latency, compare_medians(latency.paper, latencies[-1].paper), None, count)
        for path, latency, count in zip(files, latencies, parameters, strict=True)
    ]


def _time(files: Sequence[Path], plan: Plan, entry: Entry, images: Sequence[ImageLike]) -> list[Latency]:
    with open_all(files, Entry(entry.nms, None, entry.resizer, entry.threads)) as opened:
        return measure(opened, plan, images=images)


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
