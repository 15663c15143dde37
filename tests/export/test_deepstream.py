"""The folder for DeepStream: what is in it, that it fits the model, and what is refused."""

from __future__ import annotations

import configparser
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")

import onnx

from deepstream_parser import Objects, build_parser
from rtdetr_deploy import Predictor
from rtdetr_deploy.artifacts.class_names import COCO_NAMES
from rtdetr_deploy.artifacts.metadata import ArtifactInfo
from rtdetr_deploy.boxes import cxcywh_to_xyxy
from rtdetr_deploy.errors import ExportError, OptionError, OutputError
from rtdetr_deploy.images.preprocess_spec import PreprocessSpec
from rtdetr_deploy.runtimes import open_runtime
from rtdetr_export import EngineOptions, ExportOptions, ExportResult, export
from rtdetr_export.cli import build_parser as command_line
from rtdetr_export.cli import main
from rtdetr_export.formats import FORMATS, deepstream
from rtdetr_export.trt.trtexec import trtexec_line

KEYS = {
    "gpu-id", "gie-unique-id", "process-mode", "network-type", "interval", "infer-dims", "net-scale-factor", "offsets",
    "model-color-format", "maintain-aspect-ratio", "symmetric-padding", "scaling-filter", "scaling-compute-hw",
    "onnx-file", "model-engine-file", "batch-size", "network-mode", "strongly-typed", "output-blob-names",
    "parse-bbox-func-name", "custom-lib-path", "num-detected-classes", "labelfile-path", "cluster-mode",
    "output-tensor-meta", "workspace-size",
}  # fmt: skip
"""Keys of [property] that a detector of an ONNX file may have.

Source: "Gst-nvinfer File Configuration Specifications" of the DeepStream documentation, and for strongly-typed the
parser of NVIDIA/DeepStream (src/gst-plugins/gst-nvinfer/gstnvinfer_property_parser.h). Unknown keys are only printed.
"""
CLASS_KEYS = {"pre-cluster-threshold", "post-cluster-threshold", "topk", "nms-iou-threshold"}
"""Of [class-attrs-all], from the same page."""


