"""The verbs of `rtdetr-bench`: what each takes, and what it does: build its options, make one call, print, write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtdetr_bench import commands
from rtdetr_bench.machine import describe_machine, describe_state, today
from rtdetr_bench.old_commands import LATENCY, with_verb
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
    ResultOptions,
    RooflineOptions,
)
from rtdetr_bench.parts import add_all_options, build, values_of
from rtdetr_bench.results import SCHEMA, Json, check_outputs, portable, printed_later, shown, write_json
from rtdetr_bench.sweep.options import SweepOptions
from rtdetr_deploy import OptionError, RtdetrError, find_images
from rtdetr_deploy.cli.arguments import Parser
from rtdetr_deploy.files import require_file


@dataclass(frozen=True)
class Verb:
    """What can be asked for: one line of help, the options, which options of results it has, and the work."""

    help: str
    options: type
    results: tuple[str, ...]
    work: Callable[[Any], Json]
    file: str | None = None
    """Where results are written without being asked for: in the folder `output`."""


VERBS: Mapping[str, Verb] = {
    LATENCY: Verb(
        "time models in turn, span by span, RT-DETR and YOLO", LatencyOptions, ("json", "report"), commands.latency
    ),
    "accuracy": Verb("evaluate a model on a COCO json", AccuracyOptions, ("json", "report"), commands.accuracy),
    "ablation": Verb(
        "evaluate and time a checkpoint with fewer layers and queries and in cascades; both resizers, torch and ONNX",
        AblationOptions, ("json", "report"), commands.ablation,
    ),
    "nms": Verb(
        "what NMS costs: boxes left, time and AP by thresholds", NmsStudyOptions, ("json", "report"), commands.nms
    ),
    "decoder": Verb(
        "time a checkpoint with each number of decoder layers", DecoderStudyOptions, ("json", "report"),
        commands.decoder,
    ),
    "encoder": Verb(
        "time the encoders that the paper compares, weights random", EncoderStudyOptions, ("json", "report"),
        commands.encoder,
    ),
    "precision": Verb(
        "what FP16 and INT8 do to a checkpoint's detections", PrecisionStudyOptions, ("json", "report"),
        commands.precision,
    ),
    "pipeline": Verb(
        "time what is around a model, its stream beside the runtime alone, and watch memory", PipelineOptions,
        ("json", "report"), commands.pipeline,
    ),
    "roofline": Verb(
        "estimate what ONNX files cost on a GPU that is not at hand, part by part", RooflineOptions,
        ("json", "report"), commands.roofline,
    ),
    "profile": Verb(
        "where a file's time goes on this processor, and the floor of the machine", ProfileOptions, ("json", "report"),
        commands.profile,
    ),
    "sweep": Verb(
        "what to deploy: export a checkpoint in many ways, time and evaluate them, recommend one", SweepOptions,
        ("report",), commands.sweep, "sweep.json",
    ),
    "report": Verb("make one page of results that were written with --json", ReportOptions, (), commands.report),
    "insert-nms": Verb("write a YOLO with NMS in its graph", InsertNmsOptions, (), commands.insert),
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """A command line: its verb, the options, where results go, and the words as they may be shown anywhere."""

    verb: Verb
    options: Any
    results: ResultOptions
    command: tuple[str, ...]

    def outputs(self) -> dict[str, Path | None]:
        """Return what is written, by the option that names it."""
        output = dict(values_of(self.options)).get("output")
        if self.verb.file is not None and output is not None:
            output = output / self.verb.file
        return {"--json": self.results.json, "--report": self.results.report, "--output": output}

    def inputs(self) -> Iterator[str | Path]:
        """Yield the files that are read, those in folders of images too."""
        for name, value in values_of(self.options):
            items = value if isinstance(value, tuple) else (value,)
            paths = [item for item in items if isinstance(item, Path) and name != "output"]
            yield from (path for path in paths if not path.is_dir())
            if name in ("images", "calibration") and value is not None:
                with suppress(RtdetrError):  # said by whoever needs them
                    yield from find_images(map(str, items))

    def check_inputs(self) -> None:
        """Raise `OptionError` for a file that is not there, `ImageError` for a folder without calibration images."""
        for name, value in values_of(self.options):
            items = value if isinstance(value, tuple) else (value,)
            for path in items:
                if isinstance(path, Path) and name not in ("output", "images") and not path.is_dir():
                    require_file(path, OptionError)
                if name == "calibration" and path is not None:
                    find_images([str(path)])


def run(words: Sequence[str]) -> int:
    """Do what a command line asks for, print it, write results, and return the exit status."""
    request = parse(words)
    outputs, results = request.outputs(), request.results
    exists = any(path is not None and path.exists() for path in outputs.values())
    check_outputs(outputs, request.inputs() if exists else ())
    request.check_inputs()
    if results.report is not None:
        commands.require_plots()
    started = today()
    with printed_later(enabled=results.json is not None or results.report is not None) as print_tables:
        found = request.verb.work(request.options)
    values = dict(values_of(request.options))
    content = {
        "schema": SCHEMA,
        "date": started,
        "command": list(request.command),
        "options": {name: shown(value) for name, value in values.items()},
        "machine": describe_machine(),
        "state": describe_state(values.get("device")),
        **found,
    }
    target = outputs["--output"] if request.verb.file is not None else results.json
    if target is not None and found:
        write_json(target, content)
    if results.report is not None and found:
        commands.write_report(results.report, [content])
    print_tables()
    return 0


def parse(words: Sequence[str]) -> Request:
    """Return what a command line asks for. Raises `OptionError`; exits as argparse does, 2 for unknown options."""
    if not words:
        raise OptionError("nothing to do: name a verb, or --engine MODEL to time it; --help lists the verbs")
    if words[0] in ("-h", "--help", "--version"):
        build_overview().parse_args(words)
    name, *rest = words if not words[0].startswith("-") else with_verb(words)
    verb = VERBS.get(name)
    if verb is None:
        raise OptionError(f"unknown verb {name!r}; choose one of {', '.join(VERBS)}")
    values = vars(build_parser(name).parse_args(rest))
    typed = words if name == LATENCY else (name, *rest)
    return Request(
        verb, build(verb.options, values), build(ResultOptions, values), ("rtdetr-bench", *map(portable, typed))
    )


def build_overview() -> Parser:
    """Return the parser that tells which verbs there are."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items())
    parser = Parser(
        "rtdetr-bench",
        "Measure models where they run: RT-DETR beside others, NMS included where a model needs it.",
        f"verbs:\n{verbs}\n\nrtdetr-bench VERB --help shows a verb's options.",
    )
    parser.usage = f"rtdetr-bench VERB [options]\n       rtdetr-bench --engine MODEL [options]   (the verb {LATENCY})"
    return parser


def build_parser(name: str) -> Parser:
    """Return the parser of a verb."""
    verb = VERBS[name]
    parser = Parser(f"rtdetr-bench {name}", f"{verb.help[0].upper()}{verb.help[1:]}.")
    add_all_options(parser, verb.options)
    if verb.results:
        add_all_options(parser, ResultOptions, verb.results)
    return parser
