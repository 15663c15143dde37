"""The Predictor on a real exported file."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fake_runtime import FakeRuntime
from rtdetr_deploy import ArtifactError, ArtifactInfo, ImageError, OptionError, Predictor, open_runtime
from rtdetr_deploy.images.frame import Frame

NAMES = ("red", "white", "platelet")


@pytest.fixture(scope="module")
def predictor(small_onnx: Path) -> Predictor:
    return Predictor(small_onnx, threshold=0.0)


def test_detections_are_sorted_inside_the_image_and_named(predictor: Predictor, picture: NDArray[np.uint8]) -> None:
    found = predictor.detect(picture)
    assert len(found) == 300
    assert (np.diff(found.scores) <= 0).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [120, 90, 120, 90]).all()
    assert (found.boxes[:, 2:] >= found.boxes[:, :2]).all()
    assert found.names == tuple(NAMES[label] for label in found.labels)
    assert found.labels.dtype == np.int64


def test_every_kind_of_image_gives_the_same_result(
    predictor: Predictor, picture: NDArray[np.uint8], tmp_path: Path
) -> None:
    rgb = np.ascontiguousarray(picture[:, :, ::-1])
    path = tmp_path / "picture.png"
    Image.fromarray(rgb).save(path)
    expected = predictor.detect(picture)
    for image in (str(path), path, path.read_bytes(), Image.fromarray(rgb)):
        assert np.array_equal(predictor.detect(image).boxes, expected.boxes)
    assert np.array_equal(predictor.detect(rgb, color="rgb").scores, expected.scores)


def test_boxes_scale_with_the_original_image(predictor: Predictor, picture: NDArray[np.uint8]) -> None:
    once = predictor.detect(picture)
    doubled = predictor.detect(picture.repeat(2, axis=0).repeat(2, axis=1))
    assert doubled.boxes.max() > 1.5 * once.boxes.max()


def test_threshold_and_classes_of_a_call_replace_the_defaults(predictor: Predictor, picture: NDArray[np.uint8]) -> None:
    everything = predictor.detect(picture)
    middle = float(np.median(everything.scores))
    strict = predictor.detect(picture, threshold=middle)
    assert 0 < len(strict) < len(everything)
    assert (strict.scores >= np.float32(middle)).all()
    for classes in ("white", 1, ["white"], [1]):
        only = predictor.detect(picture, classes=classes)
        assert set(only.names) == {"white"}
        assert len(only) == everything.names.count("white")
    assert len(predictor.detect(picture, classes=[])) == 0


def test_batches_of_different_sizes_equal_single_calls(
    dynamic_onnx: Path, small_onnx: Path, picture: NDArray[np.uint8]
) -> None:
    images = [picture, picture[:50, :70].copy(), picture[::-1].copy()]
    with Predictor(dynamic_onnx, 0.0) as dynamic, Predictor(small_onnx, 0.0) as single:
        assert dynamic.batch is None
        together = dynamic.detect_batch(images * 4)
        assert len(together) == 12
        for found, image in zip(together, images * 4, strict=True):
            alone = single.detect(image)
            assert np.abs(found.scores - alone.scores).max() < 1e-4
        assert dynamic.detect_batch([]) == []


def test_fixed_batches_are_filled_up(small_export: Any, picture: NDArray[np.uint8], small_onnx: Path) -> None:
    with Predictor(small_export("four.onnx", batch=4), 0.0) as four, Predictor(small_onnx, 0.0) as one:
        found = four.detect_batch([picture] * 6)
        assert len(found) == 6
        assert np.abs(found[5].scores - one.detect(picture).scores).max() < 1e-4


def test_uint8_and_float_input_agree(dynamic_onnx: Path, predictor: Predictor, picture: NDArray[np.uint8]) -> None:
    with Predictor(dynamic_onnx, 0.0) as raw:
        assert np.abs(raw.detect(picture).scores - predictor.detect(picture).scores).max() < 1e-4


def test_several_threads_may_call_at_once(predictor: Predictor, picture: NDArray[np.uint8]) -> None:
    images = [np.roll(picture, 7 * shift, axis=1) for shift in range(8)]
    expected = [predictor.detect(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(predictor.detect, images * 3))
    for got, wanted in zip(found, expected * 3, strict=True):
        assert np.array_equal(got.boxes, wanted.boxes)


def test_info_tells_what_is_in_the_file(predictor: Predictor) -> None:
    info = predictor.info
    assert isinstance(info, ArtifactInfo)
    assert (info.variant, info.layers, info.height, info.width, info.batch) == ("custom", 2, 128, 160, 1)
    assert info.class_names == predictor.class_names == NAMES
    assert info.verified
    assert predictor.input_size == (128, 160)
    assert predictor.runtime.startswith("ONNX Runtime")


def test_class_names_can_be_replaced(small_onnx: Path, tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    file = tmp_path / "names.txt"
    file.write_text("rot\nweiß\nPlättchen\n\n", encoding="utf-8")
    with Predictor(small_onnx, 0.0, class_names=file) as german:
        found = german.detect(picture).names
        assert len(found) == 300
        assert set(found) <= {"rot", "weiß", "Plättchen"}
    with pytest.raises(OptionError, match="`class_names` names 2 classes, but the model has 3"):
        Predictor(small_onnx, class_names=["a", "b"])
    with pytest.raises(OptionError, match="can't read class names"):
        Predictor(small_onnx, class_names=tmp_path / "none.txt")
    file.write_text("a\n\nb\n")
    with pytest.raises(OptionError, match="one class name per line"):
        Predictor(small_onnx, class_names=file)


def test_resizers_are_both_available(small_onnx: Path, picture: NDArray[np.uint8]) -> None:
    with Predictor(small_onnx, 0.0, resizer="pillow") as pillow:
        assert len(pillow.detect(picture)) == 300
    with pytest.raises(OptionError, match="`resizer` is 'nearest', expected opencv or pillow"):
        Predictor(small_onnx, resizer=cast("Any", "nearest"))


@pytest.mark.parametrize("threshold", [-0.1, 1.01, float("nan")])
def test_thresholds_outside_0_to_1_are_refused(
    threshold: float, small_onnx: Path, predictor: Predictor, picture: NDArray[np.uint8]
) -> None:
    with pytest.raises(OptionError, match="expected a number from 0 to 1"):
        Predictor(small_onnx, threshold)
    with pytest.raises(OptionError, match="expected a number from 0 to 1"):
        predictor.detect(picture, threshold=threshold)


def test_unknown_classes_are_refused(predictor: Predictor, picture: NDArray[np.uint8]) -> None:
    with pytest.raises(OptionError, match="no class 'blue'; it knows red, white, platelet"):
        predictor.detect(picture, classes=["blue"])
    with pytest.raises(OptionError, match=r"class index 3 is outside 0 .. 2"):
        predictor.detect(picture, classes=3)
    with pytest.raises(OptionError, match="class 1.5 is neither a name nor an index"):
        predictor.detect(picture, classes=cast("Any", [1.5]))
    assert set(predictor.detect(picture, classes=np.int64(1)).names) == {"white"}


def test_one_image_instead_of_a_list_is_refused(predictor: Predictor, picture: NDArray[np.uint8]) -> None:
    for single in ("a.jpg", Path("a.jpg"), b"bytes", picture, Image.fromarray(picture)):
        with pytest.raises(OptionError, match="expected several images .*; for a single one call detect"):
            predictor.detect_batch(cast("Any", single))


def test_stacked_arrays_and_generators_are_lists_of_images(predictor: Predictor, picture: NDArray[np.uint8]) -> None:
    expected = predictor.detect(picture)
    for images in (np.stack([picture, picture]), (image for image in [picture, picture])):
        found = predictor.detect_batch(images)
        assert len(found) == 2
        assert np.array_equal(found[1].boxes, expected.boxes)


def test_all_classes_of_a_repeated_name_are_kept(small_onnx: Path, picture: NDArray[np.uint8]) -> None:
    with Predictor(small_onnx, 0.0, class_names=["cell", "cell", "platelet"]) as predictor:
        everything = predictor.detect(picture)
        assert len(predictor.detect(picture, classes="cell")) == everything.names.count("cell") > 0


def test_one_bad_image_names_itself(predictor: Predictor, picture: NDArray[np.uint8], tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="none.png"):
        predictor.detect_batch([picture, tmp_path / "none.png"])


def test_a_closed_predictor_says_so(small_onnx: Path, picture: NDArray[np.uint8]) -> None:
    with Predictor(small_onnx) as once:
        once.warmup()
    once.close()
    with pytest.raises(ArtifactError, match="small.onnx is closed"):
        once.detect(picture)


def test_threads_must_be_positive(small_onnx: Path) -> None:
    for threads in (0, 10**11, 4 * (os.cpu_count() or 1) + 1, 2.5, "2", True):
        with pytest.raises(OptionError, match=f"`threads` is {threads!r}, expected a whole number from 1 to"):
            Predictor(small_onnx, threads=cast("Any", threads))
    with Predictor(small_onnx, threads=1) as single:
        single.warmup(1)


def test_nothing_found_is_an_empty_result(small_onnx: Path, picture: NDArray[np.uint8]) -> None:
    with Predictor(small_onnx, threshold=1.0) as strict:
        found = strict.detect(picture)
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.to_dicts() == []
    assert found.draw(picture).size == (120, 90)


def test_classes_may_be_a_generator(predictor: Predictor, picture: NDArray[np.uint8]) -> None:
    expected = predictor.detect(picture, classes=["white"], threshold=0.0)
    found = predictor.detect(picture, classes=(name for name in ["white"]), threshold=0.0)
    assert len(found) == len(expected) > 0


@pytest.mark.parametrize("classes", [True, b"\0", 1.0, [True], [1.0], [b"white"], np.bool_(True)])
def test_classes_that_are_neither_names_nor_indices_are_refused(
    classes: Any, predictor: Predictor, picture: NDArray[np.uint8]
) -> None:
    with pytest.raises(OptionError, match="neither a name nor an index|expected names or indices"):
        predictor.detect(picture, classes=classes)
    with pytest.raises(OptionError, match="neither a name nor an index|expected names or indices"):
        predictor.detect(picture, threshold=0.0).filter(classes=classes)


def test_results_know_the_model_s_classes_when_they_are_filtered(
    predictor: Predictor, picture: NDArray[np.uint8]
) -> None:
    found = predictor.detect(picture, threshold=0.0)
    assert found[:3].class_names == NAMES
    for classes, message in (["nope"], "the model has no class 'nope'"), (3, r"class index 3 is outside 0 \.\. 2"):
        with pytest.raises(OptionError, match=message):
            found[:3].filter(classes=cast("Any", classes))
    assert set(found.filter(classes=(name for name in ["white"])).names) == {"white"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": None}, "`engine` is None, expected a model file"),
        ({"engine": 5}, "`engine` is 5, expected a model file"),
        ({"size": 640}, r"`size` is 640, expected \(height, width\)"),
        ({"class_names": 5}, "`class_names` is 5, expected a list of names or a file"),
        ({"class_names": {"a", "b", "c"}}, "expected a list of names or a file"),
        ({"max_pixels": "x"}, "`max_pixels` is 'x', expected a whole number from 1"),
    ],
)
def test_arguments_of_another_kind_are_option_errors(options: Any, message: str, small_onnx: Path) -> None:
    with pytest.raises(OptionError, match=message):
        Predictor(**{"engine": small_onnx, **options})


def test_an_empty_name_of_a_model_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="the name of the model file is empty"):
        Predictor("")
    with pytest.raises(ArtifactError, match="is a folder; name the model file in it"):
        Predictor(tmp_path)
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match="m.onnx is a pipe or a device"):
        Predictor(tmp_path / "m.onnx")


def test_messages_about_a_runtime_that_is_open_name_its_file(small_onnx: Path) -> None:
    runtime = open_runtime(small_onnx)
    with pytest.raises(OptionError, match="small.onnx is run by ONNX Runtime"):
        Predictor(runtime, resizer="cuda")
    runtime.close()


def test_a_model_may_be_given_as_its_content(
    small_onnx: Path, predictor: Predictor, picture: NDArray[np.uint8]
) -> None:
    with Predictor(small_onnx.read_bytes(), 0.0) as other:
        assert np.array_equal(other.detect(picture).boxes, predictor.detect(picture).boxes)


@pytest.mark.parametrize("options", [{"threads": 1}, {"device": "cpu"}, {"runtime": "onnxruntime"}])
def test_what_an_open_runtime_would_ignore_is_refused(options: Any) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"`{name}` would be ignored: fake.onnx is open already"):
        Predictor(FakeRuntime(), **options)


def test_a_frame_is_an_image(predictor: Predictor, picture: NDArray[np.uint8]) -> None:
    frame = Frame(np.ascontiguousarray(picture[:, :, ::-1]), rgb=True)
    found = predictor.detect(frame)
    assert np.array_equal(found.boxes, predictor.detect(picture).boxes)
    drawn = found[:3].draw(frame)
    assert np.array_equal(np.asarray(drawn), np.asarray(found[:3].draw(picture)))
    assert np.array_equal(frame.pixels, picture[:, :, ::-1])
