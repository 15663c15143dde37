"""What can be chosen for an export, checked before any work is done."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rtdetr_deploy.artifacts.input_size import DEFAULT_INPUT_SIZE, check_input_size
from rtdetr_deploy.artifacts.metadata import ArtifactInfo
from rtdetr_deploy.artifacts.weights_file import find_weights
from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.files import check_writable, refuse_overwriting

Batch = int | Literal["dynamic"]
Sampler = Literal["gather", "grid", "discrete"]
Precision = Literal["fp32", "fp16", "int8"]

OPSETS = (17, 18, 19)
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
SAMPLERS: tuple[Sampler, ...] = ("gather", "grid", "discrete")


@dataclass(frozen=True)
class ExportOptions:
    """Options of `export_onnx`.

    `weights` is the checkpoint; `output` the file to write (default: beside the weights, see `default_output`).
    `layers` decoder layers to keep (default: what the variant runs); `size` (height, width) of the input in pixels,
    multiples of 32 from 64 up (default: what the checkpoint names, else 640x640); `batch` a number or "dynamic".
    `queries` selected by the encoder (default: the model's 300); `max_detections` rows returned. `sampler` of
    deformable attention: "gather" (default; no GridSample), "grid", or "discrete" for models trained that way.
    `raw_input` takes uint8 NHWC; `raw_output` returns logits and cxcywh boxes. `class_names` replace those of the
    checkpoint; `variant` says what shapes can't tell. `verify` False skips the parity report.

    `precision` is "fp32", "fp16" (mixed, see `precision`) or "int8" (blocks that bear it, see `sensitivity`), with
    `non_int8_precision` "fp32" or "fp16" for what is not INT8. `keep_fp32` are patterns of node names that stay in
    FP32; `calibration` is a folder of images on which lower precisions are measured and compared: needed for
    "int8", else synthetic ones serve. `opset` None is 17, or 19 where INT8 and FP16 meet.

    Raises `OptionError` for values outside these ranges.
    """

    weights: Path
    output: Path | None = None
    layers: int | None = None
    size: tuple[int, int] | None = None
    batch: Batch = 1
    queries: int | None = None
    max_detections: int = 300
    sampler: Sampler | None = None
    raw_input: bool = False
    raw_output: bool = False
    class_names: tuple[str, ...] | None = None
    variant: str | None = None
    opset: int | None = None
    precision: Precision = "fp32"
    non_int8_precision: Precision = "fp32"
    keep_fp32: tuple[str, ...] = ()
    calibration: Path | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        weights = Path(self.weights)
        object.__setattr__(self, "weights", weights if weights.name not in ("", "..") else weights.resolve())
        if self.output is not None:
            object.__setattr__(self, "output", Path(self.output))
        self._check_numbers()
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise OptionError(f"unknown sampler {self.sampler!r}; choose from {', '.join(SAMPLERS)}")
        self._check_precision()
        self._check_opset()
        if self.output is not None and self.output.suffix.lower() != ".onnx":
            raise OptionError(f"can't write {self.output.name}: the output's name must end in .onnx")

    def _check_numbers(self) -> None:
        if self.size is not None:
            object.__setattr__(self, "size", check_input_size(self.size))
        if self.batch != "dynamic" and (type(self.batch) is not int or self.batch < 1):
            raise OptionError(f"batch is {self.batch!r}, expected a number from 1 up or 'dynamic'")
        for name, value in (
            ("layers", self.layers),
            ("queries", self.queries),
            ("max_detections", self.max_detections),
        ):
            if value is not None and (type(value) is not int or value < 1):
                raise OptionError(f"{name} is {value!r}, expected a whole number from 1 up")

    def _check_precision(self) -> None:
        if self.precision not in PRECISIONS:
            raise OptionError(f"unknown precision {self.precision!r}; choose from {', '.join(PRECISIONS)}")
        if self.precision == "fp32" and (self.keep_fp32 or self.calibration is not None):
            raise OptionError("--keep-fp32 and --calibration are for lower precisions; add --precision fp16")
        if self.precision == "int8" and self.calibration is None:
            raise OptionError("--precision int8 needs --calibration with a folder of images like those to detect on")
        if self.non_int8_precision not in ("fp32", "fp16") or (
            self.non_int8_precision != "fp32" and self.precision != "int8"
        ):
            raise OptionError("--non-int8-precision is fp32 or fp16, for what is not INT8; add --precision int8")
        if isinstance(self.keep_fp32, str) or isinstance(self.class_names, str):
            raise OptionError("keep_fp32 and class_names are lists of texts, not a single one")
        for pattern in self.keep_fp32:
            try:
                re.compile(pattern)
            except re.error as error:
                raise OptionError(f"--keep-fp32 {pattern!r} is not a regular expression: {error}") from error

    def _check_opset(self) -> None:
        choices = ", ".join(map(str, OPSETS))
        opset = self.graph_opset
        if self.non_int8_precision == "fp16" and opset < OPSETS[-1]:
            raise OptionError(f"INT8 with FP16 needs opset {OPSETS[-1]}; leave --opset out")
        if opset >= 20:
            raise OptionError(
                f"opset {opset} is refused: from 20 on GridSample's mode has another name, which TensorRT reads "
                f"as nearest, and nothing here needs it; choose from {choices}"
            )
        if opset not in OPSETS:
            raise OptionError(f"opset {opset} has no LayerNormalization; choose from {choices}")

    @property
    def graph_opset(self) -> int:
        """The ONNX opset of the graph."""
        return self.opset if self.opset is not None else OPSETS[-1 if self.non_int8_precision == "fp16" else 0]

    def fitted_to(self, input_size: tuple[int, int] | None) -> ExportOptions:
        """Return a copy for a checkpoint that was trained at `input_size` (height, width), if that is known."""
        return replace(self, size=self.size or input_size)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the input."""
        return self.size or DEFAULT_INPUT_SIZE

    def default_output(self, info: ArtifactInfo) -> Path:
        """Return e.g. `r50-l4-640x640-fp32.onnx` beside the weights; what is not the default is named too."""
        stem = f"{self.weights.stem}-l{info.layers}-{info.height}x{info.width}-{info.precision}"
        extras = {
            "bn" if info.batch is None else f"b{info.batch}": info.batch != 1,
            f"q{self.queries}": self.queries is not None,
            f"d{self.max_detections}": self.max_detections != 300,
            info.sampler: info.sampler != "gather",
            "fp16": self.non_int8_precision == "fp16",
            f"op{info.opset}": self.opset not in (None, OPSETS[0]),
            "uint8": info.raw_input,
            "raw": info.outputs == "raw",
            "kept": bool(self.keep_fp32),
            "unverified": not info.verified,
        }
        return self.weights.with_name("-".join([stem, *(name for name, given in extras.items() if given)]) + ".onnx")


def check_files(options: ExportOptions) -> None:
    """Look at the files that `options` name before any work is done; imports no torch.

    Raises `CheckpointError` for missing weights, `ImageError` for a calibration folder without images, `OutputError`
    for an output that can't be written or is one of the inputs.
    """
    from rtdetr_deploy.images.find import find_images

    weights = find_weights(options.weights)
    if options.calibration is not None:
        find_images([options.calibration])
    refuse_overwriting({"--output": options.output}, [weights])
    check_writable(options.output or options.weights.with_suffix(".onnx"))


def parse_batch(text: str) -> Batch:
    """Return the batch that `text` ("dynamic" or a number) stands for. Raises `OptionError`."""
    if text == "dynamic":
        return "dynamic"
    if not (text.isascii() and text.isdigit()):
        raise OptionError(f"batch {text!r} is not understood; write a number or dynamic")
    return int(text)
