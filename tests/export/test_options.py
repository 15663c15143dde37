"""Options are checked before any work is done."""

from __future__ import annotations

from argparse import ArgumentTypeError
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("torch")

from rtdetr_deploy import ArtifactInfo
from rtdetr_deploy.cli.arguments import in_words_of_the_command
from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.options import parse_classes, parse_size
from rtdetr_export import EngineOptions, ExportOptions, export
from rtdetr_export.cli import SPELLINGS
from rtdetr_export.options import batch_argument

WEIGHTS = Path("models/r50.pth")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "r50-l4-640x640-fp32.onnx"),
        ({"size": (480, 800)}, "r50-l4-480x800-fp32.onnx"),
        ({"batch": 8}, "r50-l4-640x640-fp32-b8.onnx"),
        ({"batch": None, "raw_input": True}, "r50-l4-640x640-fp32-bn-uint8.onnx"),
        ({"variant": "r50-dsp"}, "r50-l4-640x640-fp32-discrete.onnx"),
        (
            {"max_detections": 50, "opset": 18, "verify": False},
            "r50-l4-640x640-fp32-d50-op18-unverified.onnx",
        ),
        ({"target": "tensorrt"}, "r50-l4-640x640-fp32-uint8-trt.onnx"),
        ({"queries": 100, "sampler": "grid", "raw_output": True}, "r50-l4-640x640-fp32-q100-grid-raw.onnx"),
    ],
)
def test_default_name_says_what_is_inside(changes: dict[str, Any], name: str) -> None:
    options = ExportOptions(WEIGHTS, **changes)
    info = ArtifactInfo(
        class_names=("a",),
        height=options.input_size[0],
        width=options.input_size[1],
        batch=options.batch,
        variant="r50",
        layers=4,
        queries=options.queries or 300,
        max_detections=options.max_detections,
        precision="fp32",
        sampler="discrete" if options.variant else options.sampler or "gather",
        outputs="raw" if options.raw_output else "detections",
        raw_input=options.takes_uint8,
        opset=options.graph_opset,
        source="r50.pth",
        source_digest="0",
        verified=options.verify,
        version="0",
    )
    assert options.default_output(info) == Path("models") / name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (650, 640)}, "`size` is 650x640, .*multiples of 32 from 64 to 8192; try 640x640"),
        ({"size": (64, 32)}, "`size` is 64x32, expected multiples of 32 from 64 to 8192; try 64x64"),
        ({"size": (64, 99999999999999968)}, "`size` is 64x99999999999999968, .*; try 64x8192"),
        ({"precision": "fp16", "keep_fp32": ("a(",)}, r"`keep_fp32` 'a\(' is not a regular expression"),
        ({"batch": True}, "`batch` is True, expected a whole number from 1 up, or None: dynamic"),
        ({"size": ("64", 64)}, "`size` is .*multiples of 32"),
        ({"layers": 1.5}, "`layers` is 1.5, expected a whole number from 1 up"),
        ({"batch": 0}, "`batch` is 0, expected a whole number from 1 up, or None: dynamic"),
        ({"layers": 0}, "`layers` is 0"),
        ({"queries": -1}, "`queries` is -1"),
        ({"max_detections": 0}, "`max_detections` is 0"),
        ({"sampler": "nearest"}, "`sampler` is 'nearest', expected None, gather, grid or discrete"),
        ({"opset": 16}, "`opset` 16 has no LayerNormalization; choose from 17, 18, 19"),
        ({"opset": 20}, "`opset` 20 is refused: .*TensorRT reads as nearest"),
        ({"precision": "fp8"}, "`precision` is 'fp8', expected fp32, fp16 or int8"),
        ({"precision": "int8"}, '`precision="int8"` needs `calibration`, a folder of images'),
        (
            {"calibration": Path("photos"), "target": "tensorrt"},
            'engines, and `target="cpu"`; add `precision="fp16"`',
        ),
        ({"keep_fp32": ("a",)}, '`keep_fp32` is for lower precisions; add `precision="fp16"`'),
        ({"engine": EngineOptions()}, '`engine` is for engines; add `output="NAME.engine"`'),
        ({"keep_fp32": "a"}, "`keep_fp32` is a single text"),
        (
            {"output": Path("model.pt")},
            "`output` is model.pt, expected a name that ends in .onnx, .xml, .engine or .plan",
        ),
    ],
)
def test_values_outside_their_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ExportOptions(WEIGHTS, **changes)


def test_a_dynamic_batch_is_none() -> None:
    assert ExportOptions(WEIGHTS, batch="dynamic") == ExportOptions(WEIGHTS, batch=None)  # type: ignore[arg-type]