@pytest.fixture
def info() -> ArtifactInfo:
    return ArtifactInfo(
        class_names=("red", "white", "platelet"), height=480, width=800, batch=1, variant="r18", layers=3, queries=300,
        max_detections=300, precision="fp32", sampler="gather", outputs="detections", raw_input=False, opset=17,
        source="cells.pth", source_digest="0", verified=True, version="0",
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(small_options: Any) -> Path:
    """The folder of the small model, batch 1."""
    options: ExportOptions = small_options("cells", format="deepstream", verify=False)
    result = export(options)
    assert result.package is not None
    return result.package.folder


def read_config(text: str) -> configparser.ConfigParser:
    config = configparser.ConfigParser(interpolation=None)
    config.read_string(text)
    return config


def read_property(info: ArtifactInfo) -> configparser.SectionProxy:
    return read_config(deepstream.make_files(info)[deepstream.CONFIG].decode())["property"]


def read_labels(content: bytes) -> list[str]:
    """Return the labels as nvinfer reads them: lines that aren't empty, each up to the first semicolon."""
    return [line.split(";")[0] for line in content.decode().split("\n") if line]


def test_the_folder_holds_all_that_nvinfer_names_but_what_is_built_there(folder: Path) -> None:
    made = {"model.onnx", "config_infer.txt", "labels.txt", "parse_rtdetr.cpp", "Makefile", "README.md"}
    assert {path.name for path in folder.iterdir()} == made
    assert made == {FORMATS["deepstream"].onnx, *FORMATS["deepstream"].file_names}
    config = read_config((folder / "config_infer.txt").read_text())["property"]
    for key in ("onnx-file", "labelfile-path"):
        assert (folder / config[key]).is_file()
    for key in ("onnx-file", "labelfile-path", "model-engine-file", "custom-lib-path"):
        assert Path(config[key]).name == config[key], "paths are relative to the folder"
    assert f"LIBRARY := {config['custom-lib-path']}\n" in (folder / "Makefile").read_text()
    assert f"bool {config['parse-bbox-func-name']}(" in (folder / "parse_rtdetr.cpp").read_text()
    assert list(folder.parent.glob(".part*")) == []


def test_the_configuration_says_what_the_model_takes_and_gives(folder: Path) -> None:
    config = read_config((folder / "config_infer.txt").read_text())["property"]
    graph = onnx.load(folder / "model.onnx").graph
    (images,) = graph.input
    batch, *dims = [dimension.dim_value for dimension in images.type.tensor_type.shape.dim]
    assert config["infer-dims"] == ";".join(map(str, dims)) == "3;128;160"
    assert config["batch-size"] == str(batch) == "1"
    assert images.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert config["output-blob-names"].split(";") == [output.name for output in graph.output]
    assert (config["num-detected-classes"], (folder / "labels.txt").read_text()) == ("3", "red\nwhite\nplatelet\n")


@pytest.mark.parametrize("changes", [{}, {"batch": None}, {"class_names": ("cell",)}, {"class_names": COCO_NAMES}])
def test_every_key_is_documented_and_fits_the_model(info: ArtifactInfo, changes: dict[str, Any]) -> None:
    info = replace(info, **changes)
    files = deepstream.make_files(info)
    config = read_config(files[deepstream.CONFIG].decode())
    assert config.sections() == ["property", "class-attrs-all"]
    assert set(config["property"]) <= KEYS
    assert set(config["class-attrs-all"]) <= CLASS_KEYS
    assert config["property"]["num-detected-classes"] == str(len(info.class_names))
    assert read_labels(files[deepstream.LABELS]) == list(info.class_names)
    assert config["property"]["infer-dims"] == "3;480;800"
    batch = config["property"]["batch-size"]
    assert batch == ("8" if info.batch is None else "1")
    assert config["property"]["model-engine-file"] == f"model.onnx_b{batch}_gpu0_fp32.engine"
    assert "$" not in files[deepstream.CONFIG].decode()


def test_precision_is_the_graphs_and_nothing_is_clustered(info: ArtifactInfo) -> None:
    for precision in ("fp32", "fp16", "int8"):
        config = read_property(replace(info, precision=precision))
        assert (config["network-mode"], config["strongly-typed"]) == ("0", "1")
        assert config["cluster-mode"] == "4"
        assert "int8-calib-file" not in config


def test_pixels_are_scaled_as_the_model_was_trained(info: ArtifactInfo) -> None:
    config = read_property(info)
    assert float(config["net-scale-factor"]) == 1 / 255
    assert (config["model-color-format"], config["maintain-aspect-ratio"]) == ("0", "0")
    assert "offsets" not in config


def test_mean_std_and_bgr_become_offsets_and_one_factor(info: ArtifactInfo) -> None:
    spec = PreprocessSpec(info.size, "bgr", 1 / 255, (0.1, 0.5, 0.25), (0.5, 0.5, 0.5))
    config = read_property(replace(info, preprocess=spec))
    assert config["model-color-format"] == "1"
    pixels = np.arange(0.0, 256.0, 15.0)
    offsets = [float(offset) for offset in config["offsets"].split(";")]
    for offset, mean, std in zip(offsets, spec.mean, spec.std, strict=True):
        fed = float(config["net-scale-factor"]) * (pixels - offset)
        np.testing.assert_allclose(fed, (pixels * spec.scale - mean) / std, atol=1e-12)


@pytest.mark.parametrize("changes", [{"letterbox": True}, {"filter": "bicubic"}, {"std": (0.2, 0.2, 0.3)}])
def test_images_that_nvinfer_can_not_prepare_are_refused(info: ArtifactInfo, changes: dict[str, Any]) -> None:
    spec = replace(PreprocessSpec.rtdetr(info.size), **changes)
    with pytest.raises(OptionError, match="can't prepare images for this model: nvinfer stretches them bilinearly"):
        deepstream.make_files(replace(info, preprocess=spec))


def test_class_names_stay_one_per_line_whatever_is_in_them(info: ArtifactInfo, tmp_path: Path) -> None:
    names = ("a;b", "", "tab\there", "two\nlines", " ", "größe 猫", ";", "# no comment", "[all]", 'say "x"')
    info = replace(info, class_names=names)
    labels = read_labels(deepstream.make_files(info)[deepstream.LABELS])
    assert labels == [
        "a,b", "class 1", "tab\\there", "two\\nlines", "class 4", "größe 猫", ",", "# no comment", "[all]", 'say "x"',
    ]  # fmt: skip
    told = deepstream.next_steps(tmp_path, info).splitlines()[0]
    assert told.startswith("labels.txt: 'a;b', '', ")
    assert "#" not in told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"raw_input": True}, '`format="deepstream"` needs a float input, which nvinfer fills; export without `raw_i'),
        ({"raw_output": True}, "needs labels, boxes and scores, which its parser reads; export without `raw_output`"),
        ({"batch": 4}, 'does not go with a fixed batch of 4: nvinfer .*; export with `batch="dynamic"`, or 1'),
        (
            {"engine": EngineOptions(max_batch=4)},
            '`max_batch` is for engines, and `format="deepstream"` writes none; the engine is built on the',
        ),
        (
            {"engine": EngineOptions(keep_log=True), "weights": Path("x.onnx")},
            "`keep_log` is for engines, and `format=",
        ),
        ({"engine": EngineOptions(), "format": "tflite"}, '`engine` is for engines; add `output="NAME.engine"`'),
        (
            {"output": Path("ds.onnx")},
            '`output` is ds.onnx, but `format="deepstream"` writes a folder; leave .onnx out',
        ),
        ({"output": Path("ds.ENGINE")}, "`output` is ds.ENGINE, but .* writes a folder; leave .ENGINE out"),
        ({"output": Path("ds.plan"), "weights": Path("x.onnx")}, "`output` is ds.plan, but .* writes a folder"),
        ({"format": "tflite"}, "`format` is 'tflite', expected None or deepstream"),
        ({"layers": 3, "weights": Path("x.onnx")}, "`layers` is decided in x.onnx already; export it again"),
        ({"weights": Path("x.onnx"), "calibration": Path(".")}, "`calibration` is decided in x.onnx already"),
    ],
)
def test_what_deepstream_can_not_run_is_refused_before_any_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ExportOptions(**{"weights": Path("r50.pth"), "format": "deepstream", **changes})


