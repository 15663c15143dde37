"""COCO jsons: what is taken, left out and refused, and that the numbering of objects does not change the figures."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rtdetr_deploy.detections import Detections
from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.evaluate.coco import average_precision, read_annotations, score_results
from rtdetr_deploy.evaluate.coco_json import read_coco_json

NAMES = ("red", "white")
Content = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in (1, 2, 3):
        Image.new("RGB", (200, 100)).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.fixture
def content() -> Content:
    """Three images of 200 x 100 pixels with eight objects each, two categories."""
    rng = np.random.default_rng(0)
    annotations = [
        {
            "id": index + 1, "image_id": 1 + index % 3, "category_id": 4 + index % 2, "iscrowd": 0, "area": 600.0,
            "bbox": [float(rng.integers(0, 160)), float(rng.integers(0, 60)), 30.0, 20.0],
        }
        for index in range(24)
    ]  # fmt: skip
    images = [{"id": number, "file_name": f"{number}.png", "width": 200, "height": 100} for number in (1, 2, 3)]
    categories = [{"id": 4, "name": "red"}, {"id": 5, "name": "white"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def _write(content: Content, folder: Path) -> Path:
    path = folder / "val.json"
    path.write_text(json.dumps(content))
    return path


def _detections(content: Content) -> list[dict[str, Any]]:
    """Return the objects' boxes, each moved a little and scored at random."""
    rng = np.random.default_rng(1)
    return [
        {
            "image_id": thing["image_id"],
            "category_id": thing["category_id"],
            "bbox": (np.array(thing["bbox"]) + rng.uniform(-4, 4, 4) * (1, 1, 0, 0)).tolist(),
            "score": float(rng.random()),
        }
        for thing in content["annotations"]
    ]


def _restart_per_image(things: list[dict[str, Any]]) -> None:
    counts: dict[int, int] = {}
    for thing in things:
        thing["id"] = counts[thing["image_id"]] = counts.get(thing["image_id"], 0) + 1


def _forget(things: list[dict[str, Any]]) -> None:
    for thing in things:
        del thing["id"]


def _number(rule: Callable[[int], Any]) -> Callable[[list[dict[str, Any]]], None]:
    def change(things: list[dict[str, Any]]) -> None:
        for index, thing in enumerate(things):
            thing["id"] = rule(index)

    return change


NUMBERINGS: dict[str, Callable[[list[dict[str, Any]]], None]] = {
    "from 1": _number(lambda index: index + 1),
    "from 0": _number(lambda index: index),
    "restarting in each image": _restart_per_image,
    "all equal": _number(lambda index: 5),
    "negative": _number(lambda index: -1 - index),
    "from 2**63": _number(lambda index: 2**63 + index),
    "text": _number(lambda index: f"a{index}"),
    "missing": _forget,
}


def test_average_precision_does_not_depend_on_annotation_ids(
    content: Content, folder: Path, recwarn: pytest.WarningsRecorder
) -> None:
    pytest.importorskip("faster_coco_eval")
    found = _detections(content)
    metrics = {}
    for name, number in NUMBERINGS.items():
        number(content["annotations"])
        metrics[name] = score_results(found, read_annotations(_write(content, folder), folder, NAMES), NAMES)
    assert 0.3 < metrics["from 1"].metrics["AP"] < 0.8
    assert all(accuracy == metrics["from 1"] for accuracy in metrics.values()), metrics
    assert not [str(warning.message) for warning in recwarn if "not unique" in str(warning.message)]


def test_missing_area_is_that_of_the_box_and_missing_iscrowd_is_0(content: Content, folder: Path) -> None:
    for thing in content["annotations"]:
        del thing["area"], thing["iscrowd"]
    annotations = read_annotations(_write(content, folder), folder, NAMES).content["annotations"]
    assert [(thing["id"], thing["area"], thing["iscrowd"]) for thing in annotations[:2]] == [(1, 600, 0), (2, 600, 0)]


