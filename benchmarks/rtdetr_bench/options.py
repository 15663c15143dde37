"""What each study is asked for: one frozen dataclass per study, made of parts that several of them share.

`rtdetr-bench VERB` makes its command line options of these fields and hands the object to the study's Python call, so
that both say the same.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from rtdetr_bench.models.contestant import Contestant, contestant_argument
from rtdetr_bench.models.nms import NmsOptions
from rtdetr_bench.parts import part
from rtdetr_bench.scenarios.results import SCENARIOS
from rtdetr_deploy import OptionError, find_images
from rtdetr_deploy.artifacts.cascade import Cascade
from rtdetr_deploy.evaluate.coco import Annotations, read_annotations, require_evaluator
from rtdetr_deploy.evaluate.published import ENCODERS
from rtdetr_deploy.images.preprocess import RESIZERS, Resizer
from rtdetr_deploy.options import cascade_argument, option, path_argument, size_argument
from rtdetr_deploy.runtimes import RUNTIMES, RuntimeOptions, choose_runtime

MAX_BATCH = 1024
MAX_RUNS = 1_000_000
MAX_SECONDS = 86_400
"""Seconds of a day: more rounds, or a longer measurement or pause, are taken for typing errors."""
RUNS = 100
NmsKind = Literal["onnx", "tensorrt"]
Target = Literal["cpu", "tensorrt"]
PROFILED = ("onnxruntime", "openvino")
NMS_KINDS: tuple[NmsKind, ...] = ("onnx", "tensorrt")


@dataclass(frozen=True)
class TimingOptions:
    """How long to measure: `runs` rounds (100), or as many as begin within `duration` seconds, at least 3.

    `warmup` is a number of calls, or None: until two windows of 3 calls differ by less than 5 %, at most 40 calls.
    `pause` is slept between rounds, in seconds, for machines that get hot.
    """

    title: ClassVar[str] = "how to measure"

    runs: int | None = option(
        None, "measured rounds; not with --duration", type=int, metavar="N", default_help=str(RUNS)
    )
    duration: float | None = option(
        None, "measure for this long instead, at least 3 rounds; not with --runs", type=float, metavar="SECONDS"
    )
    warmup: int | None = option(
        None, "calls before measuring", type=int, metavar="N", default_help="until times are stable"
    )
    pause: float = option(0.0, "sleep between rounds, for machines that get hot", type=float, metavar="SECONDS")

    def __post_init__(self) -> None:
        for name, value in (("runs", self.runs), ("warmup", self.warmup)):
            if value is not None and not 1 <= value <= MAX_RUNS:
                raise OptionError(f"`{name}` is {value}, expected a number from 1 to {MAX_RUNS}")
        if self.duration is not None and not 0 < self.duration <= MAX_SECONDS:
            raise OptionError(f"`duration` is {self.duration}, expected seconds above 0 and up to {MAX_SECONDS}")
        if not 0 <= self.pause <= MAX_SECONDS:
            raise OptionError(f"`pause` is {self.pause}, expected seconds from 0 to {MAX_SECONDS}")
        if self.runs is not None and self.duration is not None:
            raise OptionError("`runs` and `duration` both say how long to measure; leave one of them out")

    @property
    def rounds(self) -> int | None:
        """How many rounds are measured; None where `duration` decides."""
        return None if self.duration is not None else self.runs or RUNS


@dataclass(frozen=True)
class RunOptions:
    """How models are opened and run, the same for all of them: arguments of `Predictor`, and thresholds.

    `size` (height, width) is the input of checkpoints and of models that leave it open. `runtime` None is the
    default of each file. `where` says on which device and with how many threads.
    """

    title: ClassVar[str] = "how models are run"

    nms: NmsOptions = part(NmsOptions)
    size: tuple[int, int] | None = option(
        None,
        "input of checkpoints (default: what they name, else 640) and of models that leave it open: 640 or "
        "HEIGHTxWIDTH",
        type=size_argument,
        metavar="SIZE",
    )
    resizer: Resizer = option(
        RESIZERS[0], "library that resizes images for RT-DETR; cuda: on the GPU, for engines", choices=RESIZERS
    )
    runtime: str | None = option(
        None,
        "runtime of the models that it opens",
        choices=tuple(RUNTIMES),
        default_help="what is best for each, see docs/files.md",
    )
    where: RuntimeOptions = part(RuntimeOptions)

    def __post_init__(self) -> None:
        if self.runtime is not None and self.runtime not in RUNTIMES:
            raise OptionError(f"`runtime` is {self.runtime!r}, expected one of {', '.join(RUNTIMES)}")

    def runtime_of(self, path: Path) -> str | None:
        """Return the name of what opens the model file or checkpoint `path`: `runtime` if it can, else the default.

        None where no runtime has the suffix.
        """
        if self.runtime is not None and RUNTIMES[self.runtime].opens(path):
            return self.runtime
        found = [name for name, known in RUNTIMES.items() if known.opens(path)]
        if len(found) > 1 and path.is_file():
            return choose_runtime(path, self.where)
        return found[0] if found else None

    def check_runtime(self, paths: Sequence[Path]) -> None:
        """Raise `OptionError` for a `runtime` that opens none of the models: it would be ignored.

        `paths` are those of models that don't name a runtime of their own.
        """
        if self.runtime is not None and not paths:
            raise OptionError(f'`runtime="{self.runtime}"` would be ignored: every model names its own; leave it out')
        if self.runtime is not None and not any(RUNTIMES[self.runtime].opens(path) for path in paths):
            names = ", ".join(path.name for path in paths)
            known = ", ".join(RUNTIMES[self.runtime].suffixes)
            raise OptionError(f'`runtime="{self.runtime}"` opens {known}, and none of {names}; leave it out')


OPENED = ("size", "resizer", "runtime", "device", "threads", "precision", "hint", "slots", "cache")
"""Options of `RunOptions` for studies that set the thresholds themselves."""

PIPELINE_RUN = (*OPENED, "spinning", "blocking_sync")
"""All that says how a model is opened."""


@dataclass(frozen=True)
class EvaluationSet:
    """A COCO json, and the folder of its images, for AP."""

    annotations: Path = option(help="COCO json", type=path_argument, metavar="JSON")
    images: Path = option(help="folder of its images", type=path_argument, metavar="DIR")

    def read(self, class_names: Sequence[str]) -> Annotations:
        """Return the annotations for a model with these classes.

        Raises `OptionError` when annotations, images or classes don't fit, `MissingPackageError` without an evaluator.
        """
        require_evaluator()
        return read_annotations(self.annotations, self.images, class_names)


@dataclass(frozen=True)
class ImageOptions:
    """The images that models are shown (none: a synthetic one), and a COCO json whose folder they are."""

    images: tuple[str | Path, ...] = option(
        (), "image, folder or glob (may be repeated; default: synthetic 720p)", metavar="PATH", repeated=True
    )
    annotations: Path | None = option(
        None,
        "COCO json, whose images are the folder given with --images: measure AP too",
        type=path_argument,
        metavar="JSON",
    )

    def __post_init__(self) -> None:
        if self.annotations is not None and len(self.images) != 1:
            raise OptionError("`annotations` needs `images` with the folder of the json's images")

    @property
    def evaluation(self) -> EvaluationSet | None:
        """The annotations and their folder; None without annotations."""
        return None if self.annotations is None else EvaluationSet(self.annotations, Path(self.images[0]))

    def find(self) -> list[Path]:
        """Return the image files. Raises `OptionError` for a path that is missing or holds none."""
        return find_images([str(path) for path in self.images])


def check_batches(batches: Sequence[int]) -> tuple[int, ...]:
    """Return the batches. Raises `OptionError` unless they are different numbers from 1 to `MAX_BATCH`."""
    if any(not 1 <= batch <= MAX_BATCH for batch in batches) or len(set(batches)) < len(batches):
        raise OptionError(
            f"`batch` is {','.join(map(str, batches))}, expected different numbers from 1 to {MAX_BATCH}, like 1,4,8"
        )
    return tuple(batches)


def batches_argument(text: str) -> tuple[int, ...]:
    """Return the batches in "1,4,8", for argparse."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ArgumentTypeError(
            f"{text!r} is not understood; expected different numbers from 1 to {MAX_BATCH}, like 1,4,8"
        ) from None