def test_a_folder_may_be_called_as_it_likes_but_not_as_a_model_file() -> None:
    for name in ("cells", "v1.0", "cells.onnx-deepstream", "."):
        options = ExportOptions(Path("r50.pth"), Path(name), format="deepstream")
        assert not options.is_engine


def test_the_default_folder_is_called_after_the_model(info: ArtifactInfo) -> None:
    of_checkpoint = ExportOptions(Path("models/r50.pth"), size=(480, 800), format="deepstream")
    assert of_checkpoint.default_output(info) == Path("models/r50-l3-480x800-fp32-deepstream")
    of_file = ExportOptions(Path("models/mine.onnx"), format="deepstream")
    assert of_file.default_output(info) == Path("models/mine-deepstream")


def test_int8_goes_with_fp16_as_in_engines() -> None:
    options = ExportOptions(Path("r50.pth"), precision="int8", calibration=Path("photos"), format="deepstream")
    assert (options.non_int8_precision, options.graph_opset) == ("fp16", 19)


def test_fp16_and_dynamic_files_have_the_types_that_nvinfer_and_the_parser_want(half_onnx: Path) -> None:
    graph = onnx.load(half_onnx).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    numbers = onnx.TensorProto
    assert types == {
        "images": numbers.FLOAT, "labels": numbers.INT32, "boxes": numbers.FLOAT, "scores": numbers.FLOAT,
    }  # fmt: skip


def objects_of(folder: Path, picture: NDArray[np.uint8], where: Path) -> tuple[Objects, Predictor]:
    """Run the folder's model as nvinfer does, and its own parser, built in a copy at `where`."""
    shutil.copytree(folder, where)
    parser = build_parser(where)
    predictor = Predictor(where / "model.onnx", threshold=0.0)
    batch = predictor.prepare(predictor.load([picture]))
    assert isinstance(batch, np.ndarray)
    runtime = open_runtime(where / "model.onnx")
    outputs = runtime.run({"images": batch})
    runtime.close()
    frame = {name: np.ascontiguousarray(array[0]) for name, array in outputs.items()}
    found = parser.parse(frame, [0.0] * len(predictor.class_names), predictor.input_size)
    assert isinstance(found, Objects)
    return found, predictor


