"""Everything that users pass as an image, good and bad."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from rtdetr_deploy import ImageError, OptionError, find_images
from rtdetr_deploy.images.frame import load_frame

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@pytest.fixture
def rgb() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_path_bytes_pil_and_arrays_give_the_same_pixels(rgb: Pixels, tmp_path: Path) -> None:
    picture = Image.fromarray(rgb)
    path = tmp_path / "picture.png"
    picture.save(path)
    for source in (path, str(path), path.read_bytes(), picture):
        assert np.array_equal(load_frame(source).to_rgb(), rgb)
    assert np.array_equal(load_frame(rgb, color="rgb").to_rgb(), rgb)
    assert np.array_equal(load_frame(np.ascontiguousarray(rgb[:, :, ::-1])).to_rgb(), rgb)
    assert load_frame(path).size == (24, 40)


def test_gray_alpha_and_16_bit_arrays(rgb: Pixels) -> None:
    gray = rgb[:, :, 0]
    assert np.array_equal(load_frame(gray).to_rgb(), np.repeat(gray[:, :, None], 3, axis=2))
    assert np.array_equal(load_frame(gray[:, :, None]).to_rgb(), load_frame(gray).to_rgb())
    bgra = np.dstack([rgb, gray])
    assert np.array_equal(load_frame(bgra).pixels, rgb)
    assert np.array_equal(load_frame(rgb.astype(np.uint16) * 257).pixels, rgb)


def test_views_with_negative_strides_are_taken(rgb: Pixels) -> None:
    assert np.array_equal(load_frame(rgb[::-1, ::-1]).pixels, rgb[::-1, ::-1])


def test_16_bit_png_cmyk_jpeg_palette_and_transparency(rgb: Pixels, tmp_path: Path) -> None:
    deep = tmp_path / "deep.png"
    Image.fromarray(rgb[:, :, 0].astype(np.uint16) * 257).save(deep)
    assert np.array_equal(load_frame(deep).to_rgb()[:, :, 0], rgb[:, :, 0])
    flat = Image.new("RGB", (40, 24), (200, 30, 60))
    cmyk = load_frame(_encoded(flat.convert("CMYK"), "JPEG", quality=95)).to_rgb()
    assert np.abs(cmyk.astype(int) - (200, 30, 60)).max() <= 6
    palette = load_frame(_encoded(flat.quantize(4), "PNG")).to_rgb()
    assert np.abs(palette.astype(int) - (200, 30, 60)).max() <= 4
    clear = load_frame(_encoded(Image.fromarray(np.dstack([rgb, rgb[:, :, 0]]), "RGBA"), "PNG")).to_rgb()
    assert np.array_equal(clear, rgb)


def test_exif_orientation_is_applied(rgb: Pixels) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = load_frame(_encoded(Image.fromarray(rgb), "PNG", exif=exif)).to_rgb()
    assert np.array_equal(turned, np.rot90(rgb, k=-1))


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 50, 3), (50, 1, 3)])
def test_tiny_images_are_fine(shape: tuple[int, int, int]) -> None:
    assert load_frame(np.zeros(shape, np.uint8)).size == shape[:2]


BAD_ARRAYS: dict[str, tuple[Any, str]] = {
    "NaN": (np.full((4, 4, 3), np.nan), "float64, expected uint8 or uint16; it holds NaN"),
    "float": (np.zeros((4, 4, 3), np.float32), r"float32, expected uint8 .* pass \(image \* 255\)"),
    "int64": (np.zeros((4, 4, 3), np.int64), "int64, expected uint8"),
    "rank": (np.zeros((2, 4, 4, 3), np.uint8), r"shape \(2, 4, 4, 3\).* call detect_batch"),
    "channels": (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\), expected \(height, width\)"),
    "channels first": (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\)"),
    "empty": (np.zeros((0, 4, 3), np.uint8), "has no pixels"),
    "object": (object(), "can't read an image from object"),
    "none": (None, "can't read an image from NoneType"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_unusable_arrays_get_one_clear_line(case: str) -> None:
    array, message = BAD_ARRAYS[case]
    with pytest.raises(ImageError, match=message) as caught:
        load_frame(array)
    assert "\n" not in str(caught.value)


def _png_claiming(width: int, height: int) -> bytes:
    """A tiny PNG whose header claims a huge image."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _jpeg(size: tuple[int, int] = (64, 64)) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    return _encoded(Image.fromarray(noise), "JPEG")


