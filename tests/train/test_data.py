"""COCO jsons as training samples, augmentation, and batches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from rtdetr_deploy.errors import OptionError  # noqa: E402
from rtdetr_deploy.evaluate.coco import read_annotations  # noqa: E402
from rtdetr_train.data.augment import Augmentation, crop_by_iou, flip_horizontally, transpose, zoom_out  # noqa: E402
from rtdetr_train.data.coco import Sample, collate, read_coco  # noqa: E402
from rtdetr_train.data.loader import EpochBatches, load_epoch, make_augmentation  # noqa: E402
from rtdetr_train.options import TrainOptions  # noqa: E402


def test_labels_count_categories_by_id(squares: tuple[Path, Path]) -> None:
    found = read_coco(*squares)
    assert found.class_names == ("blue", "red")
    assert len(found) == 5
    assert found.load(0).labels.tolist() == [0]
    assert found.load(4).boxes.shape == (0, 4)


def test_missing_images_and_other_files_get_one_clear_line(squares: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"are not in .* \(5 of 5; the first is 1.png\)"):
        read_coco(squares[0], tmp_path)
    with pytest.raises(OptionError, match="can't read"):
        read_coco(tmp_path / "none.json", tmp_path)
    other = tmp_path / "other.json"
    other.write_text("[]")
    with pytest.raises(OptionError, match="is not a COCO json"):
        read_coco(other, tmp_path)
    other.write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(OptionError, match="holds no images"):
        read_coco(other, tmp_path)
    content = json.loads(squares[0].read_text())
    for key, what in (("annotations", "annotations"), ("categories", "categories")):
        other.write_text(json.dumps({**content, key: []}))
        with pytest.raises(OptionError, match=f"holds no {what}"):
            read_coco(other, squares[1])


def test_boxes_too_small_to_learn_and_crowds_are_left_out_with_their_number(
    squares: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads(squares[0].read_text())
    path = tmp_path / "small.json"
    content["annotations"][0]["bbox"][2] = 0.5
    content["annotations"][1]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    found = read_coco(path, squares[1])
    assert sum(len(labels) for _, labels in found.objects) == len(content["annotations"]) - 2
    assert caplog.messages == [
        f"{path}: boxes smaller than 1 pixel are left out (1 of {len(content['annotations']) - 1})"
    ]
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(OptionError, match="has no box to learn: all are crowd regions or smaller than 1 pixel"):
        read_coco(path, squares[1])


def test_training_and_evaluation_refuse_the_same_jsons(squares: tuple[Path, Path], tmp_path: Path) -> None:
    content = json.loads(squares[0].read_text())
    content["annotations"][0]["category_id"] = 77
    path = tmp_path / "unknown.json"
    path.write_text(json.dumps(content))
    messages = []
    for read in (lambda: read_coco(path, squares[1]), lambda: read_annotations(path, squares[1], ("blue", "red"))):
        with pytest.raises(OptionError, match=r"unknown category_id \(1 of \d+; the first is 77\)") as caught:
            read()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def _squares(sample: Sample) -> list[tuple[int, ...]]:
    """Return the bounding box of the marked pixels."""
    y, x = np.nonzero((sample.image == 255).all(axis=-1))
    return [(x.min(), y.min(), x.max() + 1, y.max() + 1)]


@pytest.fixture
def marked() -> Sample:
    image = np.zeros((60, 80, 3), np.uint8)
    image[10:30, 20:50] = 255
    return Sample(image, np.array([[20, 10, 50, 30]], np.float32), np.array([1]))


def test_boxes_follow_the_pixels_through_every_geometric_operation(marked: Sample) -> None:
    rng = np.random.default_rng(0)
    samples = [flip_horizontally(marked), transpose(marked), transpose(flip_horizontally(transpose(marked)))]
    samples += [zoom_out(marked, rng, 3.0) for _ in range(10)] + [crop_by_iou(marked, rng) for _ in range(30)]
    assert len({sample.image.shape for sample in samples}) > 10
    for sample in samples:
        assert np.abs(sample.boxes - _squares(sample)).max() <= 1.0


def test_augmented_samples_are_usable_and_reproducible(marked: Sample) -> None:
    augment = Augmentation(any_orientation=True)
    for seed in range(60):
        sample = augment(marked, np.random.default_rng(seed))
        height, width = sample.image.shape[:2]
        assert sample.image.dtype == np.uint8
        assert ((sample.boxes[:, 2:] - sample.boxes[:, :2]) >= 1).all()
        assert (sample.boxes >= 0).all()
        assert (sample.boxes <= [width, height, width, height]).all()
        again = augment(marked, np.random.default_rng(seed))
        assert np.array_equal(sample.image, again.image)
        assert np.array_equal(sample.boxes, again.boxes)


def test_last_epochs_are_plain(train_options: TrainOptions, marked: Sample) -> None:
    options = replace(train_options, epochs=5, no_aug_epochs=2)
    before, after = make_augmentation(options, 2), make_augmentation(options, 3)
    shapes = {before(marked, np.random.default_rng(seed)).image.shape for seed in range(20)}
    assert len(shapes) > 5
    for seed in range(20):
        sample = after(marked, np.random.default_rng(seed))
        assert sample.image.shape == marked.image.shape
        assert set(np.unique(sample.image)) == {0, 255}


def test_empty_and_degenerate_boxes_go_through() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    boxes = np.array([[5, 5, 5, 20], [50, 50, 60, 60], [1, 1, 9, 9]], np.float32)
    sample = Sample(image, boxes, np.array([0, 1, 2])).keep_usable()
    assert sample.labels.tolist() == [2]
    nothing = Sample(image, boxes[:0], sample.labels[:0])
    for seed in range(20):
        assert len(Augmentation()(nothing, np.random.default_rng(seed)).boxes) == 0
    images, targets = collate([sample, nothing], 64, 96)
    assert images.shape == (2, 3, 64, 96)
    assert targets.boxes.tolist() == [pytest.approx([0.125, 0.125, 0.2, 0.2])]
    assert targets.xyxy.tolist() == [pytest.approx([0.025, 0.025, 0.225, 0.225])]
    assert (targets.labels.tolist(), targets.counts, len(targets)) == ([2], (1, 0), 1)


def test_batches_do_not_depend_on_workers_and_cover_every_image(
    squares: tuple[Path, Path], train_options: TrainOptions
) -> None:
    found = read_coco(*squares)
    alone = list(load_epoch(found, train_options, epoch=3))
    together = list(load_epoch(found, replace(train_options, workers=2), epoch=3))
    assert len(alone) == 3
    for (images, _), (others, _) in zip(alone, together, strict=True):
        assert torch.equal(images, others)
    batches = EpochBatches(found, train_options, epoch=3)
    assert set(batches._order.tolist()) == set(range(5))
    sizes = {tuple(images.shape[2:]) for epoch in range(4) for images, _ in load_epoch(found, train_options, epoch)}
    assert sizes <= {(64, 64), (96, 96), (128, 128)}
    assert len(sizes) > 1


def test_both_sides_of_an_oblong_input_vary_alike(squares: tuple[Path, Path], train_options: TrainOptions) -> None:
    oblong = replace(train_options, size=(96, 160))
    found = read_coco(*squares)
    sizes = {tuple(images.shape[2:]) for epoch in range(4) for images, _ in load_epoch(found, oblong, epoch)}
    assert len(sizes) > 1
    assert sizes <= {(64, 128), (96, 160), (128, 192)}
