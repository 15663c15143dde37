"""From an image to detections: prepare, infer, decode.

from rtdetr_deploy import Predictor

detections = Predictor("r50-l6-640x640-fp32.onnx").detect("street.jpg")
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

import numpy as np

from rtdetr_deploy.artifacts.class_names import Classes, as_classes, find_labels, resolve_class_names
from rtdetr_deploy.artifacts.decoding import MAX_DETECTIONS, RTDETR_DECODING
from rtdetr_deploy.artifacts.metadata import ArtifactInfo, ThirdPartyInfo
from rtdetr_deploy.detections import Detections, check_threshold
from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.images.frame import MAX_PIXELS, Color, Frame, ImageLike, check_color, check_max_pixels
from rtdetr_deploy.images.gpu_array import HasCudaInterface, HasDlpack, is_third_party_array
from rtdetr_deploy.images.gpu_frame import AnyFrame
from rtdetr_deploy.images.intake import Intake
from rtdetr_deploy.images.preprocess import to_image
from rtdetr_deploy.images.preprocess_spec import PreprocessSpec
from rtdetr_deploy.postprocess import decode_outputs, keep_best
from rtdetr_deploy.runtimes import RuntimeOptions, open_runtime
from rtdetr_deploy.runtimes.options import Hint, Precision
from rtdetr_deploy.runtimes.protocol import Array, DeviceOutput, GpuRuntime, ParallelRuntime, Runtime
from rtdetr_deploy.signature import IOSignature, check_outputs, infer_signature
from rtdetr_deploy.stream import Batch, Found, Stages, Unreadable, check_iterable, detections_of, run_stream

MAX_BATCH = 8
"""Images that go through a model of dynamic batch at once."""

Names = Sequence[str] | str | Path
AnyOutput = Array | DeviceOutput


class Predictor:
    """A loaded model. Several threads may call it at once.

    `engine` is the model file or its content, or a runtime that is open already; `threshold` the smallest score that
    is kept unless a call says otherwise. `class_names` (a list, or a file with one name per line) replaces the names
    stored in the file. `resizer` is "opencv" or "pillow", or what the runtime offers besides: "cuda" of TensorRT
    engines, where frames cross the bus as they are and are resized on the GPU; frames that lie there already are always
    resized there. `runtime` ("onnxruntime", "openvino", "tensorrt", "torch") runs the file instead of its default (see
    docs/files.md); `device`, `threads`, `precision`, `hint`, `slots`, `cache`, `spinning` and `blocking_sync` are those
    of `RuntimeOptions`. `size` (height, width) is needed for third-party files that leave it open, and may be given for
    checkpoints. `max_pixels` is the largest image that is decoded. JPEG files much larger than the input are decoded
    at a fraction of their size, which takes a fraction of the time, unless `full_decode` is set (docs/pipeline.md).

    Raises `ArtifactError` when the file can't be run, `OptionError` for other arguments.
    """

    def __init__(
        self,
        engine: str | Path | bytes | Runtime,
        threshold: float = 0.5,
        *,
        class_names: Names | None = None,
        resizer: str = "opencv",
        runtime: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        precision: Precision | None = None,
        hint: Hint | None = None,
        slots: int | None = None,
        cache: str | Path | None = None,
        spinning: bool = False,
        blocking_sync: bool = False,
        size: tuple[int, int] | None = None,
        max_pixels: int = MAX_PIXELS,
        full_decode: bool = False,
    ) -> None:
        self.threshold = check_threshold(threshold)
        limit = check_max_pixels(max_pixels)
        if not isinstance(full_decode, bool):
            raise OptionError(f"`full_decode` is {full_decode!r}, expected True or False")
        self._full_decode = full_decode
        if class_names is not None and not isinstance(class_names, (str, Path, Sequence, np.ndarray)):
            raise OptionError(f"`class_names` is {class_names!r}, expected a list of names or a file with one per line")
        how: dict[str, Any] = {"device": device, "threads": threads, "precision": precision, "hint": hint}
        how |= {"slots": slots, "cache": cache, "spinning": spinning, "blocking_sync": blocking_sync}
        self._runtime = _open(engine, runtime, how, size)
        try:
            self._signature = infer_signature(self._runtime, self._runtime.file, size)
            self._spec = _spec_of(self._signature)
            self._intake = Intake(self._runtime, self._signature.images.name, self._spec, resizer, limit)
            info = self._signature.info
            self._decoding = (info.max_detections, info.decoding) if info else (MAX_DETECTIONS, RTDETR_DECODING)
            stored = info.class_names if info else None
            self._names, self._names_source = resolve_class_names(class_names, stored, self._count_classes())
        except BaseException:
            if self._runtime is not engine:  # what was opened here; a GPU's memory isn't freed by itself
                self._runtime.close()
            raise

    @property
    def info(self) -> ArtifactInfo | ThirdPartyInfo:
        """What is stored with the file, and what runs it; of third-party files what can be told of them."""
        signature = self._signature
        if signature.info is not None:
            return replace(signature.info, runtime=self.runtime)
        size = (signature.height, signature.width)
        return ThirdPartyInfo(
            self._names, self._names_source, *size, signature.batch, signature.kind, signature.raw_input, self.runtime
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label; empty where a third-party file doesn't tell how many there are."""
        return self._names

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels to which images are resized."""
        return self._signature.height, self._signature.width

    @property
    def batch(self) -> int | None:
        """Number of images that the model takes at once; None where any number will do."""
        return self._signature.batch

    @property
    def slots(self) -> int:
        """Calls of the model that run at the same time; further ones wait."""
        return self._runtime.slots if isinstance(self._runtime, ParallelRuntime) else 1

    @property
    def runtime(self) -> str:
        """What runs the model, its version and device, and its arithmetic where that is not FP32."""
        return self._runtime.name

    @property
    def arithmetic(self) -> str | None:
        """What the parts of the file that are in FP32 are computed in: "fp32", "bf16" or "fp16".

        None where the runtime doesn't tell: engines have it decided for each layer.
        """
        return getattr(self._runtime, "arithmetic", None)

    def detect(
        self,
        image: ImageLike,
        *,
        threshold: float | None = None,
        classes: Classes | None = None,
        color: Color = "bgr",
    ) -> Detections:
        """Return the objects in one image, best first.

        `image` is a path, encoded bytes, a PIL image, a `Frame`, or an array (h, w[, 1 | 3 | 4]) uint8 or uint16 with
        its channels in the order `color` ("bgr" as OpenCV gives them, or "rgb"). Arrays of other libraries (torch,
        CuPy, PyCUDA ...) are taken by the same rules, by DLPack or `__cuda_array_interface__`; TensorRT engines read
        those on their GPU where they lie, after the work that the caller has queued for them, and other runtimes refuse
        arrays on GPUs. An array may be changed when the call has returned. `threshold` replaces the Predictor's;
        `classes` keeps these class names or indices only.

        Raises `ImageError` for an unusable image, `OptionError` for a bad threshold or an unknown class.
        """
        limit, labels = self._threshold(threshold), self.labels_of(classes)
        frames = [self._intake.load(image, color, whole=self._full_decode)]
        outputs = self.infer(self.prepare(frames))
        return self._decode_one(outputs, 0, frames[0].size, limit, labels)

    def detect_batch(
        self,
        images: Iterable[ImageLike],
        *,
        threshold: float | None = None,
        classes: Classes | None = None,
        color: Color = "bgr",
    ) -> list[Detections]:
        """Return one `Detections` per image; the images may differ in size. Arguments are those of `detect`."""
        return list(self.stream(images, threshold=threshold, classes=classes, color=color))

    def stream(
        self,
        frames: Iterable[ImageLike],
        *,
        threshold: float | None = None,
        classes: Classes | None = None,
        color: Color = "bgr",
        batch: int | None = None,
    ) -> Generator[Detections, None, None]:
        """Yield one `Detections` per frame, in order, while the next are read and prepared in threads.

        `frames` may be endless: it is pulled from by a thread, a few frames further than what is yielded (see
        `rtdetr_deploy.stream`). `batch` is how many go through the model at once, by default as many as a fixed batch
        takes, and 8 where it is dynamic; 1 gives each result soonest. Runtimes of several slots (engines; on CPUs
        with `slots` or `hint="throughput"`) run as many batches at once.
        Arrays on a GPU are not copied when they are read: each stays as it is until its result is there. Leaving the
        loop, or `close()` of the iterator, ends the threads. Other arguments and errors are those of `detect`; an image
        that can't be read ends the stream in its turn. `stream_results` goes on, and tells which image a result belongs
        to.
        """
        results = self.stream_results(
            frames, threshold=threshold, classes=classes, color=color, batch=batch, whole_frames=False
        )
        return detections_of(results)

    def stream_results(
        self,
        images: Iterable[ImageLike],
        *,
        threshold: float | None = None,
        classes: Classes | None = None,
        color: Color = "bgr",
        batch: int | None = None,
        whole_frames: bool = True,
    ) -> Generator[Found | Unreadable, None, None]:
        """As `stream`, with each image, its pixels and times; an image that can't be read is told and passed over.

        With `whole_frames=False` the pixels of a JPEG may be fewer than the picture's (`Frame.reduction`), as in
        `stream`: what doesn't look at them is faster so.
        """
        limit, labels = self._threshold(threshold), self.labels_of(classes)
        check_color(color)
        whole = whole_frames or self._full_decode
        received = self._intake.receive_listed(images)
        stages = Stages(
            load=lambda image: self._intake.load(received.get(id(image), image), color, whole=whole),
            prepare=self.prepare,
            infer=self.infer,
            decode=lambda outputs, frames: self.decode(
                outputs, [frame.size for frame in frames], threshold=limit, classes=labels
            ),
            calls=self.slots,
        )
        return run_stream(stages, check_iterable(images), self._check_batch(batch))

    def load(self, images: Iterable[ImageLike], *, color: Color = "bgr") -> list[AnyFrame]:
        """Return the pixels of each image (step 1 of 4); those on an engine's GPU stay there."""
        return [self._intake.load(image, color) for image in check_iterable(images)]

    def prepare(self, frames: Sequence[AnyFrame]) -> Batch:
        """Return the frames as the model's input (step 2 of 4); unused rows of a fixed batch are zero.

        It is an array, or with a resizer of the runtime's own, or frames on the GPU, what `infer` alone understands.
        """
        return self._intake.prepare(frames, max(len(frames), self._signature.batch or self._runtime.min_batch))

    @overload
    def infer(self, batch: Batch | HasDlpack | HasCudaInterface) -> dict[str, Array]: ...

    @overload
    def infer(
        self, batch: Batch | HasDlpack | HasCudaInterface, *, on_device: Literal[True]
    ) -> dict[str, DeviceOutput]: ...

    @overload
    def infer(self, batch: Batch | HasDlpack | HasCudaInterface, *, on_device: bool) -> Mapping[str, AnyOutput]: ...

    def infer(self, batch: Batch | HasDlpack | HasCudaInterface, *, on_device: bool = False) -> Mapping[str, AnyOutput]:
        """Run the model on a prepared batch (step 3 of 4) and return its outputs by role, e.g. "boxes".

        `batch` may be an array of another library, of the model's input type and shape; engines take it from their GPU.
        With `on_device` an engine leaves the outputs on the GPU (see `DeviceOutput`); `decode` takes those, too. They
        are computed when this returns.

        Raises `OptionError` for `on_device` with other runtimes.
        """
        signature, runtime = self._signature, self._runtime
        if is_third_party_array(batch):
            batch = self._intake.receive(batch, "the batch")
        feed = self._feed(batch)  # type: ignore[arg-type]  # what it isn't, `run` refuses
        outputs: Mapping[str, AnyOutput]
        if not on_device:
            outputs = runtime.run(feed)
        elif isinstance(runtime, GpuRuntime):
            outputs = runtime.run_on_device(feed)
        else:
            raise OptionError(f"`on_device=True` is for TensorRT engines; {runtime.file} is run by {runtime.name}")
        found = {role: outputs[name] for role, name in signature.roles.items()}
        check_outputs(signature.kind, {role: array.shape for role, array in found.items()}, runtime.file)
        return found

    def decode(
        self,
        outputs: Mapping[str, AnyOutput],
        sizes: Sequence[tuple[int, int]],
        *,
        threshold: float | None = None,
        classes: Classes | None = None,
    ) -> list[Detections]:
        """Turn outputs into detections for images of `sizes` (height, width) (step 4 of 4).

        Outputs that were left on the GPU are copied.
        """
        limit, labels = self._threshold(threshold), self.labels_of(classes)
        arrays = {role: np.asarray(output) for role, output in outputs.items()}
        return [self._decode_one(arrays, row, size, limit, labels) for row, size in enumerate(sizes)]

    def warmup(self, runs: int = 2, *, batches: int | Iterable[int] | None = None, on_device: bool = False) -> None:
        """Run the model on black images, so that the first real call is as fast as the next.

        `batches` are the batch sizes that will be used, by default the one of `detect`. Each is run `runs` times, in
        each slot; of an engine the second run records its CUDA graph. Each kind of call has one of its own: with
        `on_device` it is that of `infer(..., on_device=True)`, without it that of `detect`. For frames and inputs on
        the GPU open the engine with `resizer="cuda"`: then what resizes them is warmed, and their graph, not the one of
        inputs that lie in the CPU's memory.

        Raises `OptionError` for `on_device` with other runtimes.
        """
        sizes = [1] if batches is None else [batches] if isinstance(batches, (int, np.integer)) else list(batches)
        for size in [self._check_batch(size) for size in sizes]:
            batch = self.prepare([Frame(np.zeros((*self.input_size, 3), np.uint8), rgb=True)] * size)
            for _ in range(runs):
                if isinstance(self._runtime, GpuRuntime):
                    self._runtime.run_in_each_slot(self._feed(batch), on_device=on_device)
                elif isinstance(self._runtime, ParallelRuntime) and not on_device:
                    self._runtime.run_in_each_slot(self._feed(batch))
                else:
                    self.infer(batch, on_device=on_device)

    def close(self) -> None:
        """Free the model; later calls raise `ArtifactError`."""
        self._runtime.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def labels_of(self, classes: Classes | None) -> frozenset[int] | None:
        """Return the class indices that `classes` (names, indices, or one of them) stands for; None for all.

        Raises `OptionError` for a class that the model doesn't have.
        """
        return None if classes is None else find_labels(as_classes(classes), self._names)

    def _feed(self, batch: Batch) -> dict[str, Batch]:
        """Return what the runtime is fed with."""
        feed = {self._signature.images.name: batch}
        if self._signature.sizes is not None:
            feed[self._signature.sizes.name] = np.ones((len(batch), 2), self._signature.sizes.dtype)
        return feed

    def _threshold(self, threshold: float | None) -> float:
        return check_threshold(self.threshold if threshold is None else threshold)

    def _check_batch(self, batch: int | None) -> int:
        """Return how many images go through the model at once; `OptionError` where the model can't take `batch`."""
        limit = self.batch or self._runtime.max_batch
        if batch is None:
            return self.batch or min(MAX_BATCH, limit or MAX_BATCH)
        whole = isinstance(batch, (int, np.integer)) and not isinstance(batch, bool)
        if not whole or not 1 <= batch <= (limit or batch):
            expected = "a whole number from 1" + (f" to {limit}" if limit else "")
            raise OptionError(f"`batch` is {batch!r}, expected {expected} for {self._runtime.file}")
        return int(batch)

    def _decode_one(
        self,
        outputs: Mapping[str, Array],
        row: int,
        size: tuple[int, int],
        threshold: float,
        wanted: frozenset[int] | None,
    ) -> Detections:
        found = decode_outputs(
            {role: array[row] for role, array in outputs.items()}, *self._decoding, self._runtime.file
        )
        labels, boxes, scores = keep_best(*found, threshold, wanted)
        names = tuple(map(self._name_of, labels.tolist()))
        return Detections(to_image(boxes, self._spec, size), scores, labels, names, self._names)

    def _name_of(self, label: int) -> str:
        return self._names[label] if 0 <= label < len(self._names) else f"class {label}"

    def _count_classes(self) -> int | None:
        """Return the number of classes; None where a third-party file doesn't tell."""
        signature = self._signature
        if signature.info is not None:
            return len(signature.info.class_names)
        output = signature.roles["logits" if signature.kind == "raw" else "labels"]
        spec = next(spec for spec in self._runtime.outputs if spec.name == output)
        return spec.shape[-1] if signature.kind == "raw" else spec.classes


