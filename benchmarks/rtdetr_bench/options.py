"""The options of `rtdetr-bench`, and which of them each thing takes that can be asked for."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from rtdetr_bench.models.nms import Method
from rtdetr_bench.tools.insert_nms import KINDS
from rtdetr_deploy import OptionError
from rtdetr_deploy.cli.arguments import flag, parse_given, path_argument
from rtdetr_deploy.images.preprocess import RESIZERS

MEASURING = frozenset({"runs", "duration", "warmup", "pause"})
RUNNING = frozenset({"resizer", "size", "threads"})
RESULTS = frozenset({"json", "report"})
VERBS: Mapping[str, frozenset[str]] = {
    "engine": MEASURING | RUNNING | RESULTS | {"against", "images", "annotations", "batch", "confidence", "iou", "nms"},
    "nms_study": RUNNING | RESULTS | {"engine", "images", "annotations"},
    "decoder_study": MEASURING | RUNNING | RESULTS | {"images", "annotations", "confidence"},
    "encoder_study": MEASURING | RUNNING | RESULTS | {"encoders", "confidence"},
    "accuracy": RUNNING | {"engine", "images", "json"},
    "study": frozenset({"accuracy", "engine", "images", "size", "threads", "json"}),
    "insert_nms": frozenset({"output", "nms_kind", "confidence", "iou", "size"}),
    "combine": frozenset({"report"}),
}
"""What can be asked for, and the options that it takes; any other option is an error, never ignored."""
ALONE = ("insert_nms", "combine", "study", "accuracy")
"""What can't be asked for together with anything else."""
NOT_TIMED = {
    "accuracy": "; with --annotations instead of --accuracy models are timed and evaluated at once",
    "nms_study": "; with --nms-study, --engine is shown beside the YOLO and not timed",
}


@dataclass(frozen=True)
class Request:
    """A command line: every option's value, and the names of those that were typed."""

    arguments: argparse.Namespace
    given: tuple[str, ...]

    @property
    def verbs(self) -> tuple[str, ...]:
        """What is asked for: one of `ALONE`, or studies and the timing of --engine."""
        for verb in ALONE:
            if verb in self.given:
                return (verb,)
        beside = "nms_study" in self.given  # there --engine is what the YOLO is shown with
        return tuple(verb for verb in VERBS if verb in self.given and not (verb == "engine" and beside))

    def check(self) -> None:
        """Raise `OptionError` when nothing is asked for, or an option was typed that would be ignored."""
        if not self.verbs:
            raise OptionError("nothing to do: give --engine MODEL, a study, or --help")
        taken = frozenset(self.verbs).union(*(VERBS[verb] for verb in self.verbs))
        for name in self.given:
            if name not in taken:
                hint = NOT_TIMED.get(self.verbs[0], "") if name in VERBS["engine"] else ""
                told = f"{flag(name)} does not apply to {_listed(self.verbs, 'and')}"
                raise OptionError(f"{told}; {_advice(name)}{hint}")
        if {"runs", "duration"} <= set(self.given):
            raise OptionError("--runs and --duration both say how long to measure; leave one of them out")

    def command(self) -> list[str]:
        """Return the command as it may be shown anywhere: paths by their last part alone."""
        words = ["rtdetr-bench"]
        for name in self.given:
            values = getattr(self.arguments, name)
            if name in ("against", "images"):  # options that are repeated
                words += [word for value in values for word in (flag(name), _portable(value))]
            else:
                words += [flag(name), *_words(values)]
        return words

    def values(self) -> dict[str, object]:
        """Return the values, typed or not, of the options that apply, paths by their last part alone."""
        taken = frozenset(self.verbs).union(*(VERBS[verb] for verb in self.verbs)) - RESULTS
        return {name: _shown(value) for name, value in vars(self.arguments).items() if name in taken}


def parse(argv: Sequence[str] | None = None) -> Request:
    """Return what the command line asks for, not checked yet."""
    return Request(*parse_given(build_parser(), argv))


def _listed(names: Sequence[str], word: str) -> str:
    *first, last = map(flag, names)
    return f"{', '.join(first)} {word} {last}" if first else last