def test_objects_that_cannot_be_found_and_copies_are_left_out_with_their_numbers(
    content: Content, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    things = content["annotations"]
    things += [{**things[0], "bbox": box} for box in ([5, 5, 0, 9], [5, 5, 9, 0], [300, 5, 9, 9], [-20, 5, 9, 9])]
    things += [{**things[3], "id": 99}]
    with caplog.at_level(logging.WARNING):
        truth = read_coco_json(_write(content, folder), folder)
    assert len(truth.objects) == 24
    assert caplog.messages == [
        f"{folder / 'val.json'}: some of the 29 annotations are left out "
        "(without area: 2, outside of their image: 2, exact copies of another: 1)"
    ]


def test_the_image_tells_its_size_where_the_json_does_not(
    content: Content, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for image in content["images"]:
        del image["width"], image["height"]
    content["annotations"][0]["bbox"] = [300, 5, 9, 9]
    (folder / "2.png").write_bytes(b"damaged")
    assert len(read_coco_json(_write(content, folder), folder).objects) == 23
    assert "outside of their image: 1" in caplog.text


def test_a_stale_size_in_the_json_costs_no_object(
    content: Content, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = len(read_coco_json(_write(content, folder), folder).objects)
    for image in content["images"]:
        image.update(width=40, height=20)
    assert len(read_coco_json(_write(content, folder), folder).objects) == expected
    assert "width and height of 3 images are not those of their files" in caplog.text


def test_a_json_that_holds_everything_twice_counts_once(content: Content, folder: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    found = _detections(content)
    once = score_results(found, read_annotations(_write(content, folder), folder, NAMES), NAMES)
    content["annotations"] = content["annotations"] * 2
    assert score_results(found, read_annotations(_write(content, folder), folder, NAMES), NAMES) == once


def test_a_photograph_that_lies_turned_in_the_json_keeps_its_objects(content: Content, folder: Path) -> None:
    for image in content["images"]:
        image.update(width=100, height=200)
    assert len(read_coco_json(_write(content, folder), folder).objects) == 24


def test_ids_written_as_text_or_floats_are_numbers(content: Content, folder: Path) -> None:
    content["images"][0]["id"] = "1"
    content["categories"][0]["id"] = 4.0
    truth = read_coco_json(_write(content, folder), folder)
    assert truth.images[0][0] == 1
    assert truth.categories == ((4, "red"), (5, "white"))


def _first(**changes: Any) -> Callable[[Content], None]:
    return lambda content: content["annotations"][0].update(changes)


NOT_COCO = r"val.json is not a COCO json with images, annotations and categories: "
NAN, INFINITE = float("nan"), float("inf")
BAD_JSONS: dict[str, tuple[Callable[[Content], Any], str]] = {
    "no annotations": (lambda content: content.pop("annotations"), NOT_COCO + "it has no list called annotations"),
    "numbers for images": (lambda content: content.update(images=[1]), "entry 0 of images is not an object in braces"),
    "three numbers": (_first(bbox=[1, 2, 3]), "the bbox of entry 0 of annotations is not four finite numbers"),
    "five numbers": (_first(bbox=[1, 2, 3, 4, 5]), "is not four finite numbers"),
    "text": (_first(bbox=["a", "b", "c", "d"]), "is not four finite numbers"),
    "no box": (_first(bbox=None), "is not four finite numbers"),
    "NaN": (_first(bbox=[1, 2, NAN, 4]), "is not four finite numbers"),
    "infinite": (_first(bbox=[1, 2, INFINITE, 4]), "is not four finite numbers"),
    "huge": (_first(bbox=[1, 2, 10**400, 4]), "is not four finite numbers"),
    "negative side": (_first(bbox=[9, 9, -3, 4]), "the bbox of entry 0 of annotations has a negative side"),
    "NaN area": (_first(area=NAN), "the area of entry 0 of annotations is not a finite number"),
    "iscrowd": (_first(iscrowd="no"), "iscrowd of entry 0 of annotations is neither 0 nor 1"),
    "image id": (_first(image_id="one"), "entry 0 of annotations has no whole number below 2.*63 as image_id"),
    "half an id": (_first(category_id=4.5), "has no whole number below 2.*63 as category_id"),
    "true": (_first(category_id=True), "has no whole number"),
    "huge id": (lambda content: content["categories"][0].update(id=2**63), "has no whole number below"),
    "no file name": (lambda content: content["images"][0].pop("file_name"), "entry 0 of images has no file_name"),
    "no category name": (
        lambda content: content["categories"][0].update(name=None),
        "entry 0 of categories has no name",
    ),
    "image twice": (
        lambda content: content["images"].append(content["images"][0]),
        "lists image id 1 more than once; every image needs an id of its own",
    ),
    "category twice": (
        lambda content: content["categories"].append({"id": 4, "name": "blue"}),
        "lists category id 4 more than once",
    ),
    "unknown category": (_first(category_id=77), r"unknown category_id \(1 of 24; the first is 77\)"),
    "unknown image": (_first(image_id=9), r"unknown image_id \(1 of 24; the first is 9\)"),
    "shares": (
        lambda content: [thing.update(bbox=[0.1, 0.2, 0.3, 0.4]) for thing in content["annotations"]],
        r"no box of .* reaches beyond 1: expected .* in pixels",
    ),
    "all outside": (
        lambda content: [thing.update(bbox=[900, 900, 9, 9]) for thing in content["annotations"]],
        r"none of the 24 annotations of .* can be used \(outside of their image: 24\)",
    ),
    "long name": (
        lambda content: content["images"][0].update(file_name="a" * 300),
        r"images of .* are not in .* \(1 of 3; the first is aaa",
    ),
}


@pytest.mark.parametrize("case", BAD_JSONS)
def test_jsons_that_do_not_fit_get_one_clear_line(case: str, content: Content, folder: Path) -> None:
    change, message = BAD_JSONS[case]
    change(content)
    with pytest.raises(OptionError, match=message) as caught:
        read_coco_json(_write(content, folder), folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "is not a COCO json: nested too deeply"),
        ("{", "is not a COCO json: Expecting"),
        ("[]", "its content is not an object in braces"),
        ('{"images": ' + "9" * 5000 + "}", "is not a COCO json"),
    ],
)
def test_files_that_are_not_json_objects_get_one_clear_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "val.json").write_text(text)
    with pytest.raises(OptionError, match=message):
        read_coco_json(tmp_path / "val.json", tmp_path)
    (tmp_path / "val.json").write_bytes(b"\xff\xfe")
    with pytest.raises(OptionError, match="can't read annotations"):
        read_coco_json(tmp_path / "val.json", tmp_path)


def test_categories_of_one_name_are_matched_by_order_or_refused(content: Content, folder: Path) -> None:
    content["categories"][1]["name"] = "red"
    path = _write(content, folder)
    assert read_annotations(path, folder, ("red", "red")).category_ids == (4, 5)
    with pytest.raises(OptionError, match="several classes called 'red'"):
        read_annotations(path, folder, ("red",))


def test_a_result_is_needed_for_every_image(content: Content, folder: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    truth = read_annotations(_write(content, folder), folder, NAMES)
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), ())
    for count, told in ((0, "0"), (2, "2"), (4, "more"), (9, "more")):
        with pytest.raises(OptionError, match=f"`found` holds {told} results, expected 3, one per image"):
            average_precision([nothing] * count, truth, NAMES)
    assert average_precision([nothing] * 3, truth, NAMES).ap == 0.0


def test_detections_are_evaluated_as_their_coco_results_are(content: Content, folder: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    truth = read_annotations(_write(content, folder), folder, NAMES)
    entries = _detections(content)
    found = []
    for number, _ in truth.images:
        mine = sorted((e for e in entries if e["image_id"] == number), key=lambda e: -float(e["score"]))
        boxes = np.array([e["bbox"] for e in mine], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([truth.category_ids.index(e["category_id"]) for e in mine], np.int64)
        scores = np.array([e["score"] for e in mine], np.float32)
        found.append(Detections(boxes, scores, labels, tuple(NAMES[label] for label in labels)))
    expected = score_results(entries, truth, NAMES)
    assert average_precision(iter(found), truth, NAMES).metrics == pytest.approx(expected.metrics, abs=1e-6)
