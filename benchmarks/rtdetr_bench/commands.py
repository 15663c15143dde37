"""What `rtdetr-bench` does for each thing that can be asked for: measure, print, write."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rtdetr_bench.accuracy import evaluate
from rtdetr_bench.comparison import compare_models, format_comparison, parse_batches
from rtdetr_bench.machine import describe_machine, describe_state, machine_text, today
from rtdetr_bench.models.contestants import Entry
from rtdetr_bench.models.nms import NmsOptions
from rtdetr_bench.options import Request
from rtdetr_bench.report.page import SCHEMA, combine_results, require_plots, write_report
from rtdetr_bench.studies.accuracy import format_study, study_accuracy
from rtdetr_bench.studies.decoder import format_decoder, format_encoders, study_decoder, study_encoders
from rtdetr_bench.studies.nms import format_nms, study_nms
from rtdetr_bench.timing import Plan
from rtdetr_bench.tools.insert_nms import insert_nms
from rtdetr_deploy import OptionError, RtdetrError, find_images
from rtdetr_deploy.cli.arguments import parse_size
from rtdetr_deploy.evaluate.coco import Accuracy
from rtdetr_deploy.files import check_writable, refuse_overwriting, write_bytes
from rtdetr_deploy.words import plural, printable

OUTPUTS = {"--json": "json", "--report": "report", "--output": "output"}
INPUTS = ("engine", "annotations", "accuracy", "nms_study", "decoder_study", "insert_nms")


def run(request: Request) -> int:
    """Do what is asked for, print it, and return the exit status."""
    request.check()
    arguments = request.arguments
    _check_outputs(arguments)
    for verb, work in {"insert_nms": _insert, "combine": _combine}.items():
        if request.verbs == (verb,):
            return work(arguments)
    started = today()
    results: dict[str, Any] = {}
    with _printed_later(enabled=arguments.json is not None or arguments.report is not None) as print_tables:
        for verb in request.verbs:
            results |= WORK[verb](arguments)
    content = {
        "schema": SCHEMA,
        "date": started,
        "command": request.command(),
        "options": request.values(),
        "machine": describe_machine(),
        "state": describe_state(),
        **results,
    }
    if arguments.json is not None:
        write_bytes(arguments.json, f"{json.dumps(content, indent=1)}\n".encode())
    if arguments.report is not None:
        write_report(arguments.report, [content])
    print_tables()
    return 0


@contextmanager
def _printed_later(*, enabled: bool) -> Iterator[Callable[[], None]]:
    """Hold back what is printed until results are written: a pager that was closed must not cost a measurement.

    Yields what prints it; after an error in the block it is printed at once.
    """
    tables = io.StringIO()

    def print_tables() -> None:
        print(tables.getvalue(), end="")

    try:
        with redirect_stdout(tables) if enabled else nullcontext():
            yield print_tables
    except BaseException:
        print_tables()
        raise


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Raise before any work what would stop it in the end: results over inputs, folders that can't be written."""
    outputs: Mapping[str, Path | None] = {typed: getattr(arguments, name) for typed, name in OUTPUTS.items()}
    paths = [path for path in outputs.values() if path is not None]
    inputs = [path for name in INPUTS if (path := getattr(arguments, name)) is not None]
    inputs += [*arguments.against, *(arguments.combine or ())]
    if any(path.exists() for path in paths):
        with suppress(RtdetrError):  # said by whoever needs them
            inputs += find_images(arguments.images)
    refuse_overwriting(outputs, inputs)
    for path in paths:
        check_writable(path)
    if arguments.report is not None:
        require_plots()


def _compare(arguments: argparse.Namespace) -> dict[str, Any]:
    plan, folder = _plan(arguments), _folder(arguments)
    paths = [arguments.engine, *arguments.against]
    batches = () if arguments.batch is None else parse_batches(arguments.batch)
    rounds = plan.runs * max(1, len(batches)) if plan.duration is None else None
    with tqdm(total=rounds, unit="round", leave=False, disable=not sys.stderr.isatty()) as bar:
        comparison = compare_models(
            paths,
            plan,
            _entry(arguments),
            batches=batches,
            images=find_images(arguments.images),
            annotations=arguments.annotations,
            folder=folder,
            on_round=bar.update,
        )
    print(machine_text(describe_machine(), arguments.threads))
    print(format_comparison(comparison))
    return {"comparison": comparison.to_json()}


def _nms(arguments: argparse.Namespace) -> dict[str, Any]:
    with tqdm(unit="image", leave=False, disable=not sys.stderr.isatty()) as bar:
        study = study_nms(
            arguments.nms_study,
            find_images(arguments.images),
            detr=arguments.engine,
            annotations=arguments.annotations,
            folder=_folder(arguments),
            entry=_entry(arguments),
            on_image=bar.update,
        )
    print(format_nms(study))
    return {"nms": study.to_json()}


