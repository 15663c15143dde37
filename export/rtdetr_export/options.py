"""What can be chosen for an export, checked before any work is done."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from rtdetr_deploy.artifacts.cascade import Cascade, check_cascade, parse_cascade
from rtdetr_deploy.artifacts.decoding import MAX_DETECTIONS
from rtdetr_deploy.artifacts.input_size import DEFAULT_INPUT_SIZE, check_input_size
from rtdetr_deploy.artifacts.metadata import ArtifactInfo
from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.options import cascade_argument, option, path_argument, refuse_options, size_argument
from rtdetr_export.formats import FORMATS
from rtdetr_export.trt.options import ENGINE_SUFFIXES, EngineOptions, check_whole_numbers

Sampler = Literal["gather", "grid", "discrete"]
Precision = Literal["fp32", "fp16", "int8"]
NonInt8Precision = Literal["fp32", "fp16"]
Target = Literal["cpu", "tensorrt"]

OPSETS = (17, 18, 19)
XML_SUFFIX = ".xml"
"""What OpenVINO's files end in."""


def batch_argument(text: str) -> int | Literal["dynamic"]:
    """Return the batch that `text` ("dynamic" or a number) stands for, for argparse."""
    if text == "dynamic":
        return "dynamic"
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"batch {text!r} is not understood; write a number or dynamic")
    return int(text)


