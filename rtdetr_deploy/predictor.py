"""From an image to detections: prepare, infer, decode.

from rtdetr_deploy import Predictor

detections = Predictor("r50-l6-640x640-fp32.onnx").detect("street.jpg")
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from rtdetr_deploy.artifacts.class_names import (
    COCO_NAMES,
    Classes,
    as_classes,
    check_class_names,
    default_class_names,
    find_labels,
    read_class_names,
)
from rtdetr_deploy.artifacts.metadata import ArtifactInfo, NamesSource, ThirdPartyInfo
from rtdetr_deploy.detections import Detections, check_threshold
from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.images.frame import MAX_PIXELS, Color, Frame, ImageLike, check_max_pixels, load_frame
from rtdetr_deploy.images.preprocess import RESIZERS, Resizer, prepare_batch
from rtdetr_deploy.postprocess import check_finite, decode_raw, to_pixels
from rtdetr_deploy.runtimes import (
    Array,
    DeviceBatch,
    Feed,
    PreprocessingRuntime,
    Preprocessor,
    Runtime,
    RuntimeOptions,
    open_runtime,
)
from rtdetr_deploy.signature import check_outputs, infer_signature

MAX_DETECTIONS = 300
"""Detections kept of raw outputs, as the released models do."""

MAX_BATCH = 8
"""Images that go through a model of dynamic batch at once."""

Prepared = Array | DeviceBatch
"""The model's input, or what the runtime will make it of."""


