"""The generator of smear-like pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from rtdetr_train.data.coco import read_coco
from rtdetr_train.data.smears import CLASS_NAMES, draw_smear, write_smears


def test_a_seed_gives_one_picture_and_others_differ() -> None:
    one, again, other = (draw_smear(seed, 240, 320) for seed in (3, 3, 4))
    assert one.image.shape == (240, 320, 3)
    assert np.array_equal(one.image, again.image)
    assert np.array_equal(one.boxes, again.boxes)
    assert not np.array_equal(one.image, other.image)


def test_boxes_lie_inside_and_all_classes_occur() -> None:
    samples = [draw_smear(seed, 240, 320) for seed in range(8)]
    labels = np.concatenate([sample.labels for sample in samples])
    assert set(labels.tolist()) == {0, 1, 2}
    for sample in samples:
        assert (sample.boxes >= 0).all()
        assert (sample.boxes <= [320, 240, 320, 240]).all()
    sides = np.concatenate([sample.boxes[:, 2:] - sample.boxes[:, :2] for sample in samples]).max(axis=1)
    medians = [float(np.median(sides[labels == label])) for label in range(3)]
    assert medians[1] > medians[0] > medians[2]


def test_cells_differ_from_the_field_around_them() -> None:
    sample = draw_smear(5)
    covered = np.zeros(sample.image.shape[:2], bool)
    for x1, y1, x2, y2 in sample.boxes.astype(int):
        covered[y1:y2, x1:x2] = True
    field = sample.image[~covered].mean(axis=0)
    for x1, y1, x2, y2 in sample.boxes.astype(int):
        inside = sample.image[(y1 * 2 + y2) // 3 : (y1 + 2 * y2) // 3, (x1 * 2 + x2) // 3 : (x1 + 2 * x2) // 3]
        assert np.abs(inside.mean(axis=(0, 1)) - field).max() > 5


def test_written_smears_are_training_data(tmp_path: Path) -> None:
    path = write_smears(tmp_path / "smears", 2, first_seed=10)
    data = read_coco(path, path.parent)
    assert data.class_names == ("RBC", "WBC", "Platelets") == CLASS_NAMES
    assert len(data) == 2
    expected = draw_smear(11)
    loaded = data.load(1)
    assert np.abs(loaded.boxes - expected.boxes).max() < 1e-3
    assert loaded.labels.tolist() == expected.labels.tolist()
    assert np.abs(loaded.image.astype(float) - expected.image).mean() < 4
