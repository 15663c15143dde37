"""What decoder layers, queries, cascades, the resizer and the export do to a checkpoint's accuracy, and to its speed.

One thing is changed at a time against the exported FP32 model with all its layers and queries, resized by OpenCV. The
exported files are timed too, in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from rtdetr_bench.accuracy import evaluate
from rtdetr_bench.options import AblationOptions, AccuracyOptions, RunOptions
from rtdetr_bench.ratios import Ratio, compare_medians
from rtdetr_bench.timing import Latency, measure, open_all
from rtdetr_deploy import OptionError
from rtdetr_deploy.artifacts.cascade import Cascade, check_cascade, show_cascade
from rtdetr_deploy.artifacts.weights_file import is_checkpoint
from rtdetr_deploy.evaluate.coco import METRICS, Accuracy
from rtdetr_deploy.images.preprocess import Resizer
from rtdetr_deploy.packages import needed_for

QUERIES = (100, 200)
"""Numbers of queries that are tried beside the model's own: from the first layer on, and behind a cascade's cut."""
CUTS = 3
"""The decoder layers, from the first, after which cascades leave queries out by default."""


@dataclass(frozen=True)
class Setting:
    """How the checkpoint is run: by torch as it is, or exported and run by ONNX Runtime."""

    runtime: str
    layers: int
    queries: int
    resizer: Resizer
    cascade: Cascade | None = None

    @property
    def file(self) -> str | None:
        """Name of the exported file; None for torch."""
        cut = "" if self.cascade is None else "-c{}x{}".format(*self.cascade)
        return None if self.runtime == "torch" else f"l{self.layers}-q{self.queries}{cut}.onnx"


@dataclass(frozen=True)
class AblationRow:
    """A setting and what it reached; `latency`, and its `ratio` to the first row's, of files that were timed."""

    setting: Setting
    accuracy: Accuracy
    latency: Latency | None = None
    ratio: Ratio | None = None

    def to_json(self) -> dict[str, object]:
        """Return the row as plain numbers and text."""
        cascade = None if self.setting.cascade is None else show_cascade(self.setting.cascade)
        facts = {**asdict(self.setting), "cascade": cascade}
        facts |= {"metrics": self.accuracy.metrics, "per_class": self.accuracy.per_class}
        if self.latency is None or self.ratio is None:
            return facts
        spans = {span: values.round(4).tolist() for span, values in self.latency.samples.items()}
        ratio = [self.ratio.value, self.ratio.low, self.ratio.high]
        return {**facts, "milliseconds": self.latency.rows(), "ratio": ratio, "samples": spans}


def study_ablation(options: AblationOptions, *, on_image: Callable[[int], object] | None = None) -> list[AblationRow]:
    """Return a row for each setting; the first is the one to compare with.

    `on_image` is called with the number of evaluations in all after each of them. Raises `OptionError` when the
    weights are not a checkpoint or have no such cascade, and what `evaluate` raises.
    """
    weights, run = options.weights, options.run
    if not is_checkpoint(weights):
        raise OptionError(f"`weights` is {weights.name}, a model file; expected a checkpoint, exported in several ways")
    with needed_for("this study", "export"):
        from rtdetr_deploy.model import load_checkpoint
    checkpoint = load_checkpoint(weights)
    run = replace(run, size=run.size or checkpoint.input_size)
    settings = list(_settings(checkpoint.model.layers, checkpoint.variant.queries, options.cascade))
    rows: list[AblationRow] = []
    with TemporaryDirectory() as folder:
        for setting in settings:
            engine = weights if setting.file is None else _export(weights, setting, run.size, Path(folder))
            size = run.size if engine is weights else None
            accuracy = evaluate(
                AccuracyOptions(
                    engine, options.data, replace(run, size=size, resizer=setting.resizer, runtime=setting.runtime)
                ),
                on_image=None if on_image is None else lambda count: on_image(count * len(settings)),
            )
            rows.append(AblationRow(setting, accuracy))
        return time_rows(rows, Path(folder), options)


def time_rows(rows: Sequence[AblationRow], folder: Path, options: AblationOptions) -> list[AblationRow]:
    """Return the rows with the latency of those whose files in `folder` differ from each other, timed in turn."""
    base = rows[0].setting.resizer
    files = {row.setting.file: index for index, row in enumerate(rows) if row.setting.resizer == base}
    files.pop(None, None)
    run = RunOptions(runtime=rows[0].setting.runtime, where=options.run.where)
    with open_all([Path(folder, str(name)) for name in files], run) as loaded:
        latencies = measure(loaded, options.timing)
    timed = list(rows)
    for index, latency in zip(files.values(), latencies, strict=True):
        ratio = compare_medians(latency.paper, latencies[0].paper)
        timed[index] = replace(rows[index], latency=latency, ratio=ratio)
    return timed


def _export(weights: Path, setting: Setting, size: tuple[int, int] | None, folder: Path) -> Path:
    """Return the checkpoint as an ONNX file with the setting's layers, queries and cascade, written at most once."""
    from rtdetr_export import ExportOptions, export_onnx

    path = folder / str(setting.file)
    if not path.exists():
        layers, queries, cascade = setting.layers, setting.queries, setting.cascade
        export_onnx(ExportOptions(weights, path, layers=layers, queries=queries, cascade=cascade, size=size))
    return path


def _settings(layers: int, queries: int, cascades: Sequence[Cascade]) -> Iterator[Setting]:
    base: Resizer = "opencv"
    other: Resizer = "pillow"
    yield Setting("onnxruntime", layers, queries, base)
    yield Setting("torch", layers, queries, base)
    yield Setting("onnxruntime", layers, queries, other)
    for fewer in range(layers - 1, 0, -1):
        yield Setting("onnxruntime", fewer, queries, base)
    counts = sorted((count for count in QUERIES if count < queries), reverse=True)
    for fewer in counts:
        yield Setting("onnxruntime", layers, fewer, base)
    cuts = [(after, count) for after in range(1, min(layers - 1, CUTS) + 1) for count in counts]
    for cascade in cascades or cuts:
        yield Setting("onnxruntime", layers, queries, base, check_cascade(cascade, layers, queries))


def format_ablation(rows: Sequence[AblationRow]) -> str:
    """Return the rows as a table; changes of AP, and ratios of milliseconds, against the first."""
    shown = METRICS[:6]
    title = f"{'runtime':<13}{'layers':>7}{'queries':>9}{'cascade':>9}  {'resizer':<8}"
    lines = [title + "".join(f"{name:>8}" for name in shown) + f"{'change':>9}{'ms (p50)':>10}  ratio [95 %]"]
    for row in rows:
        setting, metrics = row.setting, row.accuracy.metrics
        cascade = "-" if setting.cascade is None else show_cascade(setting.cascade)
        lines.append(
            f"{setting.runtime:<13}{setting.layers:>7}{setting.queries:>9}{cascade:>9}  {setting.resizer:<8}"
            + "".join(f"{metrics[name]:>8.4f}" for name in shown)
            + f"{metrics['AP'] - rows[0].accuracy.metrics['AP']:>+9.4f}"
            + ("" if row.latency is None else f"{np.median(row.latency.paper):>10.2f}  {row.ratio}")
        )
    return "\n".join(lines)
