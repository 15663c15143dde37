"""What decoder layers, selected queries, the resizer and the export do to a checkpoint's accuracy.

One thing is changed at a time against the exported FP32 model with all its layers and queries, resized by OpenCV.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rtdetr_bench.accuracy import evaluate
from rtdetr_bench.options import AblationOptions, AccuracyOptions
from rtdetr_deploy import OptionError
from rtdetr_deploy.artifacts.weights_file import is_checkpoint
from rtdetr_deploy.evaluate.coco import METRICS, Accuracy
from rtdetr_deploy.images.preprocess import Resizer
from rtdetr_deploy.packages import needed_for

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
class AblationRow:
    """A setting and what it reached."""

    setting: Setting
    accuracy: Accuracy

    def to_json(self) -> dict[str, object]:
        """Return the row as plain numbers and text."""
        return {**asdict(self.setting), "metrics": self.accuracy.metrics, "per_class": self.accuracy.per_class}


def study_ablation(options: AblationOptions, *, on_image: Callable[[int], object] | None = None) -> list[AblationRow]:
    """Return a row for each setting; the first is the one to compare with.

    `on_image` is called with the number of evaluations in all after each of them. Raises `OptionError` when the
    weights are not a checkpoint, and what `evaluate` raises.
    """
    weights, run = options.weights, options.run
    if not is_checkpoint(weights):
        raise OptionError(f"`weights` is {weights.name}, a model file; expected a checkpoint, exported in several ways")
    with needed_for("this study", "export"):
        from rtdetr_deploy.model import load_checkpoint
    checkpoint = load_checkpoint(weights)
    run = replace(run, size=run.size or checkpoint.input_size)
    settings = list(_settings(checkpoint.model.layers, checkpoint.variant.queries))
    rows: list[AblationRow] = []
    with TemporaryDirectory() as folder:
        for setting in settings:
            engine = weights if setting.runtime == "torch" else _export(weights, setting, run.size, Path(folder))
            size = run.size if engine is weights else None
            accuracy = evaluate(
                AccuracyOptions(engine, options.data, replace(run, size=size, resizer=setting.resizer)),
                on_image=None if on_image is None else lambda count: on_image(count * len(settings)),
            )
            rows.append(AblationRow(setting, accuracy))
    return rows


def _export(weights: Path, setting: Setting, size: tuple[int, int] | None, folder: Path) -> Path:
    """Return the checkpoint as an ONNX file with the setting's layers and queries, written at most once."""
    from rtdetr_export import ExportOptions, export_onnx

    path = folder / f"l{setting.layers}-q{setting.queries}.onnx"
    if not path.exists():
        export_onnx(ExportOptions(weights, path, layers=setting.layers, queries=setting.queries, size=size))
    return path


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


def format_ablation(rows: Sequence[AblationRow]) -> str:
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
