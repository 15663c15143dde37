"""rtdetr-bench: how fast models run on this machine, beside each other, with everything that belongs to detection."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from tqdm import tqdm

from rtdetr_bench.accuracy import evaluate
from rtdetr_bench.accuracy_study import format_study, study_accuracy
from rtdetr_bench.comparison import compare_models, format_comparison, parse_batches
from rtdetr_bench.contestants import Entry
from rtdetr_bench.decoder_study import format_decoder, format_encoders, study_decoder, study_encoders
from rtdetr_bench.insert_nms import KINDS, insert_nms
from rtdetr_bench.latency import Plan
from rtdetr_bench.machine import describe_machine, describe_state, usable_cores
from rtdetr_bench.nms import Method, NmsOptions
from rtdetr_bench.nms_study import format_nms, study_nms
from rtdetr_bench.report import read_results, write_report
from rtdetr_deploy import OptionError, find_images
from rtdetr_deploy.arguments import parse_size
from rtdetr_deploy.coco import Accuracy
from rtdetr_deploy.command import run_command
from rtdetr_deploy.files import write_atomically
from rtdetr_deploy.preprocess import RESIZERS

SCHEMA = 2
WORK = ("engine", "nms_study", "decoder_study", "encoder_study", "insert_nms", "combine")
"""Options that say what is to be done; one at least."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `rtdetr-bench`."""
    parser = argparse.ArgumentParser(
        prog="rtdetr-bench",
        description="Measure models where they run: RT-DETR beside others, NMS included where a model needs it.",
    )
    add = parser.add_argument
    add("--engine", type=Path, metavar="MODEL", help="model file or checkpoint to time, or to evaluate")
    add(
        "--against", type=Path, action="append", default=[], metavar="MODEL",
        help="model timed in turn with it, RT-DETR or YOLO (may be repeated)",
    )  # fmt: skip
    add("--images", action="append", default=[], metavar="PATH", help="image, folder or glob (default: synthetic 720p)")
    add("--annotations", type=Path, metavar="JSON", help="COCO json: also AP; --images names the folder")
    _add_studies(parser.add_argument_group("studies"))
    _add_accuracy(parser.add_argument_group("accuracy alone"))
    _add_measuring(parser.add_argument_group("how to measure"))
    _add_models(parser.add_argument_group("how models are run"))
    group = parser.add_argument_group("results")
    group.add_argument("--json", type=Path, metavar="FILE", help="write machine, versions and every sample")
    group.add_argument("--report", type=Path, metavar="FILE", help="write a page with plots, in one HTML file")
    group.add_argument(
        "--combine", type=Path, nargs="+", metavar="JSON", help="make the report of these results instead of measuring"
    )
    return parser


def _add_studies(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--nms-study", type=Path, metavar="YOLO",
        help="boxes left, NMS time and (with --annotations) AP by threshold; --engine is shown beside it",
    )  # fmt: skip
    add("--decoder-study", type=Path, metavar="WEIGHTS", help="time a checkpoint with 1 to n decoder layers")
    add(
        "--encoder-study", nargs="?", const="r50", metavar="VARIANT",
        help="time the encoders that the paper compares, weights random (default: r50)",
    )  # fmt: skip
    add("--encoders", default="A,B,C,D,D_S5,E", metavar="NAMES", help="of these (default: %(default)s)")
    add("--insert-nms", type=Path, metavar="YOLO", help="write a copy with NMS in its graph to --output")
    add("--nms-kind", choices=KINDS, default=KINDS[0], help="standard operator, or EfficientNMS_TRT for TensorRT")
    add("--output", type=Path, metavar="FILE", help="file of --insert-nms")


