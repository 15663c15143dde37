"""Preprocessing that is a part of engines' calls: frames cross the bus as they are and are resized on the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rtdetr_deploy.images.frame import Frame
from rtdetr_deploy.runtimes.trt.bindings import Binding
from rtdetr_deploy.runtimes.trt.cuda import Stream
from rtdetr_deploy.runtimes.trt.cuda_resize import FrameResizer, ResizeDestination


@dataclass(frozen=True)
class FrameBatch:
    """Frames that become `rows` rows of the input `binding` when the engine is called; see `DeviceBatch`."""

    frames: tuple[Frame, ...]
    rows: int
    binding: Binding = field(repr=False)
    destination: ResizeDestination = field(repr=False)

    def __len__(self) -> int:
        return self.rows

    def queue(self, stream: Stream, resizer: FrameResizer) -> None:
        """Queue the frames into the input's memory on the GPU, and zeros into the rows behind them."""
        resizer.queue(stream, self.frames, self.destination)
        done = len(self.frames) * self.destination.stride
        if self.rows > len(self.frames):
            stream.clear(self.binding.device, self.binding.size(self.rows) - done, done)


@dataclass(frozen=True)
class CudaPreprocessor:
    """Makes batches of frames for one input of an engine, of `min_batch` rows at least; see `Preprocessor`."""

    binding: Binding
    destination: ResizeDestination
    min_batch: int

    def __call__(self, frames: Sequence[Frame], rows: int) -> FrameBatch:
        """See `Preprocessor`; the frames are only held here."""
        return FrameBatch(tuple(frames), max(rows, len(frames), self.min_batch), self.binding, self.destination)
