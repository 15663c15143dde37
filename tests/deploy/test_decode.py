"""JPEG files that are decoded small: which, how small, and what stays as it is."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from fake_runtime import SIDE, FakeRuntime
from rtdetr_deploy import ImageError, OptionError, Predictor
from rtdetr_deploy.images.decode import ORIENTATION
from rtdetr_deploy.images.frame import Frame, load_frame
from rtdetr_deploy.stream import Found


def _picture(width: int = 160, height: int = 96) -> Image.Image:
    """A smooth picture: red grows to the right, green downwards."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 * x / width, 255 * y / height, np.full_like(x, 90)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def _encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95} | options if kind == "JPEG" else options))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "enough", "reduction"),
    [
        ((160, 96), (12, 20), 8),
        ((160, 96), (13, 20), 4),
        ((160, 96), (12, 21), 4),
        ((160, 96), (48, 80), 2),
        ((160, 96), (49, 80), 1),
        ((164, 96), (12, 20), 4),  # 8 doesn't divide it
        ((161, 96), (12, 20), 1),
    ],
)
def test_a_jpeg_is_decoded_as_small_as_is_enough(
    size: tuple[int, int], enough: tuple[int, int], reduction: int
) -> None:
    frame = load_frame(_encoded(_picture(*size)), enough=lambda _: enough)
    assert frame.reduction == reduction
    assert frame.size == size[::-1]
    assert frame.pixels.shape == (size[1] // reduction, size[0] // reduction, 3)


@pytest.mark.parametrize("taken", [1, 2])
def test_the_divisor_is_the_one_that_the_decoder_took_on(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = JpegImageFile.draft

    def draft(self: JpegImageFile, mode: str | None, _: tuple[int, int]) -> object:
        return None if taken == 1 else original(self, mode, (self.width // taken, self.height // taken))

    monkeypatch.setattr(JpegImageFile, "draft", draft)
    frame = load_frame(_encoded(_picture()), enough=lambda _: (12, 20))
    assert (frame.reduction, frame.size) == (taken, (96, 160))
    assert frame.pixels.shape == (96 // taken, 160 // taken, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_small_pictures_are_turned_as_whole_ones(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = _encoded(_picture(), exif=exif)
    asked: list[tuple[int, int]] = []

    def enough(size: tuple[int, int]) -> tuple[int, int]:
        asked.append(size)
        return size[0] // 4, size[1] // 4

    small, whole = load_frame(data, enough=enough), load_frame(data)
    assert asked == [whole.size]
    assert small.reduction == 4
    assert small.size == whole.size
    expected = cv2.resize(whole.pixels, small.pixels.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(small.pixels.astype(int) - expected).max() <= 6


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_gray_and_cmyk_are_decoded_small_too(mode: str) -> None:
    data = _encoded(Image.new("RGB", (64, 64), (200, 30, 60)).convert(mode))
    small, whole = load_frame(data, enough=lambda _: (8, 8)), load_frame(data)
    assert small.pixels.shape == (8, 8, 3)
    assert np.abs(small.pixels.astype(int) - whole.pixels[::8, ::8]).max() <= 6


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "TIFF"])
def test_other_formats_are_decoded_whole(kind: str) -> None:
    frame = load_frame(_encoded(_picture(), kind), enough=lambda _: (1, 1))
    assert frame.reduction == 1
    assert frame.pixels.shape == (96, 160, 3)


def test_sixteen_bits_are_decoded_whole() -> None:
    deep = Image.fromarray(np.full((64, 64), 0x5AFF, np.uint16))
    frame = load_frame(_encoded(deep, "PNG"), enough=lambda _: (1, 1))
    assert frame.reduction == 1
    assert set(np.unique(frame.pixels)) == {0x5A}


def test_a_truncated_jpeg_is_refused_small_too() -> None:
    data = _encoded(_picture(640, 480))
    with pytest.raises(ImageError, match="the encoded image is damaged or incomplete"):
        load_frame(data[: len(data) // 2], enough=lambda _: (1, 1))


def test_large_pictures_are_copied_strip_by_strip() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (700, 1100, 3), dtype=np.uint8)
    assert np.array_equal(load_frame(_encoded(Image.fromarray(pixels), "BMP")).pixels, pixels)


def test_the_predictor_decodes_large_jpegs_small_and_boxes_are_in_the_picture_s_pixels(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    _picture(16 * SIDE, 16 * SIDE).save(path)
    runtime = FakeRuntime(1)
    small, whole = Predictor(runtime, 0.0), Predictor(runtime, 0.0, full_decode=True)
    assert [round(value) for value in small.detect(path).boxes[0]] == [4 * SIDE, 4 * SIDE, 12 * SIDE, 12 * SIDE]
    assert np.array_equal(small.detect(path).boxes, whole.detect(path).boxes)
    reductions = [
        found.frame.reduction
        for predictor, whole_frames in ((small, False), (small, True), (whole, False))
        for found in predictor.stream_results([path], whole_frames=whole_frames)
        if isinstance(found, Found) and isinstance(found.frame, Frame)
    ]
    assert reductions == [8, 1, 1]


def test_small_frames_are_not_drawn_on(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    _picture(16 * SIDE, 16 * SIDE).save(path)
    [found] = Predictor(FakeRuntime(1), 0.0).stream_results([path], whole_frames=False)
    assert isinstance(found, Found)
    with pytest.raises(ImageError, match=r"decoded at 1/8 of its size; draw on the image file itself"):
        found.detections.draw(found.frame)
    assert found.detections.draw(path).size == (16 * SIDE, 16 * SIDE)


def test_full_decode_is_yes_or_no() -> None:
    with pytest.raises(OptionError, match="`full_decode` is 'no', expected True or False"):
        Predictor(FakeRuntime(1), full_decode="no")  # type: ignore[arg-type]
