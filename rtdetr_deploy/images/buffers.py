"""Arrays whose memory is used again once nobody refers to them.

Inputs are megabytes, which the system may hand over page by page each time. A pool can't tell when a caller is done
with an array, but the array itself can: it keeps a lease alive, and its end gives the memory back. So arrays are their
holders' as if they were fresh. (Where the C library recycles large blocks by itself, calls are as fast either way.)
"""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

KEPT_BYTES = 48 << 20
"""What a pool keeps while it is idle: a batch of 8 images of 640x640 in float32 (39 MB)."""


class Buffers:
    """Gives arrays to several threads at once. Each is its holder's alone, as long as it or a view of it is alive."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._limit = kept_bytes
        self._idle: list[NDArray[np.uint8]] = []
        self._lock = Lock()

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return a contiguous, writable array whose content is arbitrary."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        return np.asarray(_Lease(self, self._take(size), shape, kind))

    @property
    def idle_bytes(self) -> int:
        """Memory that waits to be used again."""
        return sum(memory.nbytes for memory in list(self._idle))

    def _take(self, size: int) -> NDArray[np.uint8]:
        with self._lock:
            for index, memory in enumerate(self._idle):
                if memory.nbytes == size:
                    return self._idle.pop(index)
        return np.empty(size, np.uint8)

    def give_back(self, memory: NDArray[np.uint8]) -> None:
        """Keep `memory` for later arrays of its size; what was given back first makes room for it.

        It may be called at any moment, in the middle of `empty` too: garbage is collected wherever Python happens to
        be. So it never waits for the lock, and lets the memory go where another one holds it.
        """
        if memory.nbytes > self._limit or not self._lock.acquire(blocking=False):
            return
        try:
            self._idle.append(memory)
            while sum(one.nbytes for one in self._idle) > self._limit:
                del self._idle[0]
        finally:
            self._lock.release()


class _Lease:
    """What an array of a pool refers to as the owner of its memory."""

    def __init__(self, pool: Buffers, memory: NDArray[np.uint8], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._pool, self._memory = pool, memory
        self.__array_interface__ = {**memory.__array_interface__, "shape": shape, "typestr": dtype.str}

    def __del__(self) -> None:
        self._pool.give_back(self._memory)
