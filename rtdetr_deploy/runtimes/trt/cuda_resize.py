"""Resizing and scaling of frames on the GPU: a kernel of our own, compiled when it is first needed.

What `preprocess` does with "opencv", without the way over the CPU: each frame crosses the bus once, as the bytes that
the camera or decoder gave. The arithmetic is that of OpenCV's `INTER_LINEAR` for bytes (measured: at most 0.5 % of
the values differ, by one of 255 levels).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from rtdetr_deploy.images.frame import Frame
from rtdetr_deploy.runtimes.trt.compile_kernel import compile_kernel
from rtdetr_deploy.runtimes.trt.cuda import Cuda, DeviceMemory, Gpu, PinnedArray, Stream

KERNEL = r"""
// Weights of 11 bits and the roundings are those of cv2.resize. Outside the frame its edge goes on.
struct Pair { int first, second, first_weight, second_weight; };

static __device__ inline Pair find_pair(int place, int size, int target_size)
{
    float position = (float)((place + 0.5) * ((double)size / target_size) - 0.5);
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
// bytes: the target is (rows, columns, 3) bytes, else three planes of floats in [0, 1]. Both are RGB.
extern "C" __global__ void resize_frame(const unsigned char* frame, int height, int width, int rgb,
                                        unsigned char* target, int rows, int columns, int bytes)
{
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    int row = blockIdx.y * blockDim.y + threadIdx.y;
    if (column >= columns || row >= rows)
        return;
    Pair x = find_pair(column, width, columns), y = find_pair(row, height, rows);
    const unsigned char* upper = frame + (size_t)y.first * width * 3;
    const unsigned char* lower = frame + (size_t)y.second * width * 3;
    size_t pixel = (size_t)row * columns + column;
    for (int channel = 0; channel < 3; ++channel) {
        int left = x.first * 3 + (rgb ? channel : 2 - channel), right = left + (x.second - x.first) * 3;
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
ARGUMENTS = (ctypes.c_void_p, *(ctypes.c_int,) * 3, ctypes.c_void_p, *(ctypes.c_int,) * 3)


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


class FrameResizer:
    """The kernel, and memory for frames on both sides of the bus, which grows with them."""

    def __init__(self, cuda: Cuda, gpu: Gpu) -> None:
        self._cuda = cuda
        self._module = cuda.call_driver("cuModuleLoadData", compile_kernel(KERNEL, NAME, gpu))
        self._kernel = self._cuda.call_driver("cuModuleGetFunction", self._module, NAME.encode())
        self._host: PinnedArray | None = None
        self._device: DeviceMemory | None = None

    def queue(self, stream: Stream, frames: Sequence[Frame], destination: ResizeDestination) -> None:
        """Queue copies of the frames to the GPU, and the kernel for each, into the first images of `destination`.

        The stream must be idle: the memory of the call before is used again.
        """
        host, device = self._reserve(sum(frame.pixels.nbytes for frame in frames))
        offset = 0
        for index, frame in enumerate(frames):
            size = frame.pixels.nbytes
            host.array[offset : offset + size].reshape(frame.pixels.shape)[:] = frame.pixels
            stream.upload(device, host, size, offset)
            self._launch(stream, device.address + offset, frame, destination, index)
            offset += size

    def close(self) -> None:
        """Free memory and kernel."""
        with ExitStack() as stack:  # each is freed, also when another can't be
            if self._module is not None:
                stack.callback(self._cuda.call_driver, "cuModuleUnload", self._module)
            for block in (self._host, self._device):
                if block is not None:
                    stack.callback(block.close)
        self._module = self._host = self._device = None

    def _launch(self, stream: Stream, source: int, frame: Frame, destination: ResizeDestination, index: int) -> None:
        height, width = frame.size
        into = destination.memory.address + index * destination.stride
        rows, columns = destination.height, destination.width
        values = (source, height, width, int(frame.rgb), into, rows, columns, int(destination.is_uint8))
        grid = (-(-columns // BLOCK), -(-rows // BLOCK), 1)
        self._cuda.call_driver(
            "cuLaunchKernel", self._kernel, *grid, BLOCK, BLOCK, 1, 0, stream.handle, (values, ARGUMENTS), 0
        )

    def _reserve(self, size: int) -> tuple[PinnedArray, DeviceMemory]:
        if self._host is not None and self._device is not None and self._device.size >= size:
            return self._host, self._device
        for block in (self._host, self._device):
            if block is not None:
                block.close()
        self._host = self._device = None
        self._host = PinnedArray(self._cuda, (size,), np.dtype(np.uint8))
        self._device = DeviceMemory(self._cuda, size)
        return self._host, self._device
