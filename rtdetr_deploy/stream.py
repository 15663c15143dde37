"""Detection over any number of images: batched, read and prepared ahead in threads, in order, in bounded memory.

    source -> reader (a thread) -> load each image, prepare each batch (workers) -> infer, decode (whoever iterates)

A source is read until `AHEAD` images, at least one batch per call that runs at once, wait to be detected and one more
batch is gathered. It may fill the same array with each frame: arrays that don't come from a list are copied when they
are read. Arrays on a GPU are not: each stays as it is until its result is there.

Where several calls of the model run at once, threads of their own make them, ahead of whoever iterates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Semaphore, Thread
from typing import Any, TypeVar

import numpy as np

from rtdetr_deploy.detections import Detections
from rtdetr_deploy.errors import ImageError, OptionError
from rtdetr_deploy.images.frame import ImageLike
from rtdetr_deploy.images.gpu_array import as_host_array, is_on_gpu, is_third_party_array
from rtdetr_deploy.images.gpu_frame import AnyFrame
from rtdetr_deploy.runtimes.cores import usable_cores
from rtdetr_deploy.runtimes.protocol import Array, DeviceBatch

MAX_WORKERS = 4
AHEAD = 4
PATIENCE = 1.0
"""Seconds that the end waits for the threads: one may be blocked for ever by the source, or by what a file is."""
THREAD_NAME = "rtdetr-stream"

T = TypeVar("T")
Batch = Array | DeviceBatch
Outputs = dict[str, Array]
_Loaded = Future[tuple[AnyFrame, float]]


@dataclass(frozen=True)
class Found:
    """An `image` as it was given, its pixels, what was found in it, and the `seconds` of each stage by name.

    Stages that work on a batch count in equal shares for its images.
    """

    image: ImageLike
    frame: AnyFrame
    detections: Detections
    seconds: dict[str, float]


@dataclass(frozen=True)
class Unreadable:
    """An `image` as it was given, and why it can't be read."""

    image: ImageLike
    error: ImageError


@dataclass(frozen=True)
class Stages:
    """What is done to images; `load` and `prepare` are called from several threads at once.

    So is `infer`, where `calls` is more than 1: the calls that run at the same time.
    """

    load: Callable[[ImageLike], AnyFrame]
    prepare: Callable[[Sequence[AnyFrame]], Batch]
    infer: Callable[[Batch], Outputs]
    decode: Callable[[Outputs, Sequence[AnyFrame]], list[Detections]]
    calls: int = 1


@dataclass(frozen=True)
class _Part:
    """Images on their way to the model: the frame of each, the batch made of those that can be read, and seconds.

    `inferred` are the model's outputs where threads call it; None where whoever iterates does.
    """

    images: list[ImageLike]
    loaded: list[_Loaded]
    prepared: Future[tuple[Batch | None, float]]
    inferred: Future[tuple[Outputs, float]] | None


@dataclass(frozen=True)
class _End:
    """The end of the source, and the error that it ended with."""

    error: BaseException | None


def run_stream(stages: Stages, source: Iterable[ImageLike], batch: int) -> Generator[Found | Unreadable, None, None]:
    """Yield a result per image of `source`, in its order; up to `batch` images go through the model at once.

    Errors are raised in their turn: those of the source after the results of all images before, those of the model
    with the first image of a batch. When the generator is closed the threads end, and the source is not read any
    further; what has been read ahead is lost.
    """
    reader = _Reader(stages, source, batch)
    try:
        while isinstance(part := reader.take(), _Part):
            yield from _detect(stages, part)
        if part.error is not None:
            raise part.error
    finally:
        reader.stop()


def detections_of(results: Generator[Found | Unreadable, None, None]) -> Generator[Detections, None, None]:
    """Yield what was found in each image; raise the first `ImageError`."""
    with closing(results):
        for result in results:
            if isinstance(result, Unreadable):
                raise result.error
            yield result.detections


def check_iterable(images: Iterable[ImageLike]) -> Iterable[ImageLike]:
    """Return `images`; `OptionError` for a single image, whose rows or bytes would pass as images."""
    array = isinstance(images, np.ndarray) or is_third_party_array(images)
    single = array or isinstance(images, (str, Path, bytes, bytearray)) or not isinstance(images, Iterable)
    if single and not (array and isinstance(images, Iterable) and len(getattr(images, "shape", ())) == 4):
        raise OptionError("expected several images (a list, a generator, ...); for a single one call detect")
    return images


def _detect(stages: Stages, part: _Part) -> Generator[Found | Unreadable, None, None]:
    """Yield the results of the images of one batch."""
    batch, preparing = part.prepared.result()
    frames = _frames(part.loaded)
    found: list[Detections] = []
    inferring = decoding = 0.0
    if batch is not None:
        outputs, inferring = part.inferred.result() if part.inferred else _timed(lambda: stages.infer(batch))
        found, decoding = _timed(lambda: stages.decode(outputs, frames))
    names, shares = ("prepare", "infer", "decode"), (preparing, inferring, decoding)
    of_batch = {name: share / max(1, len(frames)) for name, share in zip(names, shares, strict=True)}
    rest = iter(found)
    for image, loaded in zip(part.images, part.loaded, strict=True):
        error = loaded.exception()
        if isinstance(error, ImageError):
            yield Unreadable(image, error)
        else:
            frame, loading = loaded.result()  # raises what else went wrong
            yield Found(image, frame, next(rest), {"load": loading, **of_batch})