def _decoder(arguments: argparse.Namespace) -> dict[str, Any]:
    rows = study_decoder(
        arguments.decoder_study,
        _plan(arguments),
        _entry(arguments),
        annotations=arguments.annotations,
        folder=_folder(arguments),
        images=find_images(arguments.images),
        on_step=_say,
    )
    print(format_decoder(rows))
    figures = {"weights": arguments.decoder_study.name, "rounds": rows[0].rounds}
    return {"decoder": {**figures, "rows": [row.to_json() for row in rows]}}


def _encoder(arguments: argparse.Namespace) -> dict[str, Any]:
    names = [name.strip() for name in arguments.encoders.split(",") if name.strip()]
    rows = study_encoders(arguments.encoder_study, _plan(arguments), _entry(arguments), names=names, on_step=_say)
    print(format_encoders(rows))
    figures = {"variant": arguments.encoder_study, "rounds": rows[0].rounds}
    return {"encoder": {**figures, "rows": [row.to_json() for row in rows]}}


def _insert(arguments: argparse.Namespace) -> int:
    if arguments.output is None:
        raise OptionError("--insert-nms needs --output with the file to write")
    entry = _entry(arguments)
    insert_nms(arguments.insert_nms, arguments.output, entry.nms, arguments.nms_kind, entry.size)
    print(f"wrote {printable(arguments.output)} with NMS at confidence {arguments.confidence:g}, IoU {arguments.iou:g}")
    return 0


def _combine(arguments: argparse.Namespace) -> int:
    if arguments.report is None:
        raise OptionError("--combine needs --report with the page to write")
    combine_results(arguments.report, arguments.combine)
    print(f"wrote {printable(arguments.report)}")
    return 0


def _accuracy(arguments: argparse.Namespace) -> dict[str, Any]:
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
    print(f"resized with {arguments.resizer}" + ("" if arguments.size is None else f" to {arguments.size}"))
    return {
        "engine": arguments.engine.name,
        "annotations": arguments.accuracy.name,
        "resizer": arguments.resizer,
        "images": accuracy.images,
        "detections": accuracy.detections,
        "metrics": accuracy.metrics,
        "per_class": accuracy.per_class,
    }


def _study(arguments: argparse.Namespace) -> dict[str, Any]:
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
    return {
        "engine": arguments.engine.name,
        "annotations": arguments.accuracy.name,
        "images": rows[0].accuracy.images,
        "rows": [row.to_json() for row in rows],
    }


def _plan(arguments: argparse.Namespace) -> Plan:
    return Plan(arguments.runs, arguments.duration, arguments.warmup, arguments.pause)


def _entry(arguments: argparse.Namespace) -> Entry:
    nms = NmsOptions(arguments.confidence, arguments.iou, method=arguments.nms)
    return Entry(nms, _size(arguments), arguments.resizer, arguments.threads)


def _folder(arguments: argparse.Namespace) -> Path | None:
    """Return the folder of the annotations' images; None without annotations."""
    return None if arguments.annotations is None else _image_folder(arguments, "--annotations")


def _image_folder(arguments: argparse.Namespace, option: str = "--accuracy") -> Path:
    if arguments.engine is None and option == "--accuracy":
        raise OptionError("--accuracy needs --engine with the model to evaluate")
    if len(arguments.images) != 1:
        raise OptionError(f"{option} needs --images with the folder of the json's images")
    return Path(arguments.images[0])


@contextmanager
def _image_bar() -> Iterator[Callable[[int], None]]:
    """Show a progress bar; the function is called with the number of all images after each of them."""
    with tqdm(unit="image", leave=False, disable=not sys.stderr.isatty()) as bar:

        def on_image(total: int) -> None:
            bar.total = total
            bar.update()

        yield on_image


def _say(step: str) -> None:
    """Show a step on a terminal."""
    if sys.stderr.isatty():
        print(f"{step} ...", file=sys.stderr)


def _size(arguments: argparse.Namespace) -> tuple[int, int] | None:
    return None if arguments.size is None else parse_size(arguments.size)


def print_accuracy(engine: Path, accuracy: Accuracy) -> None:
    """Print COCO's figures; -1 where no object qualifies."""
    counts = f"{plural(accuracy.images, 'image')}, {plural(accuracy.detections, 'detection')}"
    print(f"{printable(engine.name)}: {counts} (threshold 0, no NMS)")
    print("  ".join(f"{name} {value:.4f}" for name, value in accuracy.metrics.items()))
    values = (f"{printable(name)} {value:.4f}" for name, value in accuracy.per_class.items())
    print("AP per class: " + "  ".join(values))


WORK: Mapping[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "engine": _compare,
    "nms_study": _nms,
    "decoder_study": _decoder,
    "encoder_study": _encoder,
    "accuracy": _accuracy,
    "study": _study,
}
"""What measures; each prints a table and returns figures for the JSON."""
