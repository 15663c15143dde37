"""The result object."""

from __future__ import annotations

import json
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from rtdetr_deploy import COCO_CATEGORY_IDS, COCO_NAMES, Detection, Detections, MissingPackageError, OptionError
from rtdetr_deploy.drawing import class_color


@pytest.fixture
def found() -> Detections:
    return Detections(
        boxes=np.array([[10, 20, 60, 80], [0, 0, 5, 5], [30, 30, 90, 89.5]], np.float32),
        scores=np.array([0.9, 0.6, 0.3], np.float32),
        labels=np.array([0, 79, 2], np.int64),
        names=("person", "toothbrush", "car"),
    )


def test_length_iteration_and_indexing(found: Detections) -> None:
    assert len(found) == 3
    assert [detection.name for detection in found] == ["person", "toothbrush", "car"]
    assert found[0] == Detection((10.0, 20.0, 60.0, 80.0), pytest.approx(0.9), 0, "person")  # type: ignore[arg-type]
    assert found[-1].name == "car"
    with pytest.raises(IndexError):
        found[3]
    assert found[1:].names == ("toothbrush", "car")
    assert found[found.scores > 0.5].names == ("person", "toothbrush")
    assert found[[2, 0]].labels.tolist() == [2, 0]
    assert len(found[[]]) == 0
    assert len(found[:0]) == 0


def test_filter_by_score_class_and_area(found: Detections) -> None:
    assert found.filter(threshold=0.6).names == ("person", "toothbrush")
    assert found.filter(classes=["car", 79]).names == ("toothbrush", "car")
    assert found.filter(classes="car").names == ("car",)
    assert found.filter(classes=79).names == ("toothbrush",)
    assert found.filter(min_area=100).names == ("person", "car")
    assert len(found.filter(classes=[])) == 0
    with pytest.raises(OptionError, match=r"`threshold` is 1.5, expected a number from 0 to 1"):
        found.filter(threshold=1.5)
    with pytest.raises(OptionError, match=r"`threshold` is '0.5', expected a number"):
        found.filter(threshold=cast("Any", "0.5"))


def test_dicts_and_json_hold_plain_numbers(found: Detections) -> None:
    assert json.loads(found.to_json()) == found.to_dicts()
    assert found.to_dicts()[0] == {
        "box": [10.0, 20.0, 60.0, 80.0],
        "score": pytest.approx(0.9),
        "label": 0,
        "name": "person",
    }


def test_coco_entries_have_width_and_height_and_the_json_ids(found: Detections) -> None:
    entries = found.to_coco(42, COCO_CATEGORY_IDS)
    assert [entry["category_id"] for entry in entries] == [1, 90, 3]
    assert entries[0]["bbox"] == [10.0, 20.0, 50.0, 60.0]
    assert {entry["image_id"] for entry in entries} == {42}
    assert [entry["category_id"] for entry in found.to_coco(1)] == [0, 79, 2]
    with pytest.raises(OptionError, match="label 79 has no category id; 3 ids were given"):
        found.to_coco(1, [1, 2, 3])


def test_coco_tables_are_those_of_the_data_set() -> None:
    assert len(COCO_NAMES) == len(set(COCO_NAMES)) == len(COCO_CATEGORY_IDS) == 80
    assert (COCO_NAMES[0], COCO_NAMES[11], COCO_NAMES[39], COCO_NAMES[79]) == (
        "person", "stop sign", "bottle", "toothbrush",
    )  # fmt: skip
    assert (COCO_CATEGORY_IDS[11], COCO_CATEGORY_IDS[39], COCO_CATEGORY_IDS[79]) == (13, 44, 90)


def test_supervision_gets_equal_numbers(found: Detections) -> None:
    pytest.importorskip("supervision")
    converted = found.to_supervision()
    assert np.array_equal(converted.xyxy, found.boxes)
    assert np.array_equal(converted.confidence, found.scores)
    assert np.array_equal(converted.class_id, found.labels)
    assert converted.data["class_name"].tolist() == list(found.names)


def test_missing_supervision_is_named(found: Detections, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingPackageError, match="pip install supervision"):
        found.to_supervision()


def test_parts_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(OptionError, match="don't belong together"):
        Detections(np.zeros((2, 4), np.float32), np.zeros(1, np.float32), np.zeros(2, np.int64), ("a", "b"))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (24, 24), (480, 640), (2000, 3000)])
def test_drawing_marks_the_box_at_any_size(size: tuple[int, int], found: Detections) -> None:
    image: NDArray[Any] = np.full((*size, 3), 128, np.uint8)
    one = Detections(
        np.array([[0.25 * size[1], 0.25 * size[0], 0.75 * size[1], 0.9 * size[0]]], np.float32),
        found.scores[:1],
        found.labels[:1],
        ("ein sehr langer Name, größer als das Bild",),
    )
    picture = np.asarray(one.draw(image))
    assert picture.shape == image.shape
    assert (picture == class_color(0)).all(axis=-1).any()
    assert (image == 128).all(), "the input must stay as it is"


def test_class_colors_are_stable_and_differ() -> None:
    assert class_color(3) == class_color(3)
    assert len({class_color(label) for label in range(80)}) == 80
