"""The output parser for DeepStream, run on recorded outputs and on broken ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import ROOT, shared_folder
from deepstream_parser import FAILED, Array, Objects, Parser, build_parser
from rtdetr_deploy import Predictor
from rtdetr_deploy.artifacts.metadata import ArtifactInfo
from rtdetr_deploy.runtimes.protocol import Feed, TensorSpec
from rtdetr_export.formats import deepstream

RECORDED = Path(__file__).parent / "deepstream" / "blood_cells.npz"
"""Outputs (ONNX Runtime) of the shipped blood-cells-r18.pth at 288x288 for four pictures of BCCD's val list."""
SIZE = (288, 288)


@dataclass
class Recorded:
    """A runtime that returns what was recorded."""

    outputs_of_all: dict[str, Array]
    info: ArtifactInfo | None = None
    metadata: Any = None
    file: str = "recorded.onnx"
    name: str = "recorded"
    min_batch: int = 1
    max_batch: int | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("images", np.dtype(np.float32), (None, 3, *SIZE)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        every = self.outputs_of_all.items()
        return tuple(TensorSpec(name, array.dtype, (None, *array.shape[1:])) for name, array in every)

    def run(self, feed: Feed) -> dict[str, Array]:
        return {name: array[: len(feed["images"])] for name, array in self.outputs_of_all.items()}

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def recorded() -> dict[str, Array]:
    with np.load(RECORDED) as stored:
        return {name: stored[name] for name in ("labels", "boxes", "scores")}


@pytest.fixture(scope="module", params=["", "-DBEFORE_DEEPSTREAM_8"], ids=["now", "before-8"])
def parser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Parser:
    folder = tmp_path_factory.mktemp("parser")
    for name in deepstream.COPIED:
        content = files("rtdetr_export.formats").joinpath("deepstream_files").joinpath(name).read_bytes()
        (folder / name).write_bytes(content)
    return build_parser(folder, request.param)


def frame(**changes: Array) -> dict[str, Array]:
    """Return outputs of two rows: class 0 at the left, class 2 at the bottom."""
    outputs = {
        "labels": np.array([0, 2], np.int32),
        "boxes": np.array([[0.0, 0.25, 0.5, 0.75], [0.25, 0.5, 1.0, 1.0]], np.float32),
        "scores": np.array([0.9, 0.5], np.float32),
    }
    return {**outputs, **changes}


def objects(parser: Parser, outputs: dict[str, Array], thresholds: Any = (0.25,) * 3, **how: Any) -> Objects:
    found = parser.parse(outputs, thresholds, **how)
    assert isinstance(found, Objects), found
    return found


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.7])
def test_objects_of_recorded_outputs_are_the_predictors_detections(
    parser: Parser, recorded: dict[str, Array], threshold: float
) -> None:
    predictor = Predictor(Recorded(recorded), size=SIZE)
    expected = predictor.decode(recorded, [(480, 640)] * len(recorded["labels"]), threshold=threshold)
    assert sum(map(len, expected)) > 20
    for row, wanted in enumerate(expected):
        outputs = {name: np.ascontiguousarray(array[row]) for name, array in recorded.items()}
        found = objects(parser, outputs, (threshold,) * 3)
        assert found.labels.tolist() == wanted.labels.tolist()
        assert found.scores.tolist() == wanted.scores.tolist()
        corners = np.concatenate([found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]], axis=1)
        in_picture = corners * np.tile([640 / SIZE[1], 480 / SIZE[0]], 2)
        np.testing.assert_allclose(in_picture, wanted.boxes, atol=1e-3)
        assert not found.rotations.any()


def test_thresholds_are_those_of_each_class(parser: Parser, recorded: dict[str, Array]) -> None:
    thresholds = np.array([0.7, 0.2, 0.4], np.float32)
    for row in range(len(recorded["labels"])):
        outputs = {name: np.ascontiguousarray(array[row]) for name, array in recorded.items()}
        keep = outputs["scores"] >= thresholds[outputs["labels"]]
        found = objects(parser, outputs, thresholds)
        assert found.scores.tolist() == outputs["scores"][keep].tolist()
        assert found.labels.tolist() == outputs["labels"][keep].tolist()


def test_boxes_are_in_pixels_of_the_network(parser: Parser) -> None:
    found = objects(parser, frame(), size=(480, 640))
    assert found.boxes.tolist() == [[0, 120, 320, 240], [160, 240, 480, 240]]
    assert found.labels.tolist() == [0, 2]
    assert found.scores.tolist() == pytest.approx([0.9, 0.5])


def test_a_score_at_its_threshold_is_kept(parser: Parser) -> None:
    assert objects(parser, frame(), (0.95, 0.0, 0.5)).labels.tolist() == [2]


def test_other_layers_and_another_order_change_nothing(parser: Parser) -> None:
    outputs = {"embedding": np.zeros((4, 4, 4), np.float16), **dict(reversed(frame().items()))}
    assert objects(parser, outputs).labels.tolist() == [0, 2]


@pytest.mark.parametrize("labels", [[0, 3], [0, -1], [0, 2**31 - 1], [0, -(2**31)]])
def test_labels_outside_the_configured_classes_are_left_out(parser: Parser, labels: list[int]) -> None:
    assert objects(parser, frame(labels=np.array(labels, np.int32))).labels.tolist() == [0]