def _advice(name: str) -> str:
    owners = [verb for verb, options in VERBS.items() if name in options]
    if name in VERBS or not owners:
        return "ask for one after the other"
    return f"it is an option of {_listed(owners, 'or')}"


def _words(value: object) -> Iterator[str]:
    if value is True:
        return
    yield from map(_portable, value if isinstance(value, list) else [value])


def _portable(value: object) -> str:
    """Return an argument as text; of a path, or a pattern of paths, its last part."""
    text = str(value)
    return Path(text).name or text


def _shown(value: object) -> object:
    if isinstance(value, list):
        return [_portable(item) for item in value]
    return value.name if isinstance(value, Path) else value


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `rtdetr-bench`."""
    parser = argparse.ArgumentParser(
        prog="rtdetr-bench",
        description="Measure models where they run: RT-DETR beside others, NMS included where a model needs it.",
    )
    add = parser.add_argument
    add("--engine", type=path_argument, metavar="MODEL", help="model file or checkpoint to time, or to evaluate")
    add(
        "--against", type=path_argument, action="append", default=[], metavar="MODEL",
        help="model timed in turn with it, RT-DETR or YOLO (may be repeated)",
    )  # fmt: skip
    add("--images", action="append", default=[], metavar="PATH", help="image, folder or glob (default: synthetic 720p)")
    add("--annotations", type=path_argument, metavar="JSON", help="COCO json: also AP; --images names the folder")
    _add_studies(parser.add_argument_group("studies"))
    _add_accuracy(parser.add_argument_group("accuracy alone"))
    _add_measuring(parser.add_argument_group("how to measure"))
    _add_models(parser.add_argument_group("how models are run"))
    group = parser.add_argument_group("results")
    group.add_argument(
        "--json", type=path_argument, metavar="FILE", help="write date, command, machine and every sample"
    )
    group.add_argument("--report", type=path_argument, metavar="FILE", help="write a page with plots, in one HTML file")
    group.add_argument(
        "--combine",
        type=path_argument,
        nargs="+",
        metavar="JSON",
        help="make the report of these results instead of measuring",
    )
    return parser


def _add_studies(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--nms-study", type=path_argument, metavar="YOLO",
        help="boxes left, NMS time and (with --annotations) AP by threshold; --engine is shown beside it",
    )  # fmt: skip
    add("--decoder-study", type=path_argument, metavar="WEIGHTS", help="time a checkpoint with 1 to n decoder layers")
    add(
        "--encoder-study", nargs="?", const="r50", metavar="VARIANT",
        help="time the encoders that the paper compares, weights random (default: r50)",
    )  # fmt: skip
    add(
        "--encoders", default="A,B,C,D,D_S5,E", metavar="NAMES",
        help="encoders that the study times (default: %(default)s)",
    )  # fmt: skip
    add("--insert-nms", type=path_argument, metavar="YOLO", help="write a copy with NMS in its graph to --output")
    add(
        "--nms-kind", choices=KINDS, default=KINDS[0],
        help="NMS that is inserted: the standard operator, or EfficientNMS_TRT for TensorRT (default: %(default)s)",
    )  # fmt: skip
    add("--output", type=path_argument, metavar="FILE", help="file that --insert-nms writes")


def _add_accuracy(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--accuracy", type=path_argument, metavar="JSON", help="evaluate --engine on this COCO json, untimed"
    )
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
    add(
        "--resizer", choices=RESIZERS, default=RESIZERS[0],
        help="library that resizes images for RT-DETR (default: %(default)s)",
    )  # fmt: skip
    add(
        "--size", metavar="SIZE",
        help="input of checkpoints (default: what they name, else 640) and of models that leave it open",
    )  # fmt: skip
    add("--threads", type=int, metavar="N", help="threads of the engine (default: the engine decides)")
    add(
        "--confidence", type=float, default=0.001, metavar="X",
        help="score threshold of all models (default: %(default)s)",
    )  # fmt: skip
    add("--iou", type=float, default=0.7, metavar="X", help="IoU threshold of NMS (default: %(default)s)")
    add(
        "--nms", choices=get_args(Method), default="cv2",
        help="implementation of NMS outside the graph (default: %(default)s)",
    )  # fmt: skip