def test_the_folders_own_parser_finds_what_the_predictor_does(
    folder: Path, picture: NDArray[np.uint8], tmp_path: Path
) -> None:
    found, predictor = objects_of(folder, picture, tmp_path / "built")
    expected = predictor.detect(picture)
    expected = expected[np.flatnonzero(expected.areas() > 0)]
    assert len(expected) > 250
    assert found.labels.tolist() == expected.labels.tolist()
    assert found.scores.tolist() == expected.scores.tolist()
    height, width = predictor.input_size
    scale = np.array([picture.shape[1] / width, picture.shape[0] / height] * 2)
    centres = np.concatenate([found.boxes[:, :2] + found.boxes[:, 2:] / 2, found.boxes[:, 2:]], axis=1)
    np.testing.assert_allclose(cxcywh_to_xyxy(centres) * scale, expected.boxes, atol=2e-3)


def test_the_command_says_what_to_type_next(
    small_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "for deepstream"
    assert main(["--weights", str(small_onnx), "--format", "deepstream", "--output", str(target)]) == 0
    text = capsys.readouterr().out
    assert "not verified" not in text
    assert f"wrote {target}: Makefile, README.md, config_infer.txt, labels.txt, model.onnx, parse_rtdetr.cpp" in text
    assert f"cd '{target}' && make" in text
    assert "gst-launch-1.0 -e filesrc location=VIDEO.mp4 ! " in text
    assert "! nvinfer config-file-path=config_infer.txt !" in text
    assert "batch" not in re.findall(r"^  rtdetr-export (.+)$", text, re.MULTILINE)[0], "the file's batch is fixed"
    (command,) = re.findall(r"^  rtdetr-export (.+)$", text, re.MULTILINE)
    command_line().parse_args(command.split())
    assert (
        command.split()[-1] == read_config((target / "config_infer.txt").read_text())["property"]["model-engine-file"]
    )
    assert (target / "model.onnx").read_bytes() == small_onnx.read_bytes()


def test_the_readme_gives_trtexec_the_shapes_of_a_dynamic_batch(info: ArtifactInfo) -> None:
    fixed = deepstream.make_files(info)["README.md"].decode()
    dynamic = deepstream.make_files(replace(info, batch=None))["README.md"].decode()
    assert "trtexec --onnx=model.onnx --stronglyTyped --noTF32 --saveEngine=model.onnx_b1_gpu0_fp32.engine" in fixed
    assert "--minShapes=images:1x3x480x800 --optShapes=images:8x3x480x800 --maxShapes=images:8x3x480x800" in dynamic


@pytest.mark.parametrize("batch", [1, None])
def test_both_commands_of_the_readme_build_the_same_engine(info: ArtifactInfo, batch: int | None) -> None:
    info = replace(info, batch=batch)
    readme = deepstream.make_files(info)["README.md"].decode()
    (own,) = re.findall(r"^    rtdetr-export (.+)$", readme, re.MULTILINE)
    (theirs,) = re.findall(r"^    (trtexec .+)$", readme, re.MULTILINE)
    assert f"  rtdetr-export {own}\n" in deepstream.next_steps(Path("cells"), info)
    arguments = command_line().parse_args(own.split())
    options = EngineOptions(max_batch=arguments.max_batch, opt_batch=arguments.opt_batch)
    options.check_batch(batch, "model.onnx")
    expected = set(trtexec_line(arguments.weights, arguments.output, options, info).split())
    assert set(theirs.split()) == expected - {"--profilingVerbosity=detailed"}


def mux_of(pipeline: str) -> dict[str, str]:
    """Return the properties of nvstreammux."""
    (text,) = re.findall(r" nvstreammux (.+?) ! nvinfer ", pipeline)
    return dict(item.split("=") for item in text.split())


@pytest.mark.parametrize("batch", [1, None])
def test_the_pipelines_batches_fit_the_engine_and_what_follows(info: ArtifactInfo, batch: int | None) -> None:
    readme = deepstream.make_files(replace(info, batch=batch))["README.md"].decode()
    drawn, detected = re.findall(r"^    (gst-launch-1.0 .+)$", readme, re.MULTILINE)
    assert "nvv4l2h264enc" in drawn
    assert mux_of(drawn)["batch-size"] == "1", "an encoder takes one frame at a time"
    assert not re.search(r"enc|osd|filesink", detected), "for GPUs without an encoder"
    assert detected.endswith(" ! fakesink sync=false")
    assert mux_of(detected)["batch-size"] == read_property(replace(info, batch=batch))["batch-size"]
    for pipeline in (drawn, detected):
        assert int(mux_of(pipeline)["batched-push-timeout"]) > 0, "the default waits for a full batch forever"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--raw-input"], "--format deepstream needs a float input, which nvinfer fills; export without --raw-input"),
        (["--batch", "2"], "--format deepstream does not go with a fixed batch of 2"),
        (
            ["--workspace", "2"],
            "--workspace is for engines, and --format deepstream writes none; the engine is built on",
        ),
        (["--device", "cuda"], "--device is for engines, and --format deepstream writes none"),
        (["--weights", "{onnx}", "--keep-log"], "--keep-log is for engines, and --format deepstream writes none"),
        (["--weights", "{engine}"], "a.engine is an engine already; expected an .onnx, .pth, .pt or .safetensors file"),
        (["--output", "ds.onnx"], "--output is ds.onnx, but --format deepstream writes a folder; leave .onnx out"),
        (["--format", "triton"], "invalid choice: 'triton'"),
        (["--output", "{file}"], "is not a folder"),
    ],
)
def test_wrong_input_gives_one_line(
    arguments: list[str], message: str, small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"file": tmp_path / "file", "engine": tmp_path / "a.engine", "onnx": tmp_path / "a.onnx"}
    for path in files.values():
        path.touch()
    line = ["--weights", str(small_checkpoint), "--format", "deepstream", *arguments]
    try:
        status: Any = main([item.format(**files) for item in line])
    except SystemExit as exit_:
        status = exit_.code
    error = capsys.readouterr().err
    assert status == 2
    assert message in error
    assert error.count("\n") == 1


