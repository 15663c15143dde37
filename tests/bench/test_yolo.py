"""Third-party detectors: recognised by shape, suppressed in every way to the same boxes, placed in the image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnx")

from rtdetr_bench.cli import main
from rtdetr_bench.models.nms import METHODS, Candidates, NmsOptions, suppress
from rtdetr_bench.models.open import open_timed_model
from rtdetr_bench.models.rtdetr import RtDetrModel
from rtdetr_bench.models.yolo import YoloModel
from rtdetr_bench.models.yolo_layouts import recognize_yolo
from rtdetr_bench.options import InsertNmsOptions, RunOptions
from rtdetr_bench.tools.insert_nms import insert_nms
from rtdetr_deploy import ArtifactError, Detections, OptionError, open_runtime
from rtdetr_deploy.images.frame import Frame
from rtdetr_deploy.images.preprocess import HostPreprocessor
from rtdetr_deploy.runtimes import TensorSpec
from yolo_files import SIZE, channels, crowd, write_yolo

NMS = NmsOptions(threshold=0.25, iou=0.5)
BOX = np.array([[20.0, 30.0, 10.0, 16.0]], np.float32)
"""cxcywh in the input; corners 15, 22, 25, 38."""


def _output(layout: str) -> NDArray[np.float32]:
    """Return the output of a layout with one object: BOX, class 1 of 3, score 0.8."""
    if layout == "channels":
        return channels(BOX, np.array([[0.1, 0.8, 0.0]], np.float32))[1]
    if layout == "anchors":
        output = np.zeros((1, 252, 8), np.float32)
        output[0, 7] = [*BOX[0], 0.9, 0.1, 0.8 / 0.9, 0.0]
    elif layout == "selected":
        output = np.zeros((1, 300, 6), np.float32)
        output[0, 5] = [*(BOX[0] / SIZE), 0.8, 1]
    elif layout == "end-to-end":
        output = np.zeros((1, 300, 6), np.float32)
        output[0, 0] = [15, 22, 25, 38, 0.8, 1]
    else:
        output = np.zeros((1, 300, 7), np.float32)
        output[0, 3] = [*(BOX[0] / SIZE), 0.1, 0.8, 0.0]
    return output


def _detect(path: Path, image: NDArray[np.uint8], nms: NmsOptions = NMS) -> Detections:
    model = open_timed_model(path, RunOptions(nms))
    try:
        return model.call([image] * (model.batch or 1))[0][0]
    finally:
        model.close()


@pytest.mark.parametrize("layout", ["channels", "anchors", "end-to-end", "queries", "selected"])
def test_each_layout_is_recognised_and_placed_in_the_image(layout: str, tmp_path: Path) -> None:
    metadata = {"names": "{0: 'a', 1: 'b', 2: 'c'}"} | ({"head": "RTDETRDecoder"} if layout == "selected" else {})
    path = write_yolo(tmp_path / "a.onnx", ("output0", _output(layout)), metadata=metadata)
    image = np.zeros((64, 128, 3), np.uint8)  # halved, then 16 rows of grey above and below
    model = open_timed_model(path, RunOptions(NMS))
    assert isinstance(model, YoloModel)
    found, spans = model.call([image])
    assert set(spans) == {"load", "prepare", "infer", "decode"}
    assert model.needs_nms == (layout in ("channels", "anchors"))
    (detection,) = found[0]
    expected = (30, 22, 50, 38) if layout in ("queries", "selected") else (30, 12, 50, 44)  # RT-DETRs see it stretched
    assert detection.box == pytest.approx(expected, abs=0.01)
    assert (detection.label, detection.name) == (1, "b")
    assert detection.score == pytest.approx(0.8)
    model.close()


def test_ultralytics_own_rtdetr_is_told_from_end_to_end_by_its_metadata(tmp_path: Path) -> None:
    output = np.zeros((1, 300, 6), np.float32)
    path = write_yolo(tmp_path / "a.onnx", ("output0", output), metadata={"head": "RTDETRDecoder"})
    assert recognize_yolo(open_runtime(path), path.name).layout.name == "selected"
    plain = write_yolo(tmp_path / "b.onnx", ("output0", output))
    assert recognize_yolo(open_runtime(plain), plain.name).layout.name == "end-to-end"


@pytest.mark.parametrize(
    "outputs",
    [
        (("a", np.zeros((1, 1000), np.float32)),),
        (("a", np.zeros((1, 3, 8), np.float32)),),
        (("a", np.zeros((1, 197, 768), np.float32)),),
        (("a", np.zeros((1, 84, 8400), np.float32)), ("b", np.zeros((1, 84, 8400), np.float32))),
    ],
)
def test_what_is_not_a_detector_is_one_clear_line(
    outputs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_yolo(tmp_path / "classifier.onnx", *outputs)
    assert main(["--engine", str(path), "--runs", "1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rtdetr-bench: classifier.onnx is not a detector that is known here: it returns a (1")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"task": "pose"}, "is not a detector: its task is pose"),
        ({"names": "{0: 'person'}"}, "has 1 class name and 3 scores for each box"),
    ],
)
def test_other_tasks_of_yolos_are_refused(metadata: dict[str, str], message: str, tmp_path: Path) -> None:
    path = write_yolo(tmp_path / "a.onnx", ("output0", _output("channels")), metadata=metadata)
    with pytest.raises(ArtifactError, match=message):
        open_timed_model(path)


@pytest.mark.parametrize("layout", ["channels", "anchors"])
def test_files_of_open_size_and_with_other_outputs_are_recognised(layout: str) -> None:
    """Ultralytics' dynamic exports leave the number of boxes open; YOLOv7's have their raw maps besides."""
    shape = (None, 84, None) if layout == "channels" else (None, None, 85)
    images = TensorSpec("images", np.dtype(np.float32), (None, 3, None, None))
    maps = TensorSpec("maps", np.dtype(np.float32), (None, 3, 80, 80, 85))
    runtime = SimpleNamespace(
        inputs=(images,), outputs=(TensorSpec("output0", np.dtype(np.float32), shape), maps), metadata={}
    )
    signature = recognize_yolo(runtime, "a.onnx", (640, 640))
    assert (signature.layout.name, len(signature.class_names), signature.batch) == (layout, 80, None)
    with pytest.raises(ArtifactError, match="leaves its image size open; say which to use with `size`"):
        recognize_yolo(runtime, "a.onnx")


def test_an_rtdetr_that_cannot_be_used_says_why(small_onnx: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(str(small_onnx))
    del model.metadata_props[:]
    for axis in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_param = "open"
    onnx.save(model, str(tmp_path / "open.onnx"))
    with pytest.raises(ArtifactError, match="leaves its image size open"):
        open_timed_model(tmp_path / "open.onnx")


def test_letterbox_keeps_the_aspect_ratio_on_grey(tmp_path: Path) -> None:
    path = write_yolo(tmp_path / "a.onnx", ("output0", _output("channels")))
    model = open_timed_model(path, RunOptions(NMS))
    assert isinstance(model, YoloModel)
    frame = Frame(np.full((30, 60, 3), (10, 20, 200), np.uint8), rgb=False)
    batch = HostPreprocessor(recognize_yolo(open_runtime(path), path.name).preprocess)([frame], 1)
    assert batch.shape == (1, 3, SIZE, SIZE)
    assert batch[0, :, 0, 0] * 255 == pytest.approx([114] * 3)
    assert batch[0, :, 32, 32] * 255 == pytest.approx([200, 20, 10])  # RGB
    corners = np.array([[0, 16, 64, 48]], np.float32)
    _, to_image = model.outputs_of(frame)
    assert to_image(corners) == pytest.approx(np.array([[0, 0, 60, 30]]), abs=1e-4)
    assert to_image(corners + 500).tolist() == [[60, 30, 60, 30]]
    model.close()


def _slow(candidates: Candidates, iou: float) -> list[int]:
    """Greedy suppression, box by box, from its definition."""
    kept: list[int] = []
    for index in np.argsort(-candidates.scores, kind="stable"):
        a = candidates.boxes[index].astype(np.float64)
        for other in kept:
            b = candidates.boxes[other].astype(np.float64)
            width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
            shared = max(width, 0) * max(height, 0)
            union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared
            if candidates.labels[index] == candidates.labels[other] and shared / union > iou:
                break
        else:
            kept.append(int(index))
    return kept


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("iou", [0.3, 0.5, 0.7])
def test_every_way_of_suppression_keeps_what_the_definition_keeps(method: Any, iou: float, tmp_path: Path) -> None:
    path = write_yolo(tmp_path / "a.onnx", channels(*crowd()))
    runtime = open_runtime(path)
    signature = recognize_yolo(runtime, path.name)
    outputs = runtime.run({"images": np.zeros((1, 3, SIZE, SIZE), np.float32)})
    candidates = signature.find_candidates(outputs, 0, 0.25)
    expected = _slow(candidates, iou)
    assert 5 < len(expected) < len(candidates)
    kept = suppress(candidates, NmsOptions(0.25, iou, method=method))
    assert kept.tolist() == expected
    assert suppress(candidates, NmsOptions(0.25, iou, 5, method)).tolist() == expected[:5]
    assert len(suppress(signature.find_candidates(outputs, 0, 1.0), NMS)) == 0


@pytest.mark.parametrize(("layout", "opset"), [("channels", 17), ("channels", 11), ("anchors", 12)])
def test_nms_in_the_graph_gives_the_same_detections(layout: str, opset: int, tmp_path: Path) -> None:
    boxes, scores = crowd()
    if layout == "channels":
        output = channels(boxes, scores)[1]
    else:
        output = np.zeros((1, 252, 8), np.float32)
        output[0, : len(boxes)] = np.concatenate([boxes, np.full((len(boxes), 1), 0.9, np.float32), scores], axis=1)
    source = write_yolo(tmp_path / "a.onnx", ("output0", output), opset=opset)
    target = tmp_path / "b.onnx"
    insert_nms(InsertNmsOptions(source, target, nms=NMS))
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    one, other = _detect(source, image), _detect(target, image)
    assert len(one) > 5
    assert np.array_equal(one.labels, other.labels)
    assert np.abs(one.boxes - other.boxes).max() < 1e-3
    assert np.abs(one.scores - other.scores).max() < 1e-6
    model = open_timed_model(target)
    assert model.facts["NMS"] == "in the graph, threshold 0.25, IoU 0.5"
    model.close()
    with pytest.raises(ArtifactError, match="needs no NMS: its layout is inserted"):
        insert_nms(InsertNmsOptions(target, tmp_path / "c.onnx"))


def test_rows_of_a_batch_are_told_apart_in_the_graph(tmp_path: Path) -> None:
    first, second = channels(*crowd(seed=1))[1], channels(*crowd(seed=2))[1]
    source = write_yolo(tmp_path / "a.onnx", ("output0", np.concatenate([first, second])))
    insert_nms(InsertNmsOptions(source, tmp_path / "b.onnx", nms=NMS))
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    found = []
    for path in (source, tmp_path / "b.onnx"):
        model = open_timed_model(path, RunOptions(NMS))
        found.append(model.call([image, image])[0])
        model.close()
    for row in range(2):
        assert np.abs(found[0][row].boxes - found[1][row].boxes).max() < 1e-3
    assert len(found[0][0]) != len(found[0][1])


def test_the_plugin_of_tensorrt_is_described_as_it_wants(tmp_path: Path) -> None:
    import onnx

    source = write_yolo(tmp_path / "a.onnx", channels(*crowd()))
    insert_nms(InsertNmsOptions(source, tmp_path / "b.onnx", "tensorrt", replace(NMS, max_detections=100)))
    graph = onnx.load(str(tmp_path / "b.onnx")).graph
    plugin = graph.node[-1]
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in plugin.attribute}
    assert plugin.op_type == "EfficientNMS_TRT"
    assert attributes["score_threshold"] == pytest.approx(0.25)
    assert attributes["iou_threshold"] == pytest.approx(0.5)
    assert (attributes["max_output_boxes"], attributes["box_coding"]) == (100, 0)
    shapes = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in graph.output}
    assert shapes == {"num_dets": [1, 1], "det_boxes": [1, 100, 4], "det_scores": [1, 100], "det_classes": [1, 100]}


def test_outputs_of_the_plugin_are_read(tmp_path: Path) -> None:
    boxes, scores = np.zeros((1, 10, 4), np.float32), np.zeros((1, 10), np.float32)
    boxes[0, 0], scores[0, 0] = [15, 22, 25, 38], 0.8
    boxes[0, 1], scores[0, 1] = [1, 2, 3, 4], 0.9  # beyond num_dets
    path = write_yolo(
        tmp_path / "a.onnx",
        ("num_dets", np.array([[1]], np.int32)), ("det_boxes", boxes), ("det_scores", scores),
        ("det_classes", np.ones((1, 10), np.int32)),
    )  # fmt: skip
    (detection,) = _detect(path, np.zeros((SIZE, SIZE, 3), np.uint8))
    assert detection.box == pytest.approx((15, 22, 25, 38))
    assert detection.label == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 1.5}, "`threshold` is 1.5, expected a number from 0 to 1"),
        ({"iou": -0.1}, "`iou` is -0.1"),
        ({"max_detections": 0}, "`max_detections` is 0"),
        ({"method": "fast"}, "`method` is 'fast', expected one of cv2, numpy"),
    ],
)
def test_thresholds_outside_their_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        NmsOptions(**changes)


def test_inserting_is_refused_where_it_makes_no_sense(small_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a detector that is known here"):
        insert_nms(InsertNmsOptions(small_onnx, tmp_path / "a.onnx"))
    with pytest.raises(OptionError, match=r"inserted into .onnx files; got a.engine"):
        insert_nms(InsertNmsOptions(Path("a.engine"), tmp_path / "a.onnx"))
    with pytest.raises(OptionError, match="`kind` is 'cuda', expected one of onnx, tensorrt"):
        InsertNmsOptions(small_onnx, tmp_path / "a.onnx", "cuda")  # type: ignore[arg-type]


def test_nms_is_inserted_into_files_of_open_size_too(tmp_path: Path) -> None:
    import onnx

    source = write_yolo(tmp_path / "a.onnx", channels(*crowd()))
    model = onnx.load(str(source))
    for axis in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_param = "open"
    onnx.save(model, str(source))
    command = ["insert-nms", "--engine", str(source), "--output", str(tmp_path / "b.onnx")]
    assert main(command) == 2
    assert main([*command, "--size", str(SIZE)]) == 0
    assert recognize_yolo(open_runtime(tmp_path / "b.onnx"), "b.onnx", (SIZE, SIZE)).layout.name == "inserted"


def test_rtdetr_files_are_no_yolos(small_onnx: Path) -> None:
    model = open_timed_model(small_onnx)
    assert isinstance(model, RtDetrModel)
    assert model.facts["model"] == "custom, 2 layers"
    model.close()
