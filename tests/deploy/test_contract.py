"""Files of other exporters, files that are not detectors, and files that are not models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402

from onnx_files import IMAGES, Value, write_model, write_raw_style, write_released_style  # noqa: E402
from rtdetr_deploy import ArtifactError, ArtifactInfo, MissingPackageError, OptionError, Predictor, ThirdPartyInfo  # noqa: E402
from rtdetr_deploy.artifacts.metadata import METADATA_KEY, read_metadata  # noqa: E402

BLACK = np.zeros((100, 200, 3), np.uint8)


def test_released_interface_gives_boxes_in_pixels(tmp_path: Path) -> None:
    with Predictor(write_released_style(tmp_path / "released.onnx"), 0.0) as predictor:
        found = predictor.detect(BLACK)
        assert found.boxes.tolist() == [[50.0, 50.0, 150.0, 100.0], [0.0, 0.0, 100.0, 50.0]]
        assert found.labels.tolist() == [1, 0]
        assert found.names == ("class 1", "class 0")
        assert isinstance(predictor.info, ThirdPartyInfo)
        assert (predictor.info.class_names, predictor.info.names_source) == ((), "unknown")
    with Predictor(tmp_path / "released.onnx", 0.5, class_names=["cat", "dog"]) as named:
        assert named.detect(BLACK).names == ("dog",)


def test_raw_interface_is_decoded(tmp_path: Path) -> None:
    logits = np.full((1, 5, 80), -9.0, np.float32)
    logits[0, 3, 15], logits[0, 3, 16], logits[0, 1, 0] = 2.0, 0.5, 1.0
    boxes = np.full((1, 5, 4), 0.5, np.float32)
    with Predictor(write_raw_style(tmp_path / "raw.onnx", logits, boxes)) as predictor:
        found = predictor.detect(BLACK)
    assert found.names == ("cat", "person", "dog")
    assert found.boxes[0].tolist() == [50.0, 25.0, 150.0, 75.0]


def test_raw_export_equals_the_export_with_detections(small_export: Any, small_onnx: Path, picture: Any) -> None:
    with Predictor(small_export("raw.onnx", raw_output=True), 0.0) as one, Predictor(small_onnx, 0.0) as other:
        found, expected = one.detect(picture), other.detect(picture)
    assert np.abs(found.scores - expected.scores).max() < 1e-5
    assert len(found) == len(expected) == 300


def test_an_open_image_size_must_be_chosen(tmp_path: Path) -> None:
    logits, boxes = np.zeros((1, 2, 3), np.float32), np.full((1, 2, 4), 0.5, np.float32)
    path = write_raw_style(tmp_path / "open.onnx", logits, boxes, size="S")
    with pytest.raises(ArtifactError, match=r"leaves its image size open; give `size`, its \(height, width\)"):
        Predictor(path)
    for size in ((0, 64), (64, -64), (64,)):
        with pytest.raises(OptionError, match=r"expected \(height, width\) in pixels"):
            Predictor(path, size=cast("Any", size))
    with Predictor(path, 0.0, size=(64, 32)) as predictor:
        assert predictor.input_size == (64, 32)
        assert len(predictor.detect(BLACK)) == 6


def test_a_size_that_the_file_does_not_take_is_refused(small_onnx: Path) -> None:
    with pytest.raises(ArtifactError, match="takes 128x160 images; `size` 64x64 doesn't fit"):
        Predictor(small_onnx, size=(64, 64))


def test_outputs_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    for logits, boxes in (((1, 2, 3), (1, 2, 5)), ((1, 4, 3), (1, 2, 4))):
        path = write_raw_style(tmp_path / "odd.onnx", np.zeros(logits, np.float32), np.zeros(boxes, np.float32))
        with pytest.raises(ArtifactError, match=r"outputs that don't belong together: logits .*; boxes must be"):
            Predictor(path)


def test_a_model_that_fails_while_running_is_named(tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["images", "shape"], ["boxes"])
    again = helper.make_node("Identity", ["boxes"], ["logits"])
    outputs: list[Value] = [(name, TensorProto.FLOAT, [1, "Q", 4]) for name in ("boxes", "logits")]
    path = write_model(tmp_path / "m.onnx", [IMAGES], outputs, [node, again], {"shape": np.array([1, 7, 4])})
    with Predictor(path) as predictor, pytest.raises(ArtifactError, match="m.onnx failed while running: "):
        predictor.detect(BLACK)


def test_unsupported_element_types_are_named(tmp_path: Path) -> None:
    node = helper.make_node("Cast", ["images"], ["boxes"], to=TensorProto.BFLOAT16)
    path = tmp_path / "m.onnx"
    write_model(path, [IMAGES], [("boxes", TensorProto.BFLOAT16, ["N", 3, 64, 96])], [node], {})
    with pytest.raises(ArtifactError, match=r"m.onnx has boxes of type tensor\(bfloat16\), which is not supported"):
        Predictor(path)


def test_nan_outputs_are_an_error_not_an_empty_result(tmp_path: Path) -> None:
    logits, boxes = np.full((1, 2, 3), np.nan, np.float32), np.full((1, 2, 4), 0.5, np.float32)
    with (
        Predictor(write_raw_style(tmp_path / "nan.onnx", logits, boxes)) as predictor,
        pytest.raises(ArtifactError, match="not finite"),
    ):
        predictor.detect(BLACK)


def _classifier(path: Path) -> None:
    node = helper.make_node("ReduceMean", ["images"], ["probabilities"], keepdims=0)
    write_model(path, [IMAGES], [("probabilities", TensorProto.FLOAT, [])], [node], {})


def _yolo(path: Path) -> None:
    node = helper.make_node("Identity", ["data"], ["output0"])
    write_model(
        path, [IMAGES], [("output0", TensorProto.FLOAT, [1, 84, 10])], [node], {"data": np.zeros((1, 84, 10), "f")}
    )


def _text_model(path: Path) -> None:
    node = helper.make_node("Identity", ["tokens"], ["logits"])
    write_model(path, [("tokens", TensorProto.INT64, [1, 9])], [("logits", TensorProto.INT64, [1, 9])], [node], {})


def _truncated(path: Path) -> None:
    write_released_style(path)
    path.write_bytes(path.read_bytes()[:200])


BAD_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "classifier": (_classifier, "not an RT-DETR detector: its outputs are probabilities"),
    "YOLO": (_yolo, r"its outputs are output0 float32\[1, 84, 10\]; expected images -> labels, boxes, scores"),
    "text model": (_text_model, r"its inputs are tokens int64\[1, 9\]"),
    "truncated": (_truncated, "is not a loadable ONNX model"),
    "empty": (lambda path: path.write_bytes(b""), "is empty; export the model again"),
    "text": (lambda path: path.write_text("not a model"), "is not a loadable ONNX model"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "missing": (lambda path: None, "does not exist"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_are_no_detectors_get_one_clear_line(case: str, tmp_path: Path) -> None:
    write, message = BAD_FILES[case]
    path = tmp_path / "bad.onnx"
    write(path)
    with pytest.raises(ArtifactError, match=message) as caught:
        Predictor(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.pth", "export it first: rtdetr-export --weights model.pth"),
        ("model.tflite", r"\.tflite is not a model format known here; expected one of: .onnx"),
        ("model", "its name has no suffix; expected one of: .onnx"),
    ],
)
def test_unknown_suffixes_say_what_to_do(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=message):
        Predictor(tmp_path / name)


def test_missing_onnx_runtime_is_named(small_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"needs onnxruntime, .*: pip install 'onnxruntime>="):
        Predictor(small_onnx, runtime="onnxruntime")


def test_a_device_that_is_not_there_is_never_replaced(small_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    with pytest.raises(OptionError, match="`device` is 'npu', but ONNX Runtime runs on cpu, cuda or cuda:1"):
        Predictor(small_onnx, device="npu", runtime="onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingPackageError, match=r"no CUDAExecutionProvider; .*pip install 'onnxruntime-gpu>="):
        Predictor(small_onnx, device="cuda")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    original = onnxruntime.InferenceSession

    asked: list[Any] = []

    def falls_back(path: str, options: Any, providers: list[Any]) -> Any:
        asked.extend(providers)
        return original(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", falls_back)
    for device in ("cuda", "CUDA:1"):
        with pytest.raises(ArtifactError, match="CUDAExecutionProvider could not be started"):
            Predictor(small_onnx, device=device)
    assert asked == ["CUDAExecutionProvider", ("CUDAExecutionProvider", {"device_id": 1})]


def test_metadata_of_the_wrong_kind_is_named(small_onnx: Path) -> None:
    info = Predictor(small_onnx).info
    assert isinstance(info, ArtifactInfo)
    for change, message in (
        ({"height": "640"}, "height is '640', expected int in a model"),
        ({"class_names": 5}, "class_names is 5, expected tuple"),
        ({"class_names": [1, 2]}, r"class_names is \(1, 2\), expected tuple"),
        ({"class_names": []}, "at least one class"),
        ({"verified": 1}, "verified is 1, expected bool"),
        ({"batch": 0}, "batch 0 is not a size"),
        ({"height": -1}, "input -1x160, batch 1 is not a size"),
        ({"height": 256}, "preprocess is for another input than 256x160"),
        ({"raw_input": True}, "preprocess is for another input than 128x160"),
        ({"outputs": "boxes"}, "outputs is 'boxes', expected 'detections' or 'raw'"),
    ):
        text = json.dumps({**json.loads(info.to_json()), **change})
        with pytest.raises(ArtifactError, match=message):
            read_metadata({METADATA_KEY: text}, "m.onnx")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ("[1]", "damaged"),
        ('{"format": 99}', "written in format 99, this version reads up to 1"),
        ('{"format": 1, "height": 3}', "lacks batch, class_names"),
    ],
)
def test_damaged_metadata_is_named(text: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        read_metadata({METADATA_KEY: text}, "m.onnx")


def test_names_that_are_not_as_many_as_the_labels_are_refused(small_onnx: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(str(small_onnx))
    (entry,) = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    entry.value = json.dumps({**json.loads(entry.value), "class_names": ["a", "b"]})
    onnx.save(model, str(tmp_path / "two.onnx"))
    with pytest.raises(ArtifactError, match=r"two.onnx has 3 classes, but its metadata names 2; export it again"):
        Predictor(tmp_path / "two.onnx")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["a", "b"]}, "odd.onnx has 3 classes, but its metadata names 2; export it again"),
        ({"class_names": list("abcdefghi")}, "odd.onnx has 3 classes, but its metadata names 9"),
        ({"max_detections": -5}, "odd.onnx has max_detections -5 in its metadata, expected at least 1"),
        ({"height": 256, "preprocess": None}, "odd.onnx has height 128, but its metadata says 256"),
        ({"batch": 4}, "odd.onnx has batch 1, but its metadata says 4"),
        ({"outputs": "detections"}, "odd.onnx has outputs raw, but its metadata says detections"),
    ],
)
def test_metadata_that_does_not_fit_the_file_is_refused(
    changes: dict[str, Any], message: str, small_export: Any, tmp_path: Path
) -> None:
    import onnx

    model = onnx.load(str(small_export("raw.onnx", raw_output=True)))
    (entry,) = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    entry.value = json.dumps({**json.loads(entry.value), **changes})
    onnx.save(model, str(tmp_path / "odd.onnx"))
    with pytest.raises(ArtifactError, match=message):
        Predictor(tmp_path / "odd.onnx")


@pytest.mark.parametrize("text", ['{"format": Infinity}', "[" * 100_000, '{"format": 1e999}'])
def test_metadata_that_no_number_or_stack_can_hold_is_named(text: str) -> None:
    with pytest.raises(ArtifactError, match=r"m.onnx has a damaged rtdetr_deploy metadata entry"):
        read_metadata({METADATA_KEY: text}, "m.onnx")