def _add_accuracy(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--accuracy", type=Path, metavar="JSON", help="evaluate --engine on this COCO json, untimed")
    group.add_argument(
        "--study",
        action="store_true",
        help="with --accuracy and a checkpoint: repeat with fewer layers and queries, both resizers, in torch and ONNX",
    )


def _add_measuring(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--batch", metavar="N[,N]", help="images per call (default: what the first model takes, else 1)")
    add("--runs", type=int, default=100, metavar="N", help="measured rounds (default: %(default)s)")
    add("--duration", type=float, metavar="SECONDS", help="measure for this long instead, at least 3 rounds")
    add("--warmup", type=int, metavar="N", help="calls before measuring (default: until times are stable)")
    add("--pause", type=float, default=0.0, metavar="SECONDS", help="sleep between rounds, for machines that get hot")


def _add_models(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--resizer", choices=RESIZERS, default=RESIZERS[0], help="RT-DETR: who resizes (default: %(default)s)")
    add(
        "--size", metavar="SIZE",
        help="input of checkpoints (default: what they name, else 640) and of models that leave it open",
    )  # fmt: skip
    add("--threads", type=int, metavar="N", help="threads of the engine (default: the engine decides)")
    add("--confidence", type=float, default=0.001, metavar="X", help="score threshold of all models (%(default)s)")
    add("--iou", type=float, default=0.7, metavar="X", help="IoU threshold of NMS (default: %(default)s)")
    add("--nms", choices=get_args(Method), default="cv2", help="who suppresses boxes (default: %(default)s)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (0 done, 2 wrong input, 130 interrupted)."""
    arguments = build_parser().parse_args(argv)
    return run_command("rtdetr-bench", lambda: _run(arguments), "nothing was measured")


def _run(arguments: argparse.Namespace) -> int:
    if not any(getattr(arguments, name) for name in WORK):
        raise OptionError("nothing to do: give --engine MODEL, a study, or --help")
    if arguments.insert_nms is not None:
        return _insert(arguments)
    if arguments.combine:
        return _combine(arguments)
    _check_combination(arguments)
    if arguments.accuracy is not None or arguments.study:
        return _study(arguments) if arguments.study else _accuracy(arguments)
    results: dict[str, Any] = {"state": describe_state()}
    if arguments.engine is not None and arguments.nms_study is None:
        results["comparison"] = _compare(arguments)
    for name, work in (("nms", _nms), ("decoder", _decoder), ("encoder", _encoder)):
        if getattr(arguments, f"{name}_study") is not None:
            results[name] = work(arguments)
    content = _write_json(arguments, results)
    if arguments.report is not None:
        write_report(arguments.report, [content])
    return 0


def _check_combination(arguments: argparse.Namespace) -> None:
    """Raise `OptionError` for options that would be ignored."""
    studies = [name for name in ("nms_study", "decoder_study", "encoder_study") if getattr(arguments, name)]
    compared = arguments.engine is not None and arguments.nms_study is None
    untimed = arguments.accuracy is not None or arguments.study
    for wrong, message in (
        (arguments.against and not compared, "--against needs --engine, and no --nms-study"),
        (arguments.batch and not compared, "--batch is for --engine and --against; studies run one image at a time"),
        (untimed and studies, "--accuracy and --study stand alone; leave the other studies out"),
        (untimed and arguments.report, "--report shows what was timed; say --annotations instead of --accuracy"),
        (untimed and arguments.against, "--accuracy evaluates --engine alone; for several models say --annotations"),
    ):
        if wrong:
            raise OptionError(message)


def _compare(arguments: argparse.Namespace) -> dict[str, Any]:
    plan, folder = _plan(arguments), _folder(arguments)
    paths = [arguments.engine, *arguments.against]
    batches = parse_batches(arguments.batch) if arguments.batch else ()
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
    machine = describe_machine()
    threads = arguments.threads or "the engine's choice of"
    print(f"{machine['processor']}, cores {usable_cores()}, {threads} threads; {machine['packages']}")
    print(format_comparison(comparison))
    return comparison.to_json()


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
    return study.to_json()


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
    return {"weights": arguments.decoder_study.name, "rows": [row.to_json() for row in rows]}


def _encoder(arguments: argparse.Namespace) -> dict[str, Any]:
    names = [name.strip() for name in arguments.encoders.split(",") if name.strip()]
    rows = study_encoders(arguments.encoder_study, _plan(arguments), _entry(arguments), names=names, on_step=_say)
    print(format_encoders(rows))
    return {"variant": arguments.encoder_study, "rows": [row.to_json() for row in rows]}


def _insert(arguments: argparse.Namespace) -> int:
    if arguments.output is None:
        raise OptionError("--insert-nms needs --output with the file to write")
    insert_nms(arguments.insert_nms, arguments.output, _entry(arguments).nms, arguments.nms_kind)
    print(f"wrote {arguments.output} with NMS at confidence {arguments.confidence:g}, IoU {arguments.iou:g}")
    return 0


def _combine(arguments: argparse.Namespace) -> int:
    if arguments.report is None:
        raise OptionError("--combine needs --report with the page to write")
    write_report(arguments.report, [read_results(path) for path in arguments.combine])
    print(f"wrote {arguments.report}")
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
    return parse_size(arguments.size) if arguments.size else None


def print_accuracy(engine: Path, accuracy: Accuracy) -> None:
    """Print COCO's figures; -1 where no object qualifies."""
    print(f"{engine.name}: {accuracy.images} images, {accuracy.detections} detections (threshold 0, no NMS)")
    print("  ".join(f"{name} {value:.4f}" for name, value in accuracy.metrics.items()))
    print("AP per class: " + "  ".join(f"{name} {value:.4f}" for name, value in accuracy.per_class.items()))


def _write_json(arguments: argparse.Namespace, figures: dict[str, Any]) -> dict[str, Any]:
    """Return `figures` with machine and command; write them to the file of --json, if there is one."""
    hidden = ("json", "report", "engine", "combine")
    command = {name: _portable(value) for name, value in vars(arguments).items() if name not in hidden}
    engine = None if arguments.engine is None else arguments.engine.name
    machine = {**describe_machine(), "affinity": usable_cores()}
    content = {"schema": SCHEMA, "engine": engine, "command": command, "machine": machine, **figures}
    if arguments.json is not None:
        write_atomically(arguments.json, json.dumps(content, indent=1).encode())
    return content


def _portable(value: object) -> object:
    """Return an argument as it may be shown anywhere: paths by their last part alone."""
    if isinstance(value, list):
        return [Path(item).name for item in value]
    return value.name if isinstance(value, Path) else value


if __name__ == "__main__":
    sys.exit(main())
