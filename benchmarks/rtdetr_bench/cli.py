"""rtdetr-bench: how fast a model runs on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from rtdetr_bench.accuracy import evaluate
from rtdetr_bench.accuracy_study import format_study, study_accuracy
from rtdetr_bench.latency import Latency, measure_latency
from rtdetr_bench.machine import describe_machine
from rtdetr_deploy import OptionError, find_images
from rtdetr_deploy.arguments import parse_size
from rtdetr_deploy.coco import Accuracy
from rtdetr_deploy.command import run_command
from rtdetr_deploy.files import write_atomically
from rtdetr_deploy.preprocess import RESIZERS

SCHEMA = 1
COLUMNS = ("p50", "p90", "p99", "mean", "min")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `rtdetr-bench`."""
    parser = argparse.ArgumentParser(
        prog="rtdetr-bench",
        description="Measure the latency of an exported RT-DETR model, stage by stage, or its accuracy on a COCO json.",
    )
    add = parser.add_argument
    add("--engine", type=Path, required=True, metavar="MODEL", help="model file; with --accuracy also a checkpoint")
    add("--images", action="append", default=[], metavar="PATH", help="image, folder or glob (default: synthetic 720p)")
    add("--accuracy", type=Path, metavar="JSON", help="evaluate on this COCO json; --images names the folder")
    add(
        "--study",
        action="store_true",
        help="with --accuracy and a checkpoint: repeat with fewer layers and queries, both resizers, in torch and ONNX",
    )
    add("--resizer", choices=RESIZERS, default=RESIZERS[0], help="library that resizes (default: %(default)s)")
    add(
        "--size",
        metavar="SIZE",
        help="input of checkpoints (default: what they name, else 640) and of models that leave it open",
    )
    add("--runs", type=int, default=100, metavar="N", help="measured calls (default: %(default)s)")
    add("--warmup", type=int, default=5, metavar="N", help="calls before measuring (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="threads of the engine (default: the engine decides)")
    add("--json", type=Path, metavar="FILE", help="write machine, versions and all figures")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (0 done, 2 wrong input, 130 interrupted)."""
    arguments = build_parser().parse_args(argv)
    work = _study if arguments.study else _bench if arguments.accuracy is None else _accuracy
    return run_command("rtdetr-bench", lambda: work(arguments), "nothing was measured")


def _bench(arguments: argparse.Namespace) -> int:
    images = find_images(arguments.images)
    steps = max(0, arguments.runs) + max(0, arguments.warmup)
    with tqdm(total=steps, unit="run", leave=False, disable=not sys.stderr.isatty()) as bar:
        latency = measure_latency(
            arguments.engine,
            images=images,
            runs=arguments.runs,
            warmup=arguments.warmup,
            threads=arguments.threads,
            resizer=arguments.resizer,
            size=_size(arguments),
            on_run=bar.update,
        )
    machine = describe_machine()
    print_latency(arguments.engine, latency, machine)
    _write_json(
        arguments,
        {
            "batch": latency.batch,
            "opened_seconds": latency.opened,
            "milliseconds": latency.rows(),
            "samples": {stage: values.tolist() for stage, values in latency.samples.items()},
        },
    )
    return 0


def _accuracy(arguments: argparse.Namespace) -> int:
    folder = _image_folder(arguments)
    with _image_bar() as on_image:
        accuracy = evaluate(
            arguments.engine,
            arguments.accuracy,
            folder,
            size=_size(arguments),
            resizer=arguments.resizer,
            threads=arguments.threads,
            on_image=on_image,
        )
    print_accuracy(arguments.engine, accuracy)
    print(f"resized with {arguments.resizer}" + (f" to {arguments.size}" if arguments.size else ""))
    _write_json(
        arguments,
        {
            "annotations": arguments.accuracy.name,
            "resizer": arguments.resizer,
            "images": accuracy.images,
            "detections": accuracy.detections,
            "metrics": accuracy.metrics,
            "per_class": accuracy.per_class,
        },
    )
    return 0


def _study(arguments: argparse.Namespace) -> int:
    if arguments.accuracy is None:
        raise OptionError("--study needs --accuracy with a COCO json")
    folder = _image_folder(arguments)
    with _image_bar() as on_image:
        rows = study_accuracy(
            arguments.engine,
            arguments.accuracy,
            folder,
            size=_size(arguments),
            threads=arguments.threads,
            on_image=on_image,
        )
    print(format_study(rows))
    content = {"annotations": arguments.accuracy.name, "images": rows[0].accuracy.images}
    _write_json(arguments, {**content, "rows": [row.to_json() for row in rows]})
    return 0


def _image_folder(arguments: argparse.Namespace) -> Path:
    if len(arguments.images) != 1:
        raise OptionError("--accuracy needs --images with the folder of the json's images")
    return Path(arguments.images[0])


@contextmanager
def _image_bar() -> Iterator[Callable[[int], None]]:
    """Show a progress bar; the function is called with the number of all images after each of them."""
    with tqdm(unit="image", leave=False, disable=not sys.stderr.isatty()) as bar:

        def on_image(total: int) -> None:
            bar.total = total
            bar.update()

        yield on_image


def _size(arguments: argparse.Namespace) -> tuple[int, int] | None:
    return parse_size(arguments.size) if arguments.size else None


def print_accuracy(engine: Path, accuracy: Accuracy) -> None:
    """Print COCO's figures; -1 where no object qualifies."""
    print(f"{engine.name}: {accuracy.images} images, {accuracy.detections} detections (threshold 0, no NMS)")
    print("  ".join(f"{name} {value:.4f}" for name, value in accuracy.metrics.items()))
    print("AP per class: " + "  ".join(f"{name} {value:.4f}" for name, value in accuracy.per_class.items()))


def print_latency(engine: Path, latency: Latency, machine: dict[str, object]) -> None:
    """Print the table."""
    print(f"{engine.name}, batch {latency.batch}, opened in {latency.opened:.2f} s")
    print(f"{machine['processor']}, {machine['cores']} cores; {machine['packages']}")
    print(f"{'milliseconds per call':<24}" + "".join(f"{column:>9}" for column in COLUMNS))
    for name, row in latency.rows().items():
        print(f"{name:<24}" + "".join(f"{row[column]:>9.2f}" for column in COLUMNS))
    print(f"{latency.throughput:.1f} images per second; the paper's span is infer + decode on prepared input")


def _write_json(arguments: argparse.Namespace, figures: dict[str, object]) -> None:
    """Write `figures` with machine and command to the file of --json, if there is one."""
    if arguments.json is None:
        return
    command = {name: _portable(value) for name, value in vars(arguments).items() if name not in ("json", "engine")}
    machine = describe_machine()
    content = {"schema": SCHEMA, "engine": arguments.engine.name, "command": command, "machine": machine, **figures}
    write_atomically(arguments.json, json.dumps(content, indent=1).encode())


def _portable(value: object) -> object:
    """Return an argument as it may be shown anywhere: paths by their last part alone."""
    if isinstance(value, list):
        return [Path(item).name for item in value]
    return value.name if isinstance(value, Path) else value


if __name__ == "__main__":
    sys.exit(main())
