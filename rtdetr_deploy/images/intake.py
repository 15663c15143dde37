"""From whatever a user calls an image to the input of one model, on the CPU or where the model runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from rtdetr_deploy.errors import ImageError, OptionError
from rtdetr_deploy.images.frame import Color, ImageLike, load_frame
from rtdetr_deploy.images.gpu_array import (
    GpuArray,
    as_host_array,
    is_on_gpu,
    is_third_party_array,
    refuse_gpu_array,
)
from rtdetr_deploy.images.gpu_frame import AnyFrame, GpuFrame, as_gpu_frame
from rtdetr_deploy.images.preprocess import HOST_RESIZERS, HostPreprocessor
from rtdetr_deploy.images.preprocess_spec import PreprocessSpec
from rtdetr_deploy.runtimes.protocol import (
    Array,
    DeviceBatch,
    GpuRuntime,
    PreprocessingRuntime,
    Preprocessor,
    Runtime,
)

ENOUGH = 2
"""How many times as high and wide as the input a JPEG must stay (docs/pipeline.md: what less and more cost)."""


class Intake:
    """Loads and prepares images for the input `name` of a runtime, which wants what `spec` says.

    JPEG files are decoded small where that leaves `ENOUGH` times the input, unless they are asked for whole. Several
    threads may use it at once. Raises `OptionError` for a resizer that neither the CPU nor the runtime has.
    """

    def __init__(self, runtime: Runtime, name: str, spec: PreprocessSpec, resizer: str, max_pixels: int) -> None:
        self._runtime, self._name, self._spec = runtime, name, spec
        self._max_pixels = max_pixels
        self._prepare = _open_preprocessor(runtime, name, resizer, spec)
        self._prepare_on_gpu: Preprocessor | None = None

    def load(self, image: ImageLike, color: Color, *, whole: bool = True) -> AnyFrame:
        """Return the pixels of an image; see `load_frame`. Arrays on the runtime's GPU stay there.

        Unless it is asked for `whole`, a JPEG may have fewer (`Frame.reduction`).
        """
        if is_third_party_array(image):
            image = self.receive(image, "the image")
        if isinstance(image, GpuArray):
            return as_gpu_frame(image, color)
        if isinstance(image, GpuFrame):
            return image
        enough = None if whole else self._enough
        return load_frame(image, color=color, max_pixels=self._max_pixels, enough=enough)

    def _enough(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the smallest (height, width) to which a JPEG of this one may be decoded."""
        _, _, wide, tall = self._spec.window(size)
        return ENOUGH * tall, ENOUGH * wide

    def receive(self, array: object, what: str) -> Array | GpuArray:
        """Return an array of another library as NumPy's, or where it is on the runtime's GPU. Raises `ImageError`."""
        if not is_on_gpu(array):
            return as_host_array(array, what)
        if not isinstance(self._runtime, GpuRuntime):
            raise refuse_gpu_array(what, self._runtime.name)
        return self._runtime.receive(array, what)

    def receive_listed(self, images: Iterable[ImageLike]) -> dict[int, GpuArray]:
        """Return the arrays of a list that are on the GPU, by identity, as the caller's thread knows them.

        Which stream's work must be waited for depends on the thread. Other sources are iterated in a thread of their
        own, where their arrays are made, too.
        """
        received: dict[int, GpuArray] = {}
        if isinstance(self._runtime, GpuRuntime) and isinstance(images, (list, tuple)):
            for image in images:
                if is_on_gpu(image):
                    with suppress(ImageError):  # raised again in its turn
                        received[id(image)] = self._runtime.receive(image, "the image")
        return received

    def prepare(self, frames: Sequence[AnyFrame], rows: int) -> Array | DeviceBatch:
        """Return a batch of `rows` rows; one with a frame on the GPU is made there."""
        prepare = self._prepare
        if isinstance(self._runtime, GpuRuntime) and any(isinstance(frame, GpuFrame) for frame in frames):
            prepare = self._find_gpu_preprocessor(self._runtime)
        return prepare(frames, rows)

    def _find_gpu_preprocessor(self, runtime: GpuRuntime) -> Preprocessor:
        """Return what prepares frames on the GPU. Raises `OptionError` for inputs that it can't make."""
        if self._prepare_on_gpu is None:
            try:
                self._prepare_on_gpu = runtime.preprocessor(self._name, "cuda", self._spec)
            except OptionError as error:
                raise OptionError(f"frames on the GPU can't be used here, copy them to the CPU: {error}") from error
        return self._prepare_on_gpu


def _open_preprocessor(runtime: Runtime, name: str, resizer: str, spec: PreprocessSpec) -> Preprocessor:
    """Return what prepares the input `name`: the runtime's own preprocessor where `resizer` is one of its."""
    if resizer in HOST_RESIZERS:
        return HostPreprocessor(spec, resizer)
    if isinstance(runtime, PreprocessingRuntime) and resizer in runtime.resizers:
        return runtime.preprocessor(name, resizer, spec)
    own = sorted(runtime.resizers) if isinstance(runtime, PreprocessingRuntime) else []
    raise OptionError(
        f"`resizer` is {resizer!r}, expected {' or '.join((*HOST_RESIZERS, *own))}: {runtime.file} is run by "
        f"{runtime.name}"
    )