BAD_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "zero bytes": (lambda: b"", "is not an image in a known format, or it is empty"),
    "text": (lambda: b"hello", "is not an image in a known format"),
    "truncated": (lambda: _jpeg()[:2000], "is damaged or incomplete"),
    "bomb": (lambda: _png_claiming(60000, 60000), "too many pixels; raise `max_pixels`"),
    "large": (lambda: _png_claiming(10000, 9000), "more than the 89478485 pixels allowed.*max_pixels"),
    "floats": (lambda: _encoded(Image.new("F", (4, 4)), "TIFF"), r"32 bits per pixel \(mode F\)"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", BAD_FILES)
def test_unusable_files_get_one_clear_line(case: str, tmp_path: Path) -> None:
    make, message = BAD_FILES[case]
    path = tmp_path / "bad.img"
    path.write_bytes(make())
    for source in (path, path.read_bytes()):
        with pytest.raises(ImageError, match=message) as caught:
            load_frame(source)
        assert "\n" not in str(caught.value)


def test_pixel_limit_can_be_chosen(rgb: Pixels) -> None:
    data = _encoded(Image.fromarray(rgb), "PNG")
    with pytest.raises(ImageError, match="40x24, more than the 959 pixels"):
        load_frame(data, max_pixels=959)
    assert load_frame(data, max_pixels=960).size == (24, 40)


def test_the_limit_may_be_raised_beyond_pillows_own(monkeypatch: pytest.MonkeyPatch, rgb: Pixels) -> None:
    from rtdetr_deploy.images import frame as sources

    data = _encoded(Image.fromarray(rgb), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(sources, "MAX_PIXELS", 100)
    with pytest.raises(ImageError, match="too many pixels; raise `max_pixels`"):
        load_frame(data, max_pixels=100)
    assert load_frame(data, max_pixels=960).size == (24, 40)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_color_order_must_be_known(rgb: Pixels) -> None:
    with pytest.raises(OptionError, match="`color` is 'RGB', expected 'bgr' or 'rgb'"):
        load_frame(rgb, color=cast("Any", "RGB"))


def test_pil_images_that_cannot_be_decoded_get_one_clear_line(rgb: Pixels) -> None:
    lazy = Image.open(io.BytesIO(_jpeg()[:2000]))
    with pytest.raises(ImageError, match="the PIL image is damaged or incomplete"):
        load_frame(lazy)
    wide = Image.fromarray(np.full((4, 4), 200, np.int32))
    with pytest.raises(ImageError, match="32 bits per pixel"):
        load_frame(wide)


def test_damaged_bytes_never_raise_anything_else() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    data = _encoded(Image.fromarray(noise), "JPEG", exif=exif)
    rng = np.random.default_rng(0)
    for _ in range(300):
        mutated = bytearray(data)
        for position in rng.integers(0, 200, 4):
            mutated[position] = rng.integers(0, 256)
        with contextlib.suppress(ImageError):
            load_frame(bytes(mutated))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="can't open .*none.jpg: No such file"):
        load_frame(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        load_frame(tmp_path)
    for name in ("a\0b.jpg", "x" * 300 + ".jpg"):
        with pytest.raises(ImageError, match="can't open"):
            load_frame(name)
        with pytest.raises(ImageError, match="can't open|does not exist"):
            find_images([name])


def test_folders_globs_and_files_are_found_once_and_sorted(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.jpg", "a.PNG", "sub/c.webp", "notes.txt", "odd"):
        (tmp_path / name).write_bytes(b"")
    found = find_images([tmp_path, str(tmp_path / "*.jpg"), tmp_path / "odd"])
    assert [path.name for path in found] == ["a.PNG", "b.jpg", "c.webp", "odd"]
    with pytest.raises(ImageError, match=r"none\* matches no file"):
        find_images([tmp_path / "none*"])
    with pytest.raises(ImageError, match=r"none.jpg does not exist$"):
        find_images([tmp_path / "none.jpg"])
    assert [path.name for path in find_images([tmp_path], skip=tmp_path / "sub")] == ["a.PNG", "b.jpg"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="holds no image"):
        find_images([tmp_path / "empty"])


def test_subclasses_of_arrays_are_plain_arrays(rgb: Pixels) -> None:
    gray = rgb[:, :, 0]
    assert np.array_equal(load_frame(np.asmatrix(gray)).pixels, load_frame(gray).pixels)
    assert np.array_equal(load_frame(np.ma.masked_array(rgb)).pixels, rgb)
    with pytest.raises(ImageError, match=r"is masked, .*; pass image.filled\(0\)"):
        load_frame(np.ma.masked_array(rgb, rgb > 100))


@pytest.mark.parametrize(
    ("array", "advice"),
    [
        (np.full((4, 4, 3), 200.0), r"pass image.round\(\).astype\('uint8'\)"),
        (np.full((4, 4, 3), 0.5), r"pass \(image \* 255\).round\(\)"),
        (np.full((4, 4, 3), 70000.0), "values go up to 70000"),
        (np.full((4, 4, 3), -1.5), "begin at -1.5; undo the normalization"),
        (np.full((4, 4, 3), 200), r"pass image.astype\('uint8'\)"),
        (np.ones((4, 4), bool), r"for a mask pass image.astype\('uint8'\) \* 255"),
        (np.full((4, 4), np.inf), "NaN or infinity"),
        (np.full((4, 4), "a"), r"values from 0 to 255 pass image.astype"),
    ],
)
def test_arrays_of_other_types_get_advice_that_suits_them(array: Any, advice: str) -> None:
    with pytest.raises(ImageError, match=rf"expected uint8 or uint16; .*{advice}"):
        load_frame(array)


def test_big_endian_16_bit_arrays_are_taken(rgb: Pixels) -> None:
    assert np.array_equal(load_frame((rgb.astype(np.uint16) * 257).astype(">u2")).pixels, rgb)


@pytest.mark.parametrize("limit", [0, -1, "x", 2.5, True, None])
def test_a_pixel_limit_that_makes_no_sense_is_not_the_image_s_fault(limit: Any, rgb: Pixels) -> None:
    with pytest.raises(OptionError, match="expected a whole number from 1"):
        load_frame(_encoded(Image.fromarray(rgb), "PNG"), max_pixels=limit)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="pipe.jpg is a pipe or a device, expected a regular file"):
        load_frame(tmp_path / "pipe.jpg")


def test_an_image_that_does_not_fit_into_memory_is_an_image_error(rgb: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> None:
        raise MemoryError

    data = _encoded(Image.fromarray(rgb), "PNG")
    monkeypatch.setattr(Image.Image, "load", load)
    with pytest.raises(ImageError, match="the encoded image is too large for the memory that is free"):
        load_frame(data)


def test_further_frames_are_mentioned_and_the_first_is_used(rgb: Pixels) -> None:
    first = Image.fromarray(np.zeros_like(rgb))
    data = _encoded(first, "GIF", save_all=True, append_images=[Image.fromarray(rgb)])
    with pytest.warns(UserWarning, match="several frames or pages; only the first is used"):
        assert load_frame(data).pixels.max() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_frame(_encoded(first, "GIF"))


def test_avif_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.avif").write_bytes(b"")
    assert [path.name for path in find_images([tmp_path])] == ["a.avif"]


def test_an_empty_source_does_not_mean_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError, match="the name of an image is empty; is a shell variable not set"):
        find_images([""])
    assert find_images(["."]) == [Path("a.jpg")]


def test_links_that_form_loops_end_a_recursive_pattern(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "x.jpg").write_bytes(b"")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "y.jpg").write_bytes(b"")
    (deep / "one").symlink_to(tmp_path)
    (deep / "two").symlink_to(tmp_path)
    assert find_images([tmp_path / "**"]) == [deep / "x.jpg"]
    assert find_images([f"{tmp_path}/**/b/*.jpg", f"{tmp_path}/a/**/**/x.jpg"]) == [deep / "x.jpg"]
    with pytest.raises(ImageError, match="matches no file"):
        find_images([f"{tmp_path}/**/z.jpg"])


def test_files_in_a_folder_that_are_not_images_after_all_are_found_to_be_reported(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    assert find_images([tmp_path]) == [tmp_path / "gone.jpg"]
    assert find_images(str(tmp_path)) == [tmp_path / "gone.jpg"]