def _kept(image: ImageLike) -> ImageLike:
    """Return pixels or bytes that stay as they are: cameras and decoders fill the same array with the next frame."""
    if is_third_party_array(image) and not is_on_gpu(image):
        with suppress(ImageError):  # raised in its turn, when it is loaded
            image = as_host_array(image, "the image")
    return image.copy() if isinstance(image, (np.ndarray, bytearray)) else image


def _frames(loaded: Sequence[_Loaded]) -> list[AnyFrame]:
    """Wait for the images, and return the pixels of those that can be read."""
    return [one.result()[0] for one in loaded if one.exception() is None]


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return what `work` does, and the seconds that it took."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


class _Reader:
    """Pulls images from the source in a thread of its own and hands them to workers, batch by batch."""

    def __init__(self, stages: Stages, source: Iterable[ImageLike], batch: int) -> None:
        self._stages, self._source, self._batch = stages, source, batch
        self._parts: SimpleQueue[_Part | _End] = SimpleQueue()
        self._room = Semaphore(max(1, AHEAD // batch, stages.calls))
        self._workers = _Workers(min(MAX_WORKERS, usable_cores()))
        self._callers = _Workers(stages.calls if stages.calls > 1 else 0)
        self._stopping = False
        self._thread = Thread(target=self._read, name=THREAD_NAME, daemon=True)
        self._thread.start()

    def take(self) -> _Part | _End:
        """Return the next part, which may still be on its way through the workers."""
        part = self._parts.get()
        self._room.release()
        return part

    def stop(self) -> None:
        """End the threads; what they have not begun is not done any more."""
        self._stopping = True
        self._room.release()  # the reader may be waiting for it
        self._callers.stop()  # first: a caller waits for what workers prepare
        self._workers.stop()
        deadline = time.monotonic() + PATIENCE
        for thread in (self._thread, *self._workers.threads, *self._callers.threads):
            thread.join(max(0.0, deadline - time.monotonic()))

    def _read(self) -> None:
        images: list[ImageLike] = []
        loaded: list[_Loaded] = []
        error = None
        try:
            for image in self._source if isinstance(self._source, Sequence) else map(_kept, self._source):
                images.append(image)
                loaded.append(self._load(image))
                if len(images) == self._batch:
                    self._hand_over(images, loaded)
                    images, loaded = [], []
                    self._room.acquire()
                if self._stopping:
                    return
        except BaseException as raised:  # raised again by whoever iterates
            error = raised
        if images:
            self._hand_over(images, loaded)
        self._parts.put(_End(error))

    def _load(self, image: ImageLike) -> _Loaded:
        """Let a worker load an image. One on a GPU is taken at once: this thread knows what must be waited for."""
        load = partial(_timed, partial(self._stages.load, image))
        if not is_on_gpu(image):
            return self._workers.submit(load)
        future: _Loaded = Future()
        _settle(future, load)
        return future

    def _hand_over(self, images: list[ImageLike], loaded: list[_Loaded]) -> None:
        """Let a worker prepare the images as a batch; those before it have been told to load them."""
        prepared = self._workers.submit(partial(_timed, lambda: self._prepare(loaded)))
        inferred = self._callers.submit(lambda: self._infer(prepared)) if self._callers.threads else None
        self._parts.put(_Part(images, loaded, prepared, inferred))

    def _prepare(self, loaded: Sequence[_Loaded]) -> Batch | None:
        frames = _frames(loaded)
        return self._stages.prepare(frames) if frames else None

    def _infer(self, prepared: Future[tuple[Batch | None, float]]) -> tuple[Outputs, float]:
        batch, _ = prepared.result()
        return ({}, 0.0) if batch is None else _timed(lambda: self._stages.infer(batch))


class _Workers:
    """Threads that do what they are given, in that order; they don't keep a process from ending, as an executor's do.

    Work may wait for work that was given before.
    """

    def __init__(self, count: int) -> None:
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self.threads = [Thread(target=self._work, name=THREAD_NAME, daemon=True) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Return where the result of `work` will be."""
        future: Future[T] = Future()
        self._queue.put((future, work))
        return future

    def stop(self) -> None:
        """Cancel what has not begun, and end the threads."""
        with suppress(Empty):
            while item := self._queue.get_nowait():
                item[0].cancel()
        for _ in self.threads:
            self._queue.put(None)

    def _work(self) -> None:
        while item := self._queue.get():
            future, work = item
            if future.set_running_or_notify_cancel():
                _settle(future, work)


def _settle(future: Future[T], work: Callable[[], T]) -> None:
    """Do the work, and let `future` hold its result or its error."""
    try:
        future.set_result(work())
    except BaseException as error:  # raised again by whoever takes the result
        future.set_exception(error)