class Predictor:
    """A loaded model. Several threads may call it at once.

    `engine` is the model file, or a runtime that is open already; `threshold` the smallest score that is kept unless a
    call says otherwise. `class_names` (a list, or a file with one name per line) replaces the names stored in the file.
    `resizer` is "opencv" or "pillow", or for TensorRT engines "cuda": frames cross the bus as they are and are resized
    on the GPU (see `preprocess`). `threads` limits the engine's threads. `device` is "cpu" or "cuda" (an NVIDIA GPU;
    for .onnx files that needs onnxruntime-gpu); by default engines run on the GPU and all else on the CPU. `size`
    (height, width) is needed for third-party files that leave it open. `max_pixels` is the largest image that is
    decoded.

    Raises `ArtifactError` when the file can't be run, `OptionError` for other arguments.
    """

    def __init__(
        self,
        engine: str | Path | Runtime,
        threshold: float = 0.5,
        *,
        class_names: Sequence[str] | str | Path | None = None,
        resizer: Resizer = "opencv",
        threads: int | None = None,
        device: str | None = None,
        size: tuple[int, int] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.threshold = check_threshold(threshold)
        if resizer not in RESIZERS:
            raise OptionError(f"unknown resizer {resizer!r}; choose one of {', '.join(RESIZERS)}")
        self._resizer: Resizer = resizer
        self._max_pixels = check_max_pixels(max_pixels)
        if class_names is not None and not isinstance(class_names, (str, Path, Sequence, np.ndarray)):
            raise OptionError(f"class_names is {class_names!r}, expected a list of names or a file with one per line")
        if isinstance(engine, (str, Path)):
            self._runtime = open_runtime(engine, options=RuntimeOptions(device=device, threads=threads))
        elif isinstance(engine, Runtime):
            self._runtime = engine
        else:
            raise OptionError(f"engine is {engine!r}, expected a model file or what open_runtime returns")
        self._name = self._runtime.file
        try:
            self._contract = infer_signature(self._runtime, self._name, size)
            self._preprocessor = self._find_preprocessor()
            self._names, self._names_source = self._decide_names(class_names)
        except BaseException:
            if isinstance(engine, (str, Path)):  # what was opened here; a GPU's memory isn't freed by itself
                self._runtime.close()
            raise

    @property
    def info(self) -> ArtifactInfo | ThirdPartyInfo:
        """What is stored with the file; of third-party files what can be told, and where their names come from."""
        contract = self._contract
        if contract.info is not None:
            return contract.info
        size = (contract.height, contract.width)
        return ThirdPartyInfo(self._names, self._names_source, *size, contract.batch, contract.kind, contract.raw_input)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label; empty where a third-party file doesn't tell how many there are."""
        return self._names

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels to which images are resized."""
        return self._contract.height, self._contract.width

    @property
    def batch(self) -> int | None:
        """Number of images that the model takes at once; None where any number will do."""
        return self._contract.batch

    @property
    def runtime(self) -> str:
        """The engine that runs the model, and its version."""
        return self._runtime.name

    def detect(
        self,
        image: ImageLike,
        *,
        threshold: float | None = None,
        classes: Classes | None = None,
        color: Color = "bgr",
    ) -> Detections:
        """Return the objects in one image, best first.

        `image` is a path, encoded bytes, a PIL image, or an array (h, w[, 1 | 3 | 4]) uint8 or uint16 with its
        channels in the order `color` ("bgr" as OpenCV gives them, or "rgb"). `threshold` replaces the Predictor's;
        `classes` keeps these class names or indices only.

        Raises `ImageError` for an unusable image, `OptionError` for a bad threshold or an unknown class.
        """
        return self.detect_batch([image], threshold=threshold, classes=classes, color=color)[0]

    def detect_batch(
        self,
        images: Iterable[ImageLike],
        *,
        threshold: float | None = None,
        classes: Classes | None = None,
        color: Color = "bgr",
    ) -> list[Detections]:
        """Return one `Detections` per image; the images may differ in size. Arguments are those of `detect`."""
        check_threshold(self.threshold if threshold is None else threshold)
        classes = self.labels_of(classes)
        images = _as_list(images)
        results: list[Detections] = []
        step = self.batch or min(MAX_BATCH, self._runtime.max_batch or MAX_BATCH)
        for start in range(0, len(images), step):
            frames = self.load(images[start : start + step], color=color)
            outputs = self.infer(self.prepare(frames))
            results += self.decode(outputs, [f.size for f in frames], threshold=threshold, classes=classes)
        return results

    def load(self, images: Iterable[ImageLike], *, color: Color = "bgr") -> list[Frame]:
        """Return the pixels of each image (step 1 of 4)."""
        return [load_frame(image, color=color, max_pixels=self._max_pixels) for image in _as_list(images)]

    def prepare(self, frames: Sequence[Frame]) -> Prepared:
        """Return the frames as the model's input (step 2 of 4); unused rows of a fixed batch are zero.

        With the resizer "cuda" the frames are returned as they are: `infer` does the work.
        """
        contract = self._contract
        if self._preprocessor is not None:
            return self._preprocessor(frames, contract.batch or len(frames))
        batch = prepare_batch(frames, contract.height, contract.width, resizer=self._resizer, raw=contract.raw_input)
        missing = (contract.batch or 0) - len(frames)
        if missing > 0:
            batch = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), batch.dtype)])
        return batch.astype(contract.images.dtype, copy=False)

    def infer(self, batch: Prepared) -> dict[str, Array]:
        """Run the model on a prepared batch (step 3 of 4) and return its outputs by role, e.g. "boxes"."""
        contract = self._contract
        feed: Feed = {contract.images.name: batch}
        if contract.sizes is not None:
            feed = {**feed, contract.sizes.name: np.ones((len(batch), 2), contract.sizes.dtype)}
        outputs = self._runtime.run(feed)
        found = {role: outputs[name] for role, name in contract.roles.items()}
        check_outputs(contract.kind, {role: array.shape for role, array in found.items()}, self._name)
        return found

    def decode(
        self,
        outputs: Mapping[str, Array],
        sizes: Sequence[tuple[int, int]],
        *,
        threshold: float | None = None,
        classes: Classes | None = None,
    ) -> list[Detections]:
        """Turn outputs into detections for images of `sizes` (height, width) (step 4 of 4)."""
        limit = check_threshold(self.threshold if threshold is None else threshold)
        labels = self.labels_of(classes)
        return [self._decode_one(outputs, row, size, limit, labels) for row, size in enumerate(sizes)]

    def warmup(self, runs: int = 2) -> None:
        """Run the model on black images, so that the first real call is as fast as the next."""
        batch = self.prepare([Frame(np.zeros((*self.input_size, 3), np.uint8), rgb=True)])
        for _ in range(runs):
            self.infer(batch)

    def close(self) -> None:
        """Free the model; later calls raise `ArtifactError`."""
        self._runtime.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decode_one(
        self,
        outputs: Mapping[str, Array],
        row: int,
        size: tuple[int, int],
        threshold: float,
        wanted: frozenset[int] | None,
    ) -> Detections:
        if self._contract.kind == "raw":
            check_finite(outputs["boxes"][row], outputs["logits"][row], self._name)
            limit = self._contract.info.max_detections if self._contract.info else MAX_DETECTIONS
            logits, raw_boxes = (outputs[role][row].astype(np.float32, copy=False) for role in ("logits", "boxes"))
            labels, boxes, scores = decode_raw(logits, raw_boxes, limit)
        else:
            labels, boxes, scores = (outputs[role][row] for role in ("labels", "boxes", "scores"))
            check_finite(boxes, scores, self._name)
        keep: NDArray[np.bool_] = scores >= threshold
        if wanted is not None:
            keep &= np.isin(labels, list(wanted))
        order = np.flatnonzero(keep)
        order = order[np.argsort(-scores[order], kind="stable")]
        chosen = labels[order].astype(np.int64)
        return Detections(
            boxes=to_pixels(boxes[order], *size),
            scores=scores[order].astype(np.float32),
            labels=chosen,
            names=tuple(self._name_of(int(label)) for label in chosen),
            class_names=self._names,
        )

    def _find_preprocessor(self) -> Preprocessor | None:
        """Return the runtime's own preprocessor where the resizer is one of its; None for those of the host."""
        if self._resizer != "cuda":
            return None
        if not isinstance(self._runtime, PreprocessingRuntime) or self._resizer not in self._runtime.resizers:
            raise OptionError(f'`resizer="cuda"` is for TensorRT engines; {self._name} is run by {self.runtime}')
        return self._runtime.preprocessor(self._contract.images.name, self._resizer, None)

    def _name_of(self, label: int) -> str:
        return self._names[label] if 0 <= label < len(self._names) else f"class {label}"

    def labels_of(self, classes: Classes | None) -> frozenset[int] | None:
        """Return the class indices that `classes` (names, indices, or one of them) stands for; None for all.

        Raises `OptionError` for a class that the model doesn't have.
        """
        return None if classes is None else find_labels(as_classes(classes), self._names)

    def _decide_names(self, given: Sequence[str] | str | Path | None) -> tuple[tuple[str, ...], NamesSource]:
        """Return the name of each label, and where the names come from."""
        names = read_class_names(given) if isinstance(given, (str, Path)) else given
        count = self._count_classes()
        if names is not None:
            return (tuple(names) if count is None else check_class_names(names, count, "class_names")), "given"
        if self._contract.info is not None:
            return self._contract.info.class_names, "file"
        if count is None:
            return (), "unknown"
        return default_class_names(count), "coco" if count == len(COCO_NAMES) else "numbered"

    def _count_classes(self) -> int | None:
        contract = self._contract
        if contract.info is not None:
            return len(contract.info.class_names)
        output = contract.roles["logits" if contract.kind == "raw" else "labels"]
        spec = next(spec for spec in self._runtime.outputs if spec.name == output)
        return spec.shape[-1] if contract.kind == "raw" else spec.classes


def _as_list(images: Iterable[ImageLike]) -> list[ImageLike]:
    """Return `images` as a list; `OptionError` for a single image, whose rows or bytes would pass as images."""
    single = isinstance(images, (str, Path, bytes, bytearray, np.ndarray)) or not isinstance(images, Iterable)
    if single and not (isinstance(images, np.ndarray) and images.ndim == 4):
        raise OptionError("expected a list of images; for a single one call detect")
    return list(images)
