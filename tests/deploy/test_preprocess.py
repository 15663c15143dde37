"""Resize, layout and scale."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.images.frame import Frame
from rtdetr_deploy.images.preprocess import HostPreprocessor, Resizer, prepare_batch, to_image
from rtdetr_deploy.images.preprocess_spec import PreprocessSpec


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


def test_mean_std_and_scale_are_applied_in_the_model_s_channel_order(picture: NDArray[np.uint8]) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    resized = cv2.resize(picture, (96, 64), interpolation=cv2.INTER_LINEAR).astype(np.float64)  # BGR
    rgb = (resized[:, :, ::-1] / 255 - mean) / std
    found = HostPreprocessor(PreprocessSpec((64, 96), mean=mean, std=std))([Frame(picture, rgb=False)], 1)
    assert np.abs(found[0] - rgb.transpose(2, 0, 1)).max() < 1e-5
    bgr = (resized - (103.53, 116.28, 123.675)) / (57.375, 57.12, 58.395)
    spec = PreprocessSpec((64, 96), color="bgr", scale=1.0, mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395))
    for frame in (Frame(picture, rgb=False), Frame(np.ascontiguousarray(picture[:, :, ::-1]), rgb=True)):
        found = HostPreprocessor(spec)([frame], 1)
        assert np.abs(found[0] - bgr.transpose(2, 0, 1)).max() < 1e-5


def test_a_uint8_input_may_be_bgr(picture: NDArray[np.uint8]) -> None:
    spec = PreprocessSpec(picture.shape[:2], color="bgr", scale=1.0, layout="nhwc", dtype="uint8")
    assert np.array_equal(HostPreprocessor(spec)([Frame(picture, rgb=False)], 1)[0], picture)
    assert np.array_equal(HostPreprocessor(spec)([Frame(picture, rgb=True)], 1)[0], picture[:, :, ::-1])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rows_without_a_frame_are_zero_in_the_input_s_own_type(dtype: Any, picture: NDArray[np.uint8]) -> None:
    spec = PreprocessSpec((32, 64), mean=(0.5, 0.5, 0.5), dtype=dtype)
    batch = HostPreprocessor(spec)([Frame(picture, rgb=True)], 3)
    assert (batch.shape, batch.dtype) == ((3, 3, 32, 64), np.dtype(dtype))
    assert batch[0].any()
    assert not batch[1:].any()


@pytest.mark.parametrize(("resizer", "how"), [("opencv", cv2.INTER_CUBIC), ("pillow", Image.Resampling.BICUBIC)])
def test_the_filter_is_the_one_of_training(resizer: Resizer, how: int, picture: NDArray[np.uint8]) -> None:
    spec = PreprocessSpec((40, 50), filter="bicubic", scale=1.0, layout="nhwc", dtype="uint8")
    found = HostPreprocessor(spec, resizer)([Frame(picture, rgb=True)], 1)[0]
    if resizer == "opencv":
        expected = cv2.resize(picture, (50, 40), interpolation=how)
    else:
        expected = np.asarray(Image.fromarray(picture).resize((50, 40), how))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("resizer", ["opencv", "pillow"])
def test_letterboxed_images_keep_their_aspect_ratio_on_gray(resizer: Resizer, picture: NDArray[np.uint8]) -> None:
    spec = PreprocessSpec((64, 96), letterbox=True, pad=100, scale=1.0, layout="nhwc", dtype="uint8")
    wide, tall = picture[:30], picture[:, :30]
    batch = HostPreprocessor(spec, resizer)([Frame(np.ascontiguousarray(one), rgb=True) for one in (wide, tall)], 2)
    assert spec.window((30, 120)) == (0, 20, 96, 24)
    assert (batch[0, :20] == 100).all()
    assert (batch[0, 44:] == 100).all()
    assert np.abs(batch[0, 20:44].astype(int) - cv2.resize(wide, (96, 24))).max() <= (1 if resizer == "opencv" else 90)
    assert spec.window((90, 30)) == (37, 0, 21, 64)
    assert (batch[1, :, :37] == 100).all()
    assert (batch[1, :, 58:] == 100).all()


def test_boxes_go_back_to_where_the_image_lies_in_the_input() -> None:
    spec = PreprocessSpec((64, 96), letterbox=True)
    for height, width in ((30, 120), (90, 30), (64, 96), (500, 333), (1, 999)):
        left, top, wide, tall = spec.window((height, width))
        share = np.array([0.2, 0.1, 0.7, 0.9], np.float32)
        placed = share * (wide, tall, wide, tall) + (left, top, left, top)
        boxes = np.array([placed / (96, 64, 96, 64), [0, 0, 1, 1]], np.float32)
        expected = share * np.array([width, height, width, height])
        found = to_image(boxes, spec, (height, width))
        assert np.abs(found[0] - expected).max() < 1e-3 * max(height, width)
        assert found[1].tolist() == [0, 0, width, height]


def test_boxes_of_stretched_images_lie_inside_the_image() -> None:
    boxes = np.array([[-0.1, 0.2, 1.2, 0.9]], np.float32)
    found = to_image(boxes, PreprocessSpec.rtdetr((640, 640)), (100, 200))
    assert found[0] == pytest.approx([0.0, 20.0, 200.0, 90.0], abs=1e-4)
    assert found.dtype == np.float32


def test_only_what_rtdetr_wants_is_plain() -> None:
    for dtype in ("float32", "float16", "uint8"):
        assert PreprocessSpec.rtdetr((64, 64), dtype).is_plain
    assert PreprocessSpec((64, 64), pad=0).is_plain
    changes: list[Any] = [{"color": "bgr"}, {"scale": 1.0}, {"mean": (0.5,) * 3}, {"std": (0.5,) * 3}]
    for change in (*changes, {"filter": "bicubic"}, {"letterbox": True}):
        assert not PreprocessSpec((64, 64), **change).is_plain


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": (64, 0)}, r"`size` is \(64, 0\), expected \(height, width\) in pixels"),
        ({"size": (64,)}, r"`size` is \(64,\), expected tuple\[int, int\]"),
        ({"color": "lab"}, "`color` is 'lab', expected 'rgb' or 'bgr'"),
        ({"std": (1.0, 0.0, 1.0)}, "`scale`, `mean` and `std` must be finite, and `scale` and `std` larger than 0"),
        ({"mean": (float("nan"), 0.0, 0.0)}, "must be finite"),
        ({"pad": 256}, "`pad` is 256, expected a grey from 0 to 255"),
        ({"layout": "nhwc"}, "`layout` is nhwc and `dtype` float32, expected nchw floats or nhwc uint8"),
        ({"layout": "nhwc", "dtype": "uint8"}, "of a uint8 input are in the graph; expected 1, 0 and 1"),
    ],
)
def test_specs_that_mean_nothing_are_refused(values: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PreprocessSpec(**{"size": (64, 64), **values})


def test_the_cpu_has_no_resizer_of_the_gpu() -> None:
    with pytest.raises(OptionError, match='`resizer="cuda"` does not work on the CPU; choose opencv or pillow'):
        HostPreprocessor(PreprocessSpec.rtdetr((64, 64)), "cuda")