def test_no_configured_class_means_no_object(parser: Parser) -> None:
    assert objects(parser, frame(), ()).labels.tolist() == []


def test_rows_without_area_are_left_out_whatever_their_score(parser: Parser) -> None:
    boxes = np.array([[0.5, 0.5, 0.5, 0.9], [0.6, 0.2, 0.4, 0.9]], np.float32)
    assert objects(parser, frame(boxes=boxes), (0.0,) * 3).labels.tolist() == []
    padded = {"labels": np.zeros(2, np.int32), "boxes": np.zeros((2, 4), np.float32), "scores": np.zeros(2, np.float32)}
    assert objects(parser, padded, (0.0,) * 3).labels.tolist() == []


def test_boxes_beyond_the_input_are_cut_off_at_its_edges(parser: Parser) -> None:
    boxes = np.array([[-0.5, -1.0, 2.0, 0.5], [0.5, 0.5, 1.5, 3.0]], np.float32)
    assert objects(parser, frame(boxes=boxes), size=(100, 200)).boxes.tolist() == [[0, 0, 200, 50], [100, 50, 100, 50]]


def without(name: str) -> dict[str, Array]:
    return {other: array for other, array in frame().items() if other != name}


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, "output 'labels' is missing; is this the engine of another model?"),
        (without("labels"), "output 'labels' is missing"),
        (without("boxes"), "output 'boxes' is missing"),
        (without("scores"), "output 'scores' is missing"),
        (frame(labels=np.array([0, 2])), "output 'labels' has another type than INT32"),
        (frame(labels=np.array([0, 2], np.float32)), "output 'labels' has another type than INT32"),
        (frame(boxes=np.zeros((2, 4), np.int32)), "output 'boxes' has another type than FLOAT"),
        (frame(boxes=np.zeros((2, 4), np.float16)), "output 'boxes' is of type HALF; build the engine strongly typed"),
        (frame(scores=np.zeros(2, np.float16)), "output 'scores' is of type HALF; build the engine strongly typed"),
        (frame(labels=np.zeros((1, 2), np.int32)), "output 'labels' has dimensions (1, 2), expected (N)"),
        (frame(labels=np.zeros(0, np.int32)), "output 'labels' has dimensions (0), expected (N)"),
        (frame(boxes=np.zeros(8, np.float32)), "output 'boxes' has dimensions (8), expected (N, 4)"),
        (frame(boxes=np.zeros((2, 5), np.float32)), "output 'boxes' has dimensions (2, 5), expected (N, 4)"),
        (frame(boxes=np.zeros((1, 2, 4), np.float32)), "output 'boxes' has dimensions (1, 2, 4), expected (N, 4)"),
        (frame(boxes=np.array(1.0, np.float32)), "output 'boxes' has dimensions (), expected (N, 4)"),
        (
            frame(boxes=np.zeros((3, 4), np.float32)),
            "output 'boxes' has dimensions (3, 4), but the outputs before it have 2 rows",
        ),
        (frame(scores=np.zeros((2, 3), np.float32)), "output 'scores' has dimensions (2, 3), expected (N)"),
        (
            frame(scores=np.zeros(1, np.float32)),
            "output 'scores' has dimensions (1), but the outputs before it have 2 rows",
        ),
        (frame(scores=np.array([0.9, np.nan], np.float32)), "output 'scores' has numbers that are not finite"),
        (frame(scores=np.array([np.inf, 0.1], np.float32)), "output 'scores' has numbers that are not finite"),
        (frame(boxes=np.full((2, 4), np.nan, np.float32)), "output 'boxes' has numbers that are not finite"),
    ],
)
def test_wrong_outputs_fail_with_a_message_and_no_object(
    parser: Parser, outputs: dict[str, Array], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert parser.parse(outputs, (0.0,) * 3) == FAILED
    said = capfd.readouterr().err
    assert said.startswith("NvDsInferParseRtdetr: ")
    assert message in said
    assert said.count("\n") == 1


def test_an_output_that_was_left_on_the_gpu_fails(parser: Parser, capfd: pytest.CaptureFixture[str]) -> None:
    assert replace(parser, null=frozenset({"boxes"})).parse(frame(), (0.0,) * 3) == FAILED
    assert "output 'boxes' has no content on the host" in capfd.readouterr().err


@pytest.mark.slow
def test_the_recorded_outputs_are_those_of_the_shipped_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from rtdetr_export import ExportOptions, export

    pictures = shared_folder("data") / "bccd" / "val"
    weights = ROOT / "demo" / "blood-cells-r18.pth"
    result = export(ExportOptions(weights, tmp_path / "cells", format="deepstream"))
    predictor = Predictor(result.path)
    with np.load(RECORDED) as stored:
        for row, name in enumerate(stored["names"]):
            outputs = predictor.infer(predictor.prepare(predictor.load([pictures / str(name)])))
            sure = stored["scores"][row] > 0.3
            assert outputs["labels"][0][sure].tolist() == stored["labels"][row][sure].tolist()
            np.testing.assert_allclose(outputs["boxes"][0][sure], stored["boxes"][row][sure], atol=1e-3)
            np.testing.assert_allclose(outputs["scores"][0], stored["scores"][row], atol=1e-3)