def test_errors_are_shown_in_the_words_of_the_command() -> None:
    with pytest.raises(OptionError) as caught:
        ExportOptions(WEIGHTS, precision="int8")
    assert in_words_of_the_command(str(caught.value), SPELLINGS).startswith("--precision int8 needs --calibration, a")
    assert in_words_of_the_command("`verify=False` or `verify`", SPELLINGS) == "--no-verify or --no-verify"


def test_export_wants_options() -> None:
    with pytest.raises(OptionError, match=r"`options` is 'r50.pth', expected ExportOptions\(weights, ...\)"):
        export(cast("Any", "r50.pth"))
    with pytest.raises(OptionError, match="`workspace` is 'x', expected GiB above 0"):
        EngineOptions(workspace=cast("Any", "x"))


def test_class_names_may_be_the_path_of_a_file() -> None:
    assert ExportOptions(WEIGHTS, class_names="names.txt").class_names == Path("names.txt")


def test_an_fp32_engine_may_be_compared_on_given_images() -> None:
    options = ExportOptions(WEIGHTS, Path("x.engine"), calibration=Path("photos"))
    assert options.calibration == Path("photos")
    assert options.for_onnx().calibration is None


def test_paths_may_be_text() -> None:
    options = ExportOptions("r50.pth", output="x.onnx")  # type: ignore[arg-type]
    assert (options.weights, options.output) == (Path("r50.pth"), Path("x.onnx"))


def test_sizes_are_height_by_width() -> None:
    assert parse_size("640") == (640, 640)
    assert parse_size("480x800") == (480, 800)
    for text in ("", "x", "640x", "-640", "1x2x3", "6４0"):
        with pytest.raises(OptionError, match="is not understood; write 640 or HEIGHTxWIDTH"):
            parse_size(text)


def test_batches_and_classes_are_parsed() -> None:
    assert batch_argument("dynamic") == "dynamic"
    assert batch_argument("4") == 4
    with pytest.raises(ArgumentTypeError, match="batch 'auto' is not understood"):
        batch_argument("auto")
    assert parse_classes("traffic light, 3") == ["traffic light", 3]


@pytest.mark.parametrize(
    ("changes", "fuses", "uint8"),
    [
        ({}, False, False),
        ({"precision": "fp16"}, True, False),
        ({"target": "tensorrt"}, True, True),
        ({"target": "tensorrt", "raw_input": False}, True, False),
        ({"output": Path("r50.engine")}, True, True),
        ({"output": Path("r50.engine"), "raw_input": False}, True, False),
        ({"format": "deepstream"}, True, False),
        ({"precision": "int8", "calibration": Path("photos"), "non_int8_precision": "fp32"}, False, False),
        (
            {"precision": "int8", "calibration": Path("photos"), "non_int8_precision": "fp32", "target": "tensorrt"},
            True,
            True,
        ),
    ],
)
def test_graphs_for_tensorrt_fuse_in_every_precision(changes: dict[str, Any], fuses: bool, uint8: bool) -> None:
    options = ExportOptions(WEIGHTS, **changes)
    assert (options.fuses_for_gpu, options.takes_uint8) == (fuses, uint8)
    if options.is_engine:
        onnx = options.for_onnx()
        assert (onnx.fuses_for_gpu, onnx.takes_uint8) == (fuses, uint8)
    if options.format is not None:
        inside = replace(options, format=None, output=Path("model.onnx"))
        assert (inside.fuses_for_gpu, inside.takes_uint8) == (fuses, uint8)


def test_a_file_for_tensorrt_has_the_defaults_of_engines() -> None:
    given: dict[str, Any] = {"precision": "int8", "calibration": Path("photos")}
    elsewhere = ExportOptions(WEIGHTS, Path("r50.onnx"), target="tensorrt", **given)
    beside = ExportOptions(WEIGHTS, Path("r50.engine"), **given).for_onnx()
    assert replace(beside, output=Path("r50.onnx")) == elsewhere
    assert (elsewhere.non_int8_precision, elsewhere.graph_opset) == ("fp16", 19)
    with pytest.raises(OptionError, match="`target` is decided in r50.onnx already; export it again"):
        ExportOptions(Path("r50.onnx"), Path("r50.engine"), target="tensorrt")


def test_the_target_is_that_of_the_output() -> None:
    assert ExportOptions(WEIGHTS).target == "cpu"
    assert ExportOptions(WEIGHTS, precision="fp16").target == "cpu"
    assert ExportOptions(WEIGHTS, Path("r50.engine")).target == "tensorrt"
    assert ExportOptions(WEIGHTS, format="deepstream").target == "tensorrt"
    with pytest.raises(OptionError, match="`target` is 'gpu', expected cpu or tensorrt"):
        ExportOptions(WEIGHTS, target="gpu")  # type: ignore[arg-type]
    for output in ({"output": Path("r50.engine")}, {"format": "deepstream"}):
        with pytest.raises(OptionError, match='`target="cpu"` does not go with what TensorRT runs'):
            ExportOptions(WEIGHTS, target="cpu", **output)