def test_a_model_that_is_not_ours_is_refused(tmp_path: Path, small_onnx: Path) -> None:
    model = onnx.load(small_onnx)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "theirs.onnx")
    with pytest.raises(ExportError, match="theirs.onnx was not written by rtdetr-export, so nothing is known"):
        export(ExportOptions(tmp_path / "theirs.onnx", tmp_path / "out", format="deepstream"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs.onnx"]


def test_a_file_with_uint8_input_is_refused(dynamic_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="needs a float input, which nvinfer fills"):
        export(ExportOptions(dynamic_onnx, tmp_path / "out", format="deepstream"))
    assert list(tmp_path.iterdir()) == []


def test_an_engine_of_the_model_before_is_not_left_beside_the_new_one(small_onnx: Path, tmp_path: Path) -> None:
    options = ExportOptions(small_onnx, tmp_path, format="deepstream")
    export(options)
    engine = tmp_path / "model.onnx_b1_gpu0_fp32.engine"
    engine.touch()
    with pytest.raises(OutputError, match=f"{engine.name} was built from the file that .*model.onnx replaces, and"):
        export(options)
    engine.unlink()
    assert export(options).path == tmp_path / "model.onnx"


@pytest.mark.parametrize("name", ["model.onnx", "labels.txt"])
def test_no_input_is_overwritten(name: str, small_checkpoint: Path, small_onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    shutil.copy(small_onnx, tmp_path / "model.onnx")
    before = (tmp_path / name).read_bytes()
    options = ExportOptions(tmp_path / "model.onnx", tmp_path, format="deepstream")
    if name == "labels.txt":
        options = ExportOptions(small_checkpoint, tmp_path, format="deepstream", class_names=tmp_path / name)
    with pytest.raises(OutputError, match=f"{name} in `output` would overwrite the input"):
        export(options)
    assert (tmp_path / name).read_bytes() == before


def test_a_failed_export_leaves_nothing_behind(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> ExportResult:
        raise ExportError("disagrees")

    monkeypatch.setattr("rtdetr_export.pipeline.export_onnx", fail)
    with pytest.raises(ExportError, match="disagrees"):
        export(ExportOptions(small_checkpoint, tmp_path / "new" / "folder", format="deepstream"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_written_is_told(
    small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rtdetr_export.formats.package._move", full)
    with pytest.raises(OutputError, match=r"can't write .*out: No space left on device"):
        export(ExportOptions(small_onnx, tmp_path / "out", format="deepstream"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_writes_the_files_that_it_names(name: str, info: ArtifactInfo) -> None:
    form = FORMATS[name]
    make: Callable[[ArtifactInfo], Any] = form.make_files
    assert set(make(info)) == set(form.file_names)
    assert form.onnx not in form.file_names
