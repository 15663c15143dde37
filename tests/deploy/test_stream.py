"""Streams: order, batches, bounds, errors in their turn, and the end of the threads."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fake_runtime import FakeRuntime, gray
from rtdetr_deploy import ArtifactError, Detections, ImageError, OptionError, Predictor
from rtdetr_deploy.cli.detect_files import detect_files
from rtdetr_deploy.images.frame import Frame
from rtdetr_deploy.images.intake import Intake
from rtdetr_deploy.runtimes.protocol import Feed
from rtdetr_deploy.stream import AHEAD, THREAD_NAME, Found, Unreadable

pytest_plugins = ("detect_folder",)


def _threads() -> int:
    return sum(thread.name == THREAD_NAME for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert _threads() == 0


def _levels(found: list[Detections]) -> list[int]:
    return [round(float(one.scores[0]) * 255) for one in found]


@pytest.mark.parametrize("runtime", [FakeRuntime(1), FakeRuntime(3), FakeRuntime(), FakeRuntime(max_batch=2)])
@pytest.mark.parametrize("count", [0, 1, 3, 20])
def test_results_come_one_by_one_in_order(runtime: FakeRuntime, count: int) -> None:
    predictor = Predictor(runtime, 0.0)
    levels = [(37 * index) % 256 for index in range(count)]
    found = list(predictor.stream(gray(level) for level in levels))
    assert _levels(found) == levels
    for one, level in zip(found, levels, strict=True):
        assert np.array_equal(one.boxes, predictor.detect(gray(level)).boxes)


@pytest.mark.parametrize(
    ("runtime", "batch", "expected"),
    [
        (FakeRuntime(8), None, [8, 8, 8]),
        (FakeRuntime(8), 2, [8] * 10),
        (FakeRuntime(), None, [8, 8, 4]),
        (FakeRuntime(), 16, [16, 4]),
        (FakeRuntime(max_batch=6), None, [6, 6, 6, 2]),
        (FakeRuntime(1), None, [1] * 20),
    ],
)
def test_images_go_through_the_model_in_full_batches(
    runtime: FakeRuntime, batch: int | None, expected: list[int]
) -> None:
    runtime.batches.clear()
    list(Predictor(runtime).stream((gray(level) for level in range(20)), batch=batch))
    assert runtime.batches == expected


def test_an_endless_source_is_read_a_few_images_ahead() -> None:
    for runtime, batch in ((FakeRuntime(1), 1), (FakeRuntime(8), 8)):
        pulled = itertools.count()
        images = (gray(next(pulled) % 256) for _ in itertools.count())
        with closing(Predictor(runtime, 0.0).stream(images)) as results:
            for index, found in enumerate(itertools.islice(results, 40)):
                assert _levels([found]) == [index]
                time.sleep(0.002)
        ahead = next(pulled) - 40
        assert 0 < ahead <= max(AHEAD, batch) + 2 * batch


def test_images_are_let_go_when_they_are_done() -> None:
    alive: set[int] = set()
    most = 0

    def images() -> Iterator[NDArray[np.uint8]]:
        nonlocal most
        for index in range(100):
            image = gray(index)
            alive.add(index)
            weakref.finalize(image, alive.discard, index)
            most = max(most, len(alive))
            yield image
            del image

    assert len(Predictor(FakeRuntime(4)).detect_batch(images())) == 100
    assert most <= 24


def test_results_tell_the_image_its_pixels_and_the_times() -> None:
    images = [gray(level) for level in (10, 20, 30)]
    for result, image in zip(Predictor(FakeRuntime(2), 0.0).stream_results(images), images, strict=True):
        assert isinstance(result, Found)
        assert result.image is image
        assert isinstance(result.frame, Frame)
        assert np.array_equal(result.frame.pixels, image)
        assert set(result.seconds) == {"load", "prepare", "infer", "decode"}
        assert min(result.seconds.values()) >= 0


def test_an_error_of_the_source_comes_after_the_results_before_it() -> None:
    def images() -> Iterator[NDArray[np.uint8]]:
        yield from map(gray, range(5))
        raise RuntimeError("the camera is gone")

    found: list[Detections] = []
    with pytest.raises(RuntimeError, match="the camera is gone"):
        for result in Predictor(FakeRuntime(2), 0.0).stream(images()):
            found.append(result)
    assert _levels(found) == [0, 1, 2, 3, 4]


def test_an_image_that_can_not_be_read_ends_the_stream_in_its_turn(tmp_path: Path) -> None:
    images: list[Any] = [gray(1), gray(2), tmp_path / "none.png", gray(3)]
    found: list[Detections] = []
    with pytest.raises(ImageError, match="none.png"):
        for result in Predictor(FakeRuntime(4), 0.0).stream(images):
            found.append(result)
    assert _levels(found) == [1, 2]


def test_results_go_on_after_an_image_that_can_not_be_read(tmp_path: Path) -> None:
    bad = tmp_path / "none.png"
    for batch in (1, 2, 4):
        images: list[Any] = [bad, gray(1), bad, bad, bad, bad, gray(2)]
        results = list(Predictor(FakeRuntime(batch), 0.0).stream_results(images))
        assert [isinstance(result, Unreadable) for result in results] == [image is bad for image in images]
        assert all(result.image is image for result, image in zip(results, images, strict=True))
        good = [result.detections for result in results if isinstance(result, Found)]
        assert _levels(good) == [1, 2]
        first = results[0]
        assert isinstance(first, Unreadable)
        assert "none.png" in str(first.error)


def test_other_errors_of_an_image_are_raised_in_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Intake.load

    def load(self: Intake, image: Any, *arguments: Any, **options: Any) -> Any:
        if image.max() == 3:
            raise KeyboardInterrupt
        return original(self, image, *arguments, **options)

    monkeypatch.setattr(Intake, "load", load)
    found: list[Detections] = []
    with pytest.raises(KeyboardInterrupt):
        for result in Predictor(FakeRuntime(4), 0.0).stream(map(gray, range(1, 9))):
            found.append(result)
    assert _levels(found) == [1, 2]


@pytest.mark.parametrize("error", [ArtifactError("broken"), KeyboardInterrupt()])
def test_an_error_of_the_model_ends_the_stream(error: BaseException) -> None:
    runtime = FakeRuntime(2)

    def fail() -> None:
        if len(runtime.batches) == 3:
            raise error

    runtime.on_run = fail
    found: list[Detections] = []
    with pytest.raises(type(error)):
        for result in Predictor(runtime, 0.0).stream(map(gray, itertools.count(1))):
            found.append(result)
    assert _levels(found) == [1, 2, 3, 4]


def test_leaving_the_loop_ends_the_threads_at_once() -> None:
    for result in Predictor(FakeRuntime(2), 0.0).stream(map(gray, itertools.cycle(range(256)))):
        assert _levels([result]) == [0]
        assert _threads() > 0
        break
    assert _threads() == 0


def test_a_source_that_never_delivers_does_not_hold_the_end_up() -> None:
    release = threading.Event()

    def images() -> Iterator[NDArray[np.uint8]]:
        yield gray(1)
        release.wait(60)
        yield gray(2)

    results = Predictor(FakeRuntime(1), 0.0).stream(images())
    assert _levels([next(results)]) == [1]
    start = time.perf_counter()
    results.close()
    assert time.perf_counter() - start < 10
    assert _threads() == 1
    release.set()
    for thread in threading.enumerate():
        if thread.name == THREAD_NAME:
            thread.join(10)


def test_nothing_is_read_before_the_first_result_is_wanted() -> None:
    pulled = itertools.count()
    results = Predictor(FakeRuntime(1)).stream(gray(next(pulled)) for _ in range(3))
    assert (next(pulled), _threads()) == (0, 0)
    results.close()


def test_a_single_image_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda _: pytest.fail("a thread was started"))
    assert _levels([Predictor(FakeRuntime(1), 0.0).detect(gray(9))]) == [9]


@pytest.mark.parametrize(
    ("runtime", "options", "message"),
    [
        (FakeRuntime(), {"batch": 0}, "`batch` is 0, expected a whole number from 1 for fake.onnx"),
        (FakeRuntime(), {"batch": True}, "`batch` is True, expected a whole number from 1"),
        (FakeRuntime(8), {"batch": 9}, "`batch` is 9, expected a whole number from 1 to 8 for fake.onnx"),
        (FakeRuntime(max_batch=4), {"batch": 5}, "`batch` is 5, expected a whole number from 1 to 4"),
        (FakeRuntime(), {"color": "RGB"}, "`color` is 'RGB', expected 'bgr' or 'rgb'"),
        (FakeRuntime(), {"threshold": 2}, "`threshold` is 2, expected a number from 0 to 1"),
        (FakeRuntime(), {"classes": 3.5}, "`classes` is 3.5, expected names or indices"),
    ],
)
def test_arguments_are_looked_at_before_anything_is_read(runtime: FakeRuntime, options: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Predictor(runtime).stream([gray(1)], **options)


def test_one_image_is_not_a_stream() -> None:
    with pytest.raises(OptionError, match="expected several images .*; for a single one call detect"):
        Predictor(FakeRuntime()).stream(cast("Any", "a.jpg"))


@dataclass
class ParallelFake(FakeRuntime):
    """Runs `slots` calls side by side."""

    slots: int = 2

    def run_in_each_slot(self, feed: Feed) -> None:
        self.run(feed)


@pytest.mark.parametrize("slots", [2, 3])
def test_all_slots_are_busy_until_the_source_ends(slots: int) -> None:
    meet, lock = threading.Barrier(slots), threading.Lock()
    running = most = 0

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        meet.wait(30)  # a call that is left alone fails here
        with lock:
            running -= 1

    runtime = ParallelFake(1, on_run=work, slots=slots)
    levels = list(range(8 * slots))
    assert _levels(list(Predictor(runtime, 0.0).stream(map(gray, levels)))) == levels
    assert (most, len(runtime.batches)) == (slots, len(levels))


def test_the_next_images_are_ready_when_the_model_has_worked(monkeypatch: pytest.MonkeyPatch) -> None:
    original, ready, count = Intake.prepare, threading.Condition(), 12
    prepared = 0
    waited: list[bool] = []

    def prepare(self: Intake, *arguments: Any) -> Any:
        nonlocal prepared
        made = original(self, *arguments)
        with ready:
            prepared += 1
            ready.notify_all()
        return made

    def work() -> None:
        """Work until the image after this one is prepared: without overlap that would be for ever."""
        wanted = min(count, len(waited) + 2)
        with ready:
            waited.append(ready.wait_for(lambda: prepared >= wanted, 30))

    monkeypatch.setattr(Intake, "prepare", prepare)
    predictor = Predictor(FakeRuntime(1, on_run=work), 0.0)
    assert _levels(list(predictor.stream(map(gray, range(count))))) == list(range(count))
    assert waited == [True] * count


def test_rtdetr_detect_fills_the_batches_of_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for level in range(20):
        Image.fromarray(gray(level)).save(folder / f"{level:02}.png")
    runtime = FakeRuntime(8)
    reported: list[str] = []
    summary = detect_files(Predictor(runtime, 0.0), [folder], on_image=lambda path, _: reported.append(path.stem))
    assert runtime.batches == [8] * 4  # the warm-up, and 20 images
    assert reported == [f"{level:02}" for level in range(20)]
    assert (summary.done, summary.skipped, len(summary.seconds["infer"])) == (20, 0, 20)


def test_a_source_may_fill_the_same_array_with_each_frame() -> None:
    frames = [np.full((32, 32, 3), value, np.uint8) for value in range(20)]
    buffer = np.empty_like(frames[0])

    def camera() -> Iterator[Any]:
        for frame in frames:
            buffer[:] = frame
            yield buffer

    with Predictor(FakeRuntime(), 0.0) as predictor:
        results = list(predictor.stream_results(camera()))
    found = [result.frame for result in results if isinstance(result, Found)]
    assert [int(frame.pixels[0, 0, 0]) for frame in found if isinstance(frame, Frame)] == list(range(20))
