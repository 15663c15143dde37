"""What decoder layers, selected queries, the resizer and the export do to a checkpoint's accuracy.

One thing is changed at a time against the exported FP32 model with all its layers and queries, resized by OpenCV.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rtdetr_bench.accuracy import evaluate
from rtdetr_deploy import OptionError
from rtdetr_deploy.artifacts.weights_file import is_checkpoint
from rtdetr_deploy.evaluate.coco import METRICS, Accuracy
from rtdetr_deploy.images.preprocess import Resizer
from rtdetr_deploy.packages import needed_for
from rtdetr_deploy.runtimes import check_threads

QUERIES = (100, 200)
"""Numbers of selected queries that are tried beside the model's own."""


@dataclass(frozen=True)
class Setting:
    """How the checkpoint is run: by torch as it is, or exported and run by ONNX Runtime."""

    runtime: str
    layers: int
    queries: int
    resizer: Resizer


@dataclass(frozen=True)
class Row:
    """A setting and what it reached."""

    setting: Setting
    accuracy: Accuracy

    def to_json(self) -> dict[str, object]:
        """Return the row as plain numbers and text."""
        return {**asdict(self.setting), "metrics": self.accuracy.metrics, "per_class": self.accuracy.per_class}


def study_accuracy(
    weights: Path,
    annotations: Path,
    images: Path,
    *,
    size: tuple[int, int] | None = None,
    threads: int | None = None,
    on_image: Callable[[int], object] | None = None,
) -> list[Row]:
    """Return a row for each setting; the first is the one to compare with.

    `on_image` is called with the number of evaluations in all after each of them. Raises `OptionError` when `weights`
    is not a checkpoint, and what `evaluate` raises.
    """
    if not is_checkpoint(weights):
        raise OptionError(f"the study exports a checkpoint in several ways; {weights.name} is a model file")
    if threads is not None:
        check_threads(threads)
    with needed_for("--study", "export"):
        from rtdetr_deploy.model import load_checkpoint
        from rtdetr_export import ExportOptions, export_onnx
    checkpoint = load_checkpoint(weights)
    size = size or checkpoint.input_size
    settings = list(_settings(checkpoint.model.layers, checkpoint.variant.queries))
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        exported: dict[tuple[int, int], Path] = {}
        for setting in settings:
            engine, key = weights, (setting.layers, setting.queries)
            if setting.runtime != "torch":
                if key not in exported:
                    options = ExportOptions(
                        weights=weights,
                        output=Path(folder, f"l{setting.layers}-q{setting.queries}.onnx"),
                        layers=setting.layers,
                        queries=setting.queries,
                        size=size,
                    )
                    exported[key] = export_onnx(options).path
                engine = exported[key]
            accuracy = evaluate(
                engine,
                annotations,
                images,
                size=size if engine is weights else None,
                resizer=setting.resizer,
                threads=threads,
                on_image=None if on_image is None else lambda count: on_image(count * len(settings)),
            )
            rows.append(Row(setting, accuracy))
    return rows


def _settings(layers: int, queries: int) -> Iterator[Setting]:
    base: Resizer = "opencv"
    other: Resizer = "pillow"
    yield Setting("onnxruntime", layers, queries, base)
    yield Setting("torch", layers, queries, base)
    yield Setting("onnxruntime", layers, queries, other)
    for fewer in range(layers - 1, 0, -1):
        yield Setting("onnxruntime", fewer, queries, base)
    for fewer in sorted((count for count in QUERIES if count < queries), reverse=True):
        yield Setting("onnxruntime", layers, fewer, base)


def format_study(rows: Sequence[Row]) -> str:
    """Return the rows as a table; changes of AP against the first."""
    shown = METRICS[:6]
    title = f"{'runtime':<13}{'layers':>7}{'queries':>9}  {'resizer':<8}" + "".join(f"{name:>8}" for name in shown)
    lines = [title + f"{'change':>9}"]
    for row in rows:
        setting, metrics = row.setting, row.accuracy.metrics
        lines.append(
            f"{setting.runtime:<13}{setting.layers:>7}{setting.queries:>9}  {setting.resizer:<8}"
            + "".join(f"{metrics[name]:>8.4f}" for name in shown)
            + f"{metrics['AP'] - rows[0].accuracy.metrics['AP']:>+9.4f}"
        )
    return "\n".join(lines)