def _open(
    engine: str | Path | bytes | Runtime, runtime: str | None, how: Mapping[str, Any], size: tuple[int, int] | None
) -> Runtime:
    """Return the runtime of a model; raises what `open_runtime` does, and `OptionError` for other kinds of `engine`.

    `how` are fields of `RuntimeOptions`.
    """
    if isinstance(engine, (str, Path, bytes)):
        of_checkpoint = size if runtime == "torch" else None  # files leave theirs open, or know it
        return open_runtime(engine, runtime, RuntimeOptions(size=of_checkpoint, **how))
    if not isinstance(engine, Runtime):
        raise OptionError(f"`engine` is {engine!r}, expected a model file, its content, or what open_runtime returns")
    for name, value in (("runtime", runtime), *how.items()):
        if value is not None and value is not False:
            raise OptionError(f"`{name}` would be ignored: {engine.file} is open already; give it to open_runtime")
    return engine


def _spec_of(signature: IOSignature) -> PreprocessSpec:
    """Return what the input wants: what is stored with the file, else what RT-DETR wants; of the input's own dtype."""
    dtype = str(signature.images.dtype)
    if signature.info is None:
        return PreprocessSpec.rtdetr((signature.height, signature.width), dtype)
    return replace(signature.info.preprocess, dtype=dtype)  # type: ignore[arg-type]  # checked by the class
