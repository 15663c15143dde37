"""Resizing and scaling of frames on the GPU: a kernel of our own, compiled when it is first needed.

What `preprocess` does with "opencv", without the way over the CPU: each frame crosses the bus once, as the bytes that
the camera or decoder gave, or not at all where it lies on the GPU already. The arithmetic is that of OpenCV's
`INTER_LINEAR` for bytes (measured: at most 0.5 % of the values differ, by one of 255 levels).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from rtdetr_deploy.images.frame import Frame
from rtdetr_deploy.images.gpu_frame import AnyFrame, GpuFrame, channel_strides, high_byte_address
from rtdetr_deploy.runtimes.trt.compile_kernel import compile_kernel
from rtdetr_deploy.runtimes.trt.cuda import Cuda, DeviceMemory, Gpu, PinnedArray, Stream

KERNEL = r"""
// Weights of 11 bits and the roundings are those of cv2.resize. Outside the frame its edge goes on.
struct Pair { int first, second, first_weight, second_weight; };

static __device__ inline Pair find_pair(int place, int size, double scale)
{
    float position = (float)((place + 0.5) * scale - 0.5);
    float floor = floorf(position), part = position - floor;
    int first = (int)floor;
    if (first < 0 || first >= size - 1) {
        first = first < 0 ? 0 : size - 1;
        part = 0.0f;
    }
    int second = first + 1 < size ? first + 1 : first;
    return {first, second, (int)rintf((1.0f - part) * 2048.0f), (int)rintf(part * 2048.0f)};
}

// One thread per pixel of the model's input.
// *_step: bytes from one row, pixel and channel of the frame to the next (channel_step 0: gray).
// *_scale: size of the frame / of the input.
// bytes: the target is (rows, columns, 3) bytes, else three planes of floats in [0, 1]. Both are RGB.
extern "C" __global__ void resize_frame(const unsigned char* frame, int height, int width, int rgb,
                                        long long row_step, long long pixel_step, long long channel_step,
                                        double row_scale, double column_scale,
                                        unsigned char* target, int rows, int columns, int bytes)
{
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    int row = blockIdx.y * blockDim.y + threadIdx.y;
    if (column >= columns || row >= rows)
        return;
    Pair x = find_pair(column, width, column_scale), y = find_pair(row, height, row_scale);
    const unsigned char* upper = frame + y.first * row_step;
    const unsigned char* lower = frame + y.second * row_step;
    size_t pixel = (size_t)row * columns + column;
    for (int channel = 0; channel < 3; ++channel) {
        long long shift = (rgb ? channel : 2 - channel) * channel_step;
        long long left = x.first * pixel_step + shift, right = x.second * pixel_step + shift;
        int above = upper[left] * x.first_weight + upper[right] * x.second_weight;
        int below = lower[left] * x.first_weight + lower[right] * x.second_weight;
        int level = ((above >> 4) * y.first_weight >> 16) + ((below >> 4) * y.second_weight >> 16);
        level = (level + 2) >> 2;
        if (bytes)
            target[pixel * 3 + channel] = (unsigned char)level;
        else
            ((float*)target)[(size_t)channel * rows * columns + pixel] = level * (1.0f / 255.0f);
    }
}
"""
NAME = "resize_frame"
BLOCK = 16
"""Threads of a block on each side."""
ARGUMENTS = (
    *(ctypes.c_void_p, *(ctypes.c_int,) * 3),
    *(ctypes.c_longlong,) * 3,
    *(ctypes.c_double,) * 2,
    *(ctypes.c_void_p, *(ctypes.c_int,) * 3),
)


@dataclass(frozen=True)
class ResizeDestination:
    """Where frames go: the model's input (B, height, width, 3) of uint8, or (B, 3, height, width) of float32."""

    memory: DeviceMemory
    height: int
    width: int
    is_uint8: bool

    @property
    def stride(self) -> int:
        """Bytes of one image of the batch."""
        return self.height * self.width * 3 * (1 if self.is_uint8 else 4)


@dataclass(frozen=True)
class Pixels:
    """A frame on the GPU, of `size` (height, width); `strides` are the bytes between rows, pixels and channels."""

    address: int
    size: tuple[int, int]
    strides: tuple[int, int, int]
    rgb: bool


class ResizeKernel:
    """The kernel as machine code of one GPU, for any number of streams."""

    def __init__(self, cuda: Cuda, gpu: Gpu) -> None:
        self._cuda = cuda
        self._module = cuda.call_driver("cuModuleLoadData", compile_kernel(KERNEL, NAME, gpu))
        self._kernel = cuda.call_driver("cuModuleGetFunction", self._module, NAME.encode())

    def queue(self, stream: Stream, frame: Pixels, destination: ResizeDestination, index: int) -> None:
        """Queue the kernel for a frame, which becomes the image `index` of the batch."""
        height, width = frame.size
        rows, columns = destination.height, destination.width
        into = destination.memory.address + index * destination.stride
        values = (
            *(frame.address, height, width, int(frame.rgb)),
            *frame.strides,
            *(height / rows, width / columns),
            *(into, rows, columns, int(destination.is_uint8)),
        )
        grid = (-(-columns // BLOCK), -(-rows // BLOCK), 1)
        self._cuda.call_driver(
            "cuLaunchKernel", self._kernel, *grid, BLOCK, BLOCK, 1, 0, stream.handle, (values, ARGUMENTS), 0
        )

    def close(self) -> None:
        """Free the code."""
        if self._module is not None:
            self._cuda.call_driver("cuModuleUnload", self._module)
            self._module = None


class FrameResizer:
    """Resizes frames by a kernel; those of the CPU go through memory on both sides of the bus, which grows."""

    def __init__(self, cuda: Cuda, kernel: ResizeKernel) -> None:
        self._cuda, self._kernel = cuda, kernel
        self._host: PinnedArray | None = None
        self._device: DeviceMemory | None = None

    def queue(self, stream: Stream, frames: Sequence[AnyFrame], destination: ResizeDestination) -> None:
        """Queue the frames into the first images of `destination`; those on the GPU are read where they lie.

        The stream must be idle: the memory of the call before is used again.
        """
        host, device = self._reserve(sum(frame.pixels.nbytes for frame in frames if isinstance(frame, Frame)))
        offset = 0
        for index, frame in enumerate(frames):
            if isinstance(frame, GpuFrame):
                if frame.array.ready is not None:
                    stream.wait(frame.array.ready)
                pixels = Pixels(high_byte_address(frame), frame.size, channel_strides(frame), frame.rgb)
            else:
                size = frame.pixels.nbytes
                host.array[offset : offset + size].reshape(frame.pixels.shape)[:] = frame.pixels
                stream.upload(device, host, size, offset)
                rows, columns = frame.pixels.shape[:2]
                pixels = Pixels(device.address + offset, (rows, columns), (columns * 3, 3, 1), frame.rgb)
                offset += size
            self._kernel.queue(stream, pixels, destination, index)

    def close(self) -> None:
        """Free the memory."""
        with ExitStack() as stack:  # each is freed, also when another can't be
            for block in (self._host, self._device):
                if block is not None:
                    stack.callback(block.close)
        self._host = self._device = None

    def _reserve(self, size: int) -> tuple[PinnedArray, DeviceMemory]:
        if self._host is not None and self._device is not None and self._device.size >= size:
            return self._host, self._device
        self.close()
        self._host = PinnedArray(self._cuda, (size,), np.dtype(np.uint8))
        self._device = DeviceMemory(self._cuda, size)
        return self._host, self._device