def scenarios_argument(text: str) -> tuple[str, ...]:
    """Return the scenarios in "single-stream,offline", for argparse."""
    try:
        return check_scenarios(names_argument(text))
    except OptionError as error:
        raise ArgumentTypeError(str(error)) from None


def check_scenarios(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names. Raises `OptionError` unless they are different ones of `SCENARIOS`."""
    if len(set(names)) < len(names) or not set(names) <= set(SCENARIOS):
        raise OptionError(f"`scenario` is {','.join(names)!r}, expected different ones of {', '.join(SCENARIOS)}")
    return tuple(names)


def names_argument(text: str) -> tuple[str, ...]:
    """Return the names in "A,B"."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


@dataclass(frozen=True)
class LatencyOptions:
    """Models timed in turn: `engine` first, to which the others, `against`, are compared.

    Each is a path, or a `Contestant` (or its text) with a runtime of its own, which goes before `run`'s.
    `batch` are the numbers of images per call; empty: what the first model takes, else 1. `scenario` are those of
    MLPerf inference that are measured too, each with as many queries as there are rounds ("offline": with one query, of
    as many batches).
    """

    engine: Contestant | Path | str = option(
        help="model file or checkpoint to time; FILE@RUNTIME[,SETTING=VALUE ...] for a runtime of its own, e.g. "
        "r18.onnx@openvino,threads=1",
        type=contestant_argument, metavar="MODEL",
    )  # fmt: skip
    against: tuple[Contestant | Path | str, ...] = option(
        (), "model timed in turn with it, RT-DETR or YOLO, named as --engine is (may be repeated)",
        type=contestant_argument, metavar="MODEL", repeated=True,
    )  # fmt: skip
    batch: tuple[int, ...] = option(
        (), "images per call (default: what the first model takes, else 1)", type=batches_argument, metavar="N[,N]"
    )
    images: ImageOptions = part(ImageOptions)
    timing: TimingOptions = part(TimingOptions)
    run: RunOptions = part(RunOptions)
    scenario: tuple[str, ...] = option(
        (), f"MLPerf's scenarios to measure too: {', '.join(SCENARIOS)}; each asks --runs queries (offline: one, of "
        "--runs batches), or for --duration",
        type=scenarios_argument, metavar="NAME[,NAME]",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_batches(self.batch)
        check_scenarios(self.scenario)

    @property
    def models(self) -> tuple[Contestant, ...]:
        """All models, the one that the others are compared with first."""
        return tuple(Contestant.of(model) for model in (self.engine, *self.against))


@dataclass(frozen=True)
class AccuracyOptions:
    """A model file or checkpoint, evaluated at the released protocol: threshold 0, top 300, no NMS."""

    engine: Path = option(help="model file or checkpoint to evaluate", type=path_argument, metavar="MODEL")
    data: EvaluationSet = part(EvaluationSet, required=True)
    run: RunOptions = part(RunOptions, only=OPENED)


@dataclass(frozen=True)
class AblationOptions:
    """A checkpoint, evaluated with one thing changed at a time, and timed where that changes the model's work.

    `cascade` are those that are tried; empty: after each of the first three layers, with 200 and 100 queries left.
    """

    weights: Path = option(help="checkpoint to evaluate", type=path_argument, metavar="CHECKPOINT")
    data: EvaluationSet = part(EvaluationSet, required=True)
    cascade: tuple[Cascade, ...] = option(
        (), "cascade to try (may be repeated; default: 200 and 100 queries after each of the first 3 layers)",
        type=cascade_argument, metavar="K:N", repeated=True,
    )  # fmt: skip
    timing: TimingOptions = part(TimingOptions)
    run: RunOptions = part(RunOptions, only=("size", "device", "threads"))


@dataclass(frozen=True)
class NmsStudyOptions:
    """A YOLO without NMS in its graph, and the RT-DETR `against` which it is shown (None: alone)."""

    engine: Path = option(help="YOLO without NMS in its graph", type=path_argument, metavar="YOLO")
    against: Path | None = option(
        None, "RT-DETR that is shown beside it, at the same thresholds", type=path_argument, metavar="MODEL"
    )
    images: ImageOptions = part(ImageOptions)
    run: RunOptions = part(RunOptions, only=OPENED)


@dataclass(frozen=True)
class DecoderStudyOptions:
    """A checkpoint that is exported with each number of decoder layers, timed, and with annotations evaluated."""

    weights: Path = option(help="checkpoint to export", type=path_argument, metavar="CHECKPOINT")
    images: ImageOptions = part(ImageOptions)
    timing: TimingOptions = part(TimingOptions)
    run: RunOptions = part(RunOptions, only=(*OPENED, "threshold"))


@dataclass(frozen=True)
class PipelineOptions:
    """A model whose surroundings are measured: `runs` single calls, `seconds` per turn of a stream, `calls` for memory.

    `batch` None is what the model takes, 1 where it is dynamic.
    """

    engine: Path = option(help="model file", type=path_argument, metavar="FILE")
    runs: int = option(100, "single calls that are timed", type=int, metavar="N")
    seconds: float = option(3.0, "length of each turn of a stream", type=float, metavar="SECONDS")
    calls: int = option(200, "calls that memory is watched over", type=int, metavar="N")
    batch: int | None = option(
        None, "images per call of a stream", type=int, metavar="N", default_help="the model's own, else 1"
    )
    run: RunOptions = part(RunOptions, only=PIPELINE_RUN)

    def __post_init__(self) -> None:
        for name, value, limit in (
            ("runs", self.runs, MAX_RUNS),
            ("calls", self.calls, MAX_RUNS),
            ("batch", 1 if self.batch is None else self.batch, MAX_BATCH),
        ):
            if not 1 <= value <= limit:
                raise OptionError(f"`{name}` is {value}, expected a number from 1 to {limit}")
        if not 0 < self.seconds <= MAX_SECONDS:
            raise OptionError(f"`seconds` is {self.seconds}, expected seconds above 0 and up to {MAX_SECONDS}")


@dataclass(frozen=True)
class EncoderStudyOptions:
    """A variant that is timed with each of the `encoders`, weights random."""

    variant: str = option("r50", "model whose encoder is replaced", metavar="VARIANT")
    encoders: tuple[str, ...] = option(
        tuple(ENCODERS), "encoders to time", type=names_argument, metavar="A,B", default_help=",".join(ENCODERS)
    )
    timing: TimingOptions = part(TimingOptions)
    run: RunOptions = part(RunOptions, only=(*OPENED, "threshold"))

    def __post_init__(self) -> None:
        unknown = [name for name in self.encoders if name not in ENCODERS]
        if unknown:
            raise OptionError(f"unknown encoder {', '.join(unknown)}; choose from {', '.join(ENCODERS)}")
        if not self.encoders or len(set(self.encoders)) < len(self.encoders):
            raise OptionError(f"name each encoder once, and one at least; choose from {', '.join(ENCODERS)}")


@dataclass(frozen=True)
class PrecisionStudyOptions:
    """A checkpoint whose exports in reduced precision are compared with it; INT8 too where there is `calibration`.

    `target` is what INT8 is placed for, as in `ExportOptions`; what is not INT8 is FP32. `against` are files that other
    converters made of its FP32 export.

    Raises `OptionError` for an unknown target, and for "tensorrt" without `calibration`: it would be ignored.
    """

    weights: Path = option(help="checkpoint to export", type=path_argument, metavar="CHECKPOINT")
    data: EvaluationSet = part(EvaluationSet, required=True)
    calibration: Path | None = option(
        None, "folder of images for calibration: measure INT8 too", type=path_argument, metavar="DIR"
    )
    target: Target = option("cpu", "what INT8 is placed for; needs --calibration", choices=get_args(Target))
    against: tuple[Path, ...] = option(
        (), "file that another converter made of the checkpoint's FP32 export (may be repeated)",
        type=path_argument, metavar="ONNX", repeated=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.target not in get_args(Target):
            raise OptionError(f"`target` is {self.target!r}, expected one of {', '.join(get_args(Target))}")
        if self.target != "cpu" and self.calibration is None:
            raise OptionError(f'`target="{self.target}"` is for INT8; add `calibration`')


@dataclass(frozen=True)
class RooflineOptions:
    """ONNX files whose cost on a GPU is estimated: `engine`, and others beside it.

    `gpu` is a name in `roofline.gpus.GPUS`, or a JSON file of a GPU's rates; `batch` None is what a file fixes, else 1.
    `top` is how many kernels of each file are listed, those that take longest.
    """

    engine: Path = option(help="ONNX file to estimate", type=path_argument, metavar="MODEL")
    against: tuple[Path, ...] = option(
        (), "ONNX file shown beside it (may be repeated)", type=path_argument, metavar="MODEL", repeated=True
    )
    gpu: str = option(
        "t4", "t4, l4, a10, orin-nx, h100, or a JSON file of a GPU's rates (docs/benchmarks.md)", metavar="GPU"
    )
    batch: int | None = option(
        None, "images per call", type=int, metavar="N", default_help="what the file fixes, else 1"
    )
    top: int = option(
        0, "list the N kernels that take longest, with nodes, FLOPs and bytes; in --json, too", type=int, metavar="N"
    )

    def __post_init__(self) -> None:
        if self.batch is not None and not 1 <= self.batch <= MAX_BATCH:
            raise OptionError(f"`batch` is {self.batch}, expected a number from 1 to {MAX_BATCH}")
        if self.top < 0:
            raise OptionError(f"`top` is {self.top}, expected a number of kernels, 0 or more")


@dataclass(frozen=True)
class ProfileOptions:
    """A file that a CPU runs, profiled in `runtime`; `runs` calls, and the `top` nodes that take longest are listed.

    `precision` is what OpenVINO computes floats in: "fp32", or "bf16" where the processor has it.
    """

    engine: Path = option(help="model file to profile", type=path_argument, metavar="MODEL")
    runtime: str = option("onnxruntime", "runtime that is profiled", choices=PROFILED)
    precision: str = option("fp32", "what OpenVINO computes floats in", choices=("fp32", "bf16"))
    runs: int = option(20, "calls that are measured", type=int, metavar="N")
    top: int = option(20, "list the N nodes that take longest; in --json, too", type=int, metavar="N")
    where: RuntimeOptions = part(RuntimeOptions, only=("threads",))

    def __post_init__(self) -> None:
        if self.runtime not in PROFILED:
            raise OptionError(f"`runtime` is {self.runtime!r}, expected one of {', '.join(PROFILED)}")
        if self.precision not in ("fp32", "bf16"):
            raise OptionError(f"`precision` is {self.precision!r}, expected fp32 or bf16")
        if self.precision == "bf16" and self.runtime != "openvino":
            raise OptionError('`precision="bf16"` is for OpenVINO; add `runtime="openvino"`, or leave it out')
        if not 1 <= self.runs <= MAX_RUNS:
            raise OptionError(f"`runs` is {self.runs}, expected a number from 1 to {MAX_RUNS}")
        if self.top < 0:
            raise OptionError(f"`top` is {self.top}, expected a number of nodes, 0 or more")


@dataclass(frozen=True)
class InsertNmsOptions:
    """A YOLO's ONNX file, and the copy with NMS in its graph; `size` (height, width) is what the file leaves open."""

    engine: Path = option(help="YOLO to copy", type=path_argument, metavar="YOLO")
    output: Path = option(help="file to write", type=path_argument, metavar="FILE")
    kind: NmsKind = option(NMS_KINDS[0], "the standard operator, or EfficientNMS_TRT for TensorRT", choices=NMS_KINDS)
    nms: NmsOptions = part(NmsOptions, only=("threshold", "iou"))
    size: tuple[int, int] | None = option(
        None, "input of a model that leaves it open: 640 or HEIGHTxWIDTH", type=size_argument, metavar="SIZE"
    )

    def __post_init__(self) -> None:
        if self.kind not in NMS_KINDS:
            raise OptionError(f"`kind` is {self.kind!r}, expected one of {', '.join(NMS_KINDS)}")


@dataclass(frozen=True)
class ReportOptions:
    """Files that `--json` wrote, and the page that is made of them."""

    results: tuple[Path, ...] = option(
        help="file that a study wrote with --json", type=path_argument, metavar="JSON", nargs="+", flag="results"
    )
    output: Path = option(help="page to write", type=path_argument, metavar="FILE")


@dataclass(frozen=True)
class ResultOptions:
    """Where a command writes what it measured."""

    title: ClassVar[str] = "results"

    json: Path | None = option(
        None, "write date, command, machine and every sample", type=path_argument, metavar="FILE"
    )
    report: Path | None = option(None, "write a page with plots, in one HTML file", type=path_argument, metavar="FILE")
