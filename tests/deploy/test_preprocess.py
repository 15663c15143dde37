"""Resize, layout and scale."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rtdetr_deploy.images.frame import Frame
from rtdetr_deploy.images.preprocess import Resizer, prepare_batch


@pytest.mark.parametrize("resizer", ["opencv", "pillow"])
def test_float_and_uint8_input_hold_the_same_rgb_values(resizer: Resizer, picture: NDArray[np.uint8]) -> None:
    frame = Frame(picture, rgb=False)
    floats = prepare_batch([frame], 64, 96, resizer=resizer)
    raw = prepare_batch([frame], 64, 96, resizer=resizer, raw=True)
    assert floats.shape == (1, 3, 64, 96)
    assert floats.dtype == np.float32
    assert raw.shape == (1, 64, 96, 3)
    assert raw.dtype == np.uint8
    assert np.abs(floats - raw.transpose(0, 3, 1, 2) / 255.0).max() < 1e-6


def test_color_order_does_not_matter_once_prepared(picture: NDArray[np.uint8]) -> None:
    bgr = prepare_batch([Frame(picture, rgb=False)], 64, 64)
    rgb = prepare_batch([Frame(np.ascontiguousarray(picture[:, :, ::-1]), rgb=True)], 64, 64)
    assert np.array_equal(bgr, rgb)


def test_pillow_resizer_equals_the_training_resize(picture: NDArray[np.uint8]) -> None:
    expected = np.asarray(Image.fromarray(picture).resize((40, 30), Image.Resampling.BILINEAR))
    found = prepare_batch([Frame(picture, rgb=True)], 30, 40, resizer="pillow", raw=True)[0]
    assert np.array_equal(found, expected)


def test_images_of_the_right_size_are_not_touched(picture: NDArray[np.uint8]) -> None:
    found = prepare_batch([Frame(picture, rgb=True)], *picture.shape[:2], raw=True)[0]
    assert np.array_equal(found, picture)


def test_images_of_different_sizes_share_a_batch(picture: NDArray[np.uint8]) -> None:
    batch = prepare_batch([Frame(picture, rgb=True), Frame(picture[:10, :1].copy(), rgb=True)], 32, 64)
    assert batch.shape == (2, 3, 32, 64)
    assert batch.flags.c_contiguous