@dataclass(frozen=True)
class ExportOptions:
    """Options of `export`.

    `weights` is the checkpoint, or an `.onnx` file written here, for engines and for `format`; `output` the file to
    write, whose suffix decides what it is: `.onnx`, `.xml` for OpenVINO (its weights go beside it, as `.bin`), or
    `.engine` or `.plan` for TensorRT (default: an ONNX file beside the weights, see `default_output`). `format`
    "deepstream" makes `output` a folder for NVIDIA DeepStream: the ONNX file, nvinfer's configuration, labels and an
    output parser. `engine` are options of engines.

    `layers` decoder layers to keep (default: what the variant runs); `size` (height, width) of the input in pixels,
    multiples of 32 from 64 up (default: what the checkpoint names, else 640x640); `batch` a number, or None for any
    number of images ("dynamic" is understood too). `queries` selected by the encoder (default: the model's 300,
    never more than the input has tokens); `cascade` (K, N), or "K:N": after decoder layer K only the N best queries go
    on through the later layers. `max_detections` rows returned.

    `sampler` of deformable attention: "gather" (default; no GridSample), "grid", or "discrete" for models trained that
    way. `raw_input` takes uint8 NHWC (None: for engines and OpenVINO's files, whose input is a quarter of the bytes
    then; ONNX files take float32). `raw_output` returns logits and cxcywh boxes.
    `target` is what will run the file: "cpu" (ONNX Runtime or OpenVINO), or "tensorrt" for an ONNX file as engines are
    built from, with engines' defaults and operators that TensorRT fuses, for an engine that is built elsewhere. None is
    "tensorrt" for engines and for formats that TensorRT runs, else "cpu".
    `class_names` replace those of the checkpoint: names, or the path of a file with one per line; `variant` says what
    shapes can't tell. `verify` False skips the parity report; engines are always verified.

    `precision` is "fp32", "fp16" (mixed, see `precision.fp16`) or "int8" (blocks that bear it, see
    `precision.sensitivity`), with `non_int8_precision` "fp32" or "fp16" for what is not INT8 (default: "fp16" for
    TensorRT, else "fp32"). `keep_fp32` are patterns of node names that stay in FP32; `calibration` is a folder of
    images on which lower precisions and engines are measured and compared: needed for "int8", else synthetic ones
    serve. With `target` "cpu" BF16 is compared with FP32 on them, and not at all without. `opset` None is 17, or 19
    where INT8 and FP16 meet.

    Raises `OptionError` for values outside these ranges, and for options that would be ignored.
    """

    weights: Path = option(
        help="checkpoint: .pth, .pt, .safetensors, or the folder of a Hugging Face model; for engines and --format an "
        ".onnx file too",
        type=path_argument, metavar="FILE",
    )  # fmt: skip
    output: Path | None = option(
        None, "file to write: .onnx, .xml for OpenVINO, or .engine for TensorRT", type=path_argument, metavar="FILE",
        default_help="beside the weights, e.g. r50-l6-640x640-fp32.onnx",
    )  # fmt: skip
    layers: int | None = option(
        None, "decoder layers to keep", type=int, metavar="K", default_help="as many as the variant runs"
    )
    size: tuple[int, int] | None = option(
        None, "640 or HEIGHTxWIDTH, multiples of 32", type=size_argument,
        default_help="what the checkpoint names, else 640",
    )  # fmt: skip
    batch: int | None = option(1, "images at once: a number, or dynamic", type=batch_argument, metavar="N")
    queries: int | None = option(
        None, "queries that the encoder selects", type=int, metavar="Q", default_help="the model's, 300"
    )
    cascade: Cascade | None = option(
        None, "after decoder layer K only the N best queries go on, e.g. 2:100: faster, little less accurate",
        type=cascade_argument, metavar="K:N", default_help="all go on",
    )  # fmt: skip
    max_detections: int = option(MAX_DETECTIONS, "rows returned per image", type=int, metavar="N")
    sampler: Sampler | None = option(
        None,
        "how deformable attention samples: gather avoids GridSample, grid uses it; discrete is what --variant ...-dsp "
        "exports",
        choices=get_args(Sampler), default_help="gather; discrete for -dsp variants",
    )  # fmt: skip
    raw_input: bool | None = option(
        None, "take uint8 RGB images (B, H, W, 3), scaled in the graph; else float32 (B, 3, H, W) in [0, 1]", type=bool,
        default_help="uint8 for engines, .xml files and --target tensorrt, float32 for .onnx files",
    )  # fmt: skip
    target: Target | None = option(
        None,
        "what will run the file: cpu (ONNX Runtime, OpenVINO), or tensorrt, for an engine that is built elsewhere: "
        "uint8 input, FP16 beside INT8, operators that TensorRT fuses",
        choices=get_args(Target), default_help="tensorrt for engines and formats of NVIDIA, else cpu",
    )  # fmt: skip
    raw_output: bool = option(False, "return logits and cxcywh boxes instead of labels, boxes, scores")
    class_names: tuple[str, ...] | Path | str | None = option(
        None, "file with one name per line", type=path_argument, metavar="FILE",
        default_help="the checkpoint's, COCO's for 80", old=("--classes",),
    )  # fmt: skip
    variant: str | None = option(
        None, "what shapes can't tell: r50-m's 3 layers, discrete sampling (r18-dsp)", metavar="NAME"
    )
    opset: int | None = option(
        None, f"ONNX opset: {', '.join(map(str, OPSETS))}", type=int, metavar="V",
        default_help=f"{OPSETS[0]}, or {OPSETS[-1]} where INT8 and FP16 meet",
    )  # fmt: skip
    precision: Precision = option(
        "fp32", "precision of the weights and the arithmetic in the file", choices=get_args(Precision)
    )
    non_int8_precision: NonInt8Precision | None = option(
        None, "precision of what is not INT8, with --precision int8", choices=get_args(NonInt8Precision),
        default_help="fp16 for TensorRT, else fp32", old=("--rest",),
    )  # fmt: skip
    keep_fp32: tuple[str, ...] = option(
        (), "nodes whose name matches this regular expression stay in FP32; may be repeated", metavar="PATTERN",
        repeated=True,
    )  # fmt: skip
    calibration: Path | None = option(
        None,
        "images like those to detect on: lower precisions are measured and compared there, and for CPUs BF16 with FP32",
        type=path_argument, metavar="DIR", default_help="synthetic ones, BF16 is not compared; needed for int8",
    )  # fmt: skip
    verify: bool = option(True, "skip the comparison with torch; the file records that")
    format: str | None = option(
        None, "make --output a folder for a serving system; deepstream: for NVIDIA DeepStream's nvinfer",
        choices=tuple(FORMATS), default_help="none: the suffix of --output decides",
    )  # fmt: skip
    engine: EngineOptions | None = None

    def __post_init__(self) -> None:
        self._convert()
        refuse_ignored(self.weights, self.output, self._chosen(), self.format)
        suffixes = (".onnx", XML_SUFFIX, *ENGINE_SUFFIXES)
        if self.format is not None:
            self._check_format(self.format)
        elif self.output is not None and self.output.suffix.lower() not in suffixes:
            raise OptionError(f"`output` is {self.output}, expected a name that ends in {_listed(suffixes)}")
        if self.from_onnx and (self.is_engine or self.format is not None):
            return
        self._decide_target()
        if self.raw_input is None:
            self._set("raw_input", (self.target == "tensorrt" or self.is_xml) and self.format is None)
        self._check_values()
        self._check_precision()
        self._check_opset()
        if self.engine is not None and self.is_engine:
            self.engine.check_batch(self.batch, "the model")
            if self.engine.reference is not None:
                raise OptionError(
                    f"`reference` is for engines of .onnx files; leave it out, {self.weights.name} is the reference"
                )

    def _convert(self) -> None:
        """Take paths as text too, and the batch "dynamic"."""
        weights = Path(self.weights)
        self._set("weights", weights if weights.name not in ("", "..") else weights.resolve())
        for name in ("output", "calibration"):
            if getattr(self, name) is not None:
                self._set(name, Path(getattr(self, name)))
        if isinstance(self.class_names, str):
            self._set("class_names", Path(self.class_names))
        batch: object = self.batch
        if batch == "dynamic":
            self._set("batch", None)
        if isinstance(self.cascade, str):
            self._set("cascade", parse_cascade(self.cascade))

    def _decide_target(self) -> None:
        if self.target not in (None, *get_args(Target)):
            raise OptionError(f"`target` is {self.target!r}, expected {_listed(get_args(Target))}")
        needs_tensorrt = self.is_engine or (self.format is not None and FORMATS[self.format].tensorrt)
        if needs_tensorrt and self.target == "cpu":
            raise OptionError('`target="cpu"` does not go with what TensorRT runs; leave it out')
        if self.is_xml and self.target == "tensorrt":
            raise OptionError(f'`target="tensorrt"` does not go with {XML_SUFFIX} files, which OpenVINO runs')
        self._set("target", self.target or ("tensorrt" if needs_tensorrt else "cpu"))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _chosen(self) -> list[str]:
        """Return the names of options, those of engines too, that are not at their defaults."""
        own = _differing(self, ("weights", "output", "engine"))
        return own if self.engine is None else [*own, *(_differing(self.engine) or ["engine"])]

    def _check_values(self) -> None:
        if self.size is not None:
            self._set("size", check_input_size(self.size))
        if self.batch is not None and (type(self.batch) is not int or self.batch < 1):
            raise OptionError(f"`batch` is {self.batch!r}, expected a whole number from 1 up, or None: dynamic")
        check_whole_numbers(self, "layers", "queries", "max_detections")
        if self.cascade is not None:
            self._set("cascade", check_cascade(self.cascade, self.layers, self.queries))
        for name, choices in (("sampler", (None, *get_args(Sampler))), ("precision", get_args(Precision))):
            if getattr(self, name) not in choices:
                raise OptionError(f"`{name}` is {getattr(self, name)!r}, expected {_listed(choices)}")
        if isinstance(self.keep_fp32, str):
            raise OptionError("`keep_fp32` is a single text, expected a tuple of texts")

    def _check_format(self, name: str) -> None:
        if name not in FORMATS:
            raise OptionError(f"`format` is {name!r}, expected {_listed((None, *FORMATS))}")
        if self.output is not None and self.output.suffix.lower() in (".onnx", XML_SUFFIX, *ENGINE_SUFFIXES):
            raise OptionError(
                f'`output` is {self.output}, but `format="{name}"` writes a folder; leave {self.output.suffix} out'
            )
        FORMATS[name].check_model(raw_input=bool(self.raw_input), raw_output=self.raw_output, batch=self.batch)

    def _check_precision(self) -> None:
        if self.precision == "fp32" and self.keep_fp32:
            raise OptionError('`keep_fp32` is for lower precisions; add `precision="fp16"`')
        if self.precision == "fp32" and self.calibration is not None and not self.is_engine:
            if self.target != "cpu":
                raise OptionError(
                    '`calibration` is for lower precisions, engines, and `target="cpu"`; add `precision="fp16"`'
                )
            if not self.verify:
                raise OptionError(
                    "`calibration` has the images on which BF16 is compared with FP32, which `verify=False` leaves "
                    "out; give one of them"
                )
        if self.precision == "int8" and self.calibration is None:
            raise OptionError('`precision="int8"` needs `calibration`, a folder of images like those to detect on')
        if self.non_int8_precision is None:
            self._set(
                "non_int8_precision", "fp16" if self.precision == "int8" and self.target == "tensorrt" else "fp32"
            )
        if self.non_int8_precision not in get_args(NonInt8Precision) or (
            self.non_int8_precision != "fp32" and self.precision != "int8"
        ):
            raise OptionError('`non_int8_precision` is fp32 or fp16, for what is not INT8; add `precision="int8"`')
        if self.is_xml and self.places_fp16:
            raise OptionError(
                f"FP16 is not for {XML_SUFFIX} files: OpenVINO computes FP32 ones in BF16 or FP16 where it is told "
                "so when it opens them (docs/openvino.md)"
            )
        for pattern in self.keep_fp32:
            try:
                re.compile(pattern)
            except re.error as error:
                raise OptionError(f"`keep_fp32` {pattern!r} is not a regular expression: {error}") from error

    def _check_opset(self) -> None:
        choices = ", ".join(map(str, OPSETS))
        opset = self.graph_opset
        if self.non_int8_precision == "fp16" and opset < OPSETS[-1]:
            raise OptionError(f"INT8 with FP16 needs opset {OPSETS[-1]}; leave `opset` out")
        if opset >= 20:
            raise OptionError(
                f"`opset` {opset} is refused: from 20 on GridSample's mode has another name, which TensorRT reads "
                f"as nearest, and nothing here needs it; choose from {choices}"
            )
        if opset not in OPSETS:
            raise OptionError(f"`opset` {opset} has no LayerNormalization; choose from {choices}")

    @property
    def is_engine(self) -> bool:
        """Whether the output is a TensorRT engine."""
        return self.format is None and is_engine(self.output)

    @property
    def is_xml(self) -> bool:
        """Whether the output is a file of OpenVINO."""
        return self.format is None and self.output is not None and self.output.suffix.lower() == XML_SUFFIX

    @property
    def from_onnx(self) -> bool:
        """Whether the weights are an ONNX file, which has decided everything but what engines are built with."""
        return _is_onnx(self.weights)

    @property
    def takes_uint8(self) -> bool:
        """Whether the input is uint8 NHWC."""
        return bool(self.raw_input)

    @property
    def places_fp16(self) -> bool:
        """Whether a part of the graph is in FP16."""
        return "fp16" in (self.precision, self.non_int8_precision)

    @property
    def fuses_for_gpu(self) -> bool:
        """Whether the graph is for a GPU's compiler: for TensorRT, or with FP16 in it."""
        return self.target == "tensorrt" or self.places_fp16

    @property
    def graph_opset(self) -> int:
        """The ONNX opset of the graph."""
        return self.opset if self.opset is not None else OPSETS[-1 if self.non_int8_precision == "fp16" else 0]

    def fitted_to(self, input_size: tuple[int, int] | None) -> ExportOptions:
        """Return a copy for a checkpoint that was trained at `input_size` (height, width), if that is known."""
        return replace(self, size=self.size or input_size)

    def for_onnx(self) -> ExportOptions:
        """Return the options of the ONNX file that an engine is built from: it lies beside, as NAME.engine.onnx."""
        assert self.output is not None
        onnx = self.output.with_name(self.output.name + ".onnx")
        calibration = None if self.precision == "fp32" else self.calibration  # an engine is compared on those images
        return replace(self, output=onnx, engine=None, calibration=calibration)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the input."""
        return self.size or DEFAULT_INPUT_SIZE

    def default_output(self, info: ArtifactInfo) -> Path:
        """Return e.g. `r50-l4-640x640-fp32.onnx` beside the weights; what is not the default is named too.

        With `format` it is the folder `r50-l4-640x640-fp32-deepstream`.
        """
        if self.from_onnx:
            return self.weights.with_name(f"{self.weights.stem}-{self.format}")
        stem = f"{self.weights.stem}-l{info.layers}-{info.height}x{info.width}-{info.precision}"
        extras = {
            "bn" if info.batch is None else f"b{info.batch}": info.batch != 1,
            f"q{self.queries}": self.queries is not None,
            "" if info.cascade is None else "c{}x{}".format(*info.cascade): info.cascade is not None,
            f"d{info.max_detections}": self.max_detections != MAX_DETECTIONS,
            info.sampler: info.sampler != "gather",
            "fp16": self.non_int8_precision == "fp16",
            f"op{info.opset}": self.opset not in (None, OPSETS[0]),
            "uint8": info.raw_input,
            "raw": info.outputs == "raw",
            "kept": bool(self.keep_fp32),
            "trt": self.target == "tensorrt" and self.format is None,
            "unverified": not info.verified,
        }
        name = "-".join([stem, *(name for name, given in extras.items() if given)])
        return self.weights.with_name(f"{name}.onnx" if self.format is None else f"{name}-{self.format}")


def is_engine(output: Path | None) -> bool:
    """Tell whether `output` is called like a TensorRT engine."""
    return output is not None and output.suffix.lower() in ENGINE_SUFFIXES


def refuse_ignored(weights: Path, output: Path | None, chosen: Collection[str], form: str | None = None) -> None:
    """Raise `OptionError` for the first of the `chosen` options that would be ignored with these files.

    An ONNX file that is made an engine or goes into the folder of the format `form` has decided most; options of
    engines are for engines.
    """
    of_engines = {"engine", *(field.name for field in fields(EngineOptions))}
    to_engine = form is None and is_engine(output)
    if not to_engine:
        allowed = {name for name in chosen if name not in of_engines}
        refuse_options(chosen, allowed, _for_engines(form))
    if (to_engine or form is not None) and _is_onnx(weights):
        undecided = {"weights", "output", "format", *(("calibration", *of_engines) if to_engine else ())}
        refuse_options(chosen, undecided, f"is decided in {weights.name} already; export it again")


def _for_engines(form: str | None) -> str:
    """Return why an option of engines is refused, and where it belongs."""
    if form is None or form not in FORMATS:
        return 'is for engines; add `output="NAME.engine"`'
    system = FORMATS[form].system
    return f'is for engines, and `format="{form}"` writes none; the engine is built on the machine with {system}'


def _is_onnx(weights: Path) -> bool:
    return weights.suffix.lower() == ".onnx"


def _differing(options: Any, apart_from: Collection[str] = ()) -> list[str]:
    """Return the names of fields that don't have their default value."""
    every = [field for field in fields(options) if field.name not in apart_from]
    return [field.name for field in every if getattr(options, field.name) != field.default]


def _listed(choices: Collection[str | None]) -> str:
    *others, last = (str(choice) for choice in choices)
    return f"{', '.join(others)} or {last}"
