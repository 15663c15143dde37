"""Which images a reduced precision is calibrated on, and what becomes of files that can't be read."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx")
pytest.importorskip("torch")

from rtdetr_deploy import ImageError
from rtdetr_export.precision import reduce
from rtdetr_export.precision.reduce import choose_images


def _write(folder: Path, name: str, *, share: float = 1.0) -> Path:
    """Write a noisy JPEG, or the first `share` of one."""
    path = folder / name
    noise = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def test_files_that_can_not_be_read_are_left_out_with_one_warning(tmp_path: Path) -> None:
    good = [_write(tmp_path, "a.jpg"), _write(tmp_path, "d.jpg")]
    _write(tmp_path, "b.jpg", share=0.5)
    (tmp_path / "c.png").write_text("no picture")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert choose_images(tmp_path, 64, 64) == good
    assert len(told) == 1
    text = str(told[0].message)
    assert text.startswith("2 of 4 calibration images can't be read and are left out; the first: ")
    assert "b.jpg" in text
    assert "\n" not in text


def test_a_folder_of_good_images_warns_of_nothing(tmp_path: Path) -> None:
    good = [_write(tmp_path, f"{index}.jpg") for index in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_images(tmp_path, 64, 64) == good


def test_a_folder_without_a_readable_image_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, "a.jpg", share=0.5)
    with pytest.raises(ImageError, match="`calibration`: none of the images in .* can be read; the first: .*a.jpg"):
        choose_images(tmp_path, 64, 64)


def test_images_are_evenly_chosen_from_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [_write(tmp_path, f"{index}.jpg") for index in range(6)]
    monkeypatch.setattr(reduce, "MAX_IMAGES", 3)
    assert choose_images(tmp_path, 64, 64) == [files[0], files[2], files[4]]
