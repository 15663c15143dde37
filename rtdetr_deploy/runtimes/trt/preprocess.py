"""Preprocessing that is a part of engines' calls: frames are resized on the GPU, wherever they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rtdetr_deploy.images.gpu_frame import AnyFrame, GpuFrame
from rtdetr_deploy.runtimes.trt.bindings import Binding, resize_destination
from rtdetr_deploy.runtimes.trt.cuda import Stream
from rtdetr_deploy.runtimes.trt.cuda_resize import FrameResizer


@dataclass(frozen=True)
class FrameBatch:
    """Frames that become `rows` rows of an input when the engine is called; see `DeviceBatch`.

    `reader` is what the engine knows its own by.
    """

    frames: tuple[AnyFrame, ...]
    rows: int
    input: str
    reader: object = field(repr=False)

    def __len__(self) -> int:
        return self.rows

    def is_for(self, reader: object, name: str) -> bool:
        """Tell whether it is for the input `name` of the engine of `reader`, and its frames on the GPU are, too."""
        arrays = [frame.array for frame in self.frames if isinstance(frame, GpuFrame)]
        return self.reader is reader and self.input == name and all(array.reader is reader for array in arrays)

    def queue(self, stream: Stream, resizer: FrameResizer, binding: Binding, file: str) -> None:
        """Queue the frames into the input's memory on the GPU, and zeros into the rows behind them."""
        destination = resize_destination(binding, file)
        resizer.queue(stream, self.frames, destination)
        done = len(self.frames) * destination.stride
        if self.rows > len(self.frames):
            stream.clear(binding.device, binding.size(self.rows) - done, done)


@dataclass(frozen=True)
class CudaPreprocessor:
    """Makes batches of frames, of `min_batch` rows at least, for an input of an engine; see `Preprocessor`."""

    input: str
    min_batch: int
    reader: object = field(repr=False)

    def __call__(self, frames: Sequence[AnyFrame], rows: int) -> FrameBatch:
        """See `Preprocessor`; the frames are only held here."""
        return FrameBatch(tuple(frames), max(rows, len(frames), self.min_batch), self.input, self.reader)
