"""A strict double of `cuda.bindings.runtime`: GPU memory is host memory, work is done in order, misuse is an error.

It keeps count of what is allocated, so that a test can ask for leaks, double frees and use after free.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any


class Status(enum.IntEnum):
    """Statuses that the double returns; values are CUDA's."""

    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorInvalidResourceHandle = 400
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


OK = (Status.cudaSuccess,)
TEXTS = {
    Status.cudaErrorInvalidValue: b"invalid argument",
    Status.cudaErrorMemoryAllocation: b"out of memory",
    Status.cudaErrorInsufficientDriver: b"CUDA driver version is insufficient for CUDA runtime version",
    Status.cudaErrorInvalidResourceHandle: b"invalid resource handle",
    Status.cudaErrorStreamCaptureUnsupported: b"operation not permitted when stream is capturing",
    Status.cudaErrorStreamCaptureInvalidated: b"operation failed due to a previous error during capture",
}
Work = Callable[[], object]


@dataclass(eq=False)
class Task:
    """What is queued, and the addresses, handles and objects that must be there until it is done."""

    work: Work
    uses: tuple[object, ...] = ()


class Thread(threading.local):
    """What CUDA keeps for each thread: the device that was set, and the driver's stack of contexts."""

    def __init__(self) -> None:
        self.selected = 0
        self.contexts: list[int] = []


class FakeCuda:
    """The module's functions as methods, with what they made."""

    cudaError_t = Status
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)
    cudaMemoryType = SimpleNamespace(cudaMemoryTypeUnregistered=0, cudaMemoryTypeDevice=2, cudaMemoryTypeManaged=3)
    cudaEventBlockingSync = 1
    cudaEventDisableTiming = 2
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0

    def __init__(self, memory: int = 1 << 34, capability: tuple[int, int] = (7, 5), gpus: int = 1) -> None:
        self.memory = memory
        self.capability = capability
        self.gpus = gpus
        self.thread = Thread()
        self.initialized: set[int] = set()  # devices with a context, which takes memory
        self.last_error = Status.cudaSuccess
        self.faults: list[str] = []  # what a GPU would do anything at all for
        self.home: dict[int, int] = {}  # the device of each stream
        self.device: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, list[Task]] = {}
        self.defaults: dict[int, list[Task]] = {1: [], 2: []}  # the default streams, by the numbers that stand for them
        self.gpus_of: dict[int, int] = {}  # where blocks lie that are not on GPU 0
        self.contexts_of: dict[int, int | None] = {}  # of blocks outside their GPU's own; None: the driver knows none
        self.capturing: dict[int, list[Task]] = {}
        self.capturers: dict[int, int] = {}  # the threads that began them
        self.invalidated: set[int] = set()  # streams whose capture was broken by a call that is illegal in it
        self.graphs: set[int] = set()
        self.executables: dict[int, list[Task]] = {}
        self.modules: set[int] = set()
        self.events: dict[int, float | None] = {}
        self.launches = 0
        self.records = True
        self.instantiates = True
        self.empties = False  # captures that record nothing, without an error
        self.log: list[str] = []
        self.slept = 0  # waits in which the thread slept
        self._blocking: set[int] = set()
        self._marks: dict[int, tuple[int, Task]] = {}
        self._recorded: dict[int, list[Task]] = {}
        self._next = itertools.count(1001)

    @property
    def alive(self) -> int:
        """Number of blocks, streams and graphs that were not given back."""
        kinds = (self.device, self.pinned, self.streams, self.graphs, self.executables, self.modules, self.events)
        return sum(len(kind) for kind in kinds)

    @property
    def current(self) -> int:
        """The current device of this thread."""
        return self.thread.contexts[-1] if self.thread.contexts else self.thread.selected

    @current.setter
    def current(self, device: int) -> None:
        self.cudaSetDevice(device)

    def in_flight(self, thing: object = None) -> bool:
        """Tell whether work is queued that was not waited for; with `thing` work that uses it."""
        return any(thing is None or thing in task.uses for queue in list(self.streams.values()) for task in queue)

    def fail(self, status: Status, *values: Any) -> tuple[Any, ...]:
        """Return an error, which CUDA also remembers."""
        self.last_error = status
        return (status, *values)

    def _need_context(self) -> None:
        """Make the device's own context current, as calls do that need one."""
        if not self.thread.contexts:
            self.thread.contexts = [self.thread.selected]
        self.initialized.add(self.current)

    def enqueue(self, stream: int, work: Work, *uses: object) -> bool:
        """Do `work` when the stream comes to it, or record it while the stream is captured."""
        return self._put(stream, Task(work, uses))

    def _put(self, stream: int, task: Task) -> bool:
        queue = self._queue(stream)
        if queue is None or self.home.get(stream, self.current) != self.current:
            return False
        self.capturing.get(stream, queue).append(task)
        return True

    def _queue(self, stream: int) -> list[Task] | None:
        return self.streams.get(stream, self.defaults.get(stream))

    def _work_off(self, stream: int, until: Task | None = None) -> None:
        """Do what is queued, in order; with `until` no more than what comes before it, and it."""
        queue = self._queue(stream)
        while queue:
            task = queue[0]
            task.work()
            queue.remove(task)
            if task is until:
                return

    def block(self, address: int) -> bytes | None:
        """Return the block that starts at `address` on either side of the bus, or None."""
        found: Any = self.device.get(address, self.pinned.get(address))
        return found  # type: ignore[no-any-return]

    def start_of(self, address: int) -> int | None:
        """Return where the block begins that holds `address`."""
        blocks = (*self.device.items(), *self.pinned.items())
        return next((start for start, block in blocks if start <= address < start + ctypes.sizeof(block)), None)

    def holds(self, kind: dict[int, Any], address: int, size: int) -> bool:
        """Tell whether one block of `kind` holds `size` bytes from `address` on."""
        blocks = list(kind.items())
        return any(start <= address and address + size <= start + ctypes.sizeof(block) for start, block in blocks)

    def _number(self) -> int:
        return next(self._next)

    def cudaGetErrorString(self, status: Status) -> tuple[Any, ...]:
        return (*OK, TEXTS[status])

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        if self.gpus < 0:
            return self.fail(Status.cudaErrorInsufficientDriver, None)
        return (*OK, self.gpus)

    def cudaGetDevice(self) -> tuple[Any, ...]:
        return (*OK, self.current)

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        if not 0 <= device < self.gpus:
            return self.fail(Status.cudaErrorInvalidValue)
        self.thread.selected = device
        self.thread.contexts[-1:] = [device]
        self._need_context()
        return OK

    def cudaGetLastError(self) -> tuple[Any, ...]:
        status, self.last_error = self.last_error, Status.cudaSuccess
        return (status,)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        major, minor = self.capability
        return (*OK, SimpleNamespace(name=b"Tesla T4\0\0", major=major, minor=minor, totalGlobalMem=self.memory))

    def _invalidates(self) -> bool:
        """Break the captures of this thread, if any, as calls for memory do in thread-local mode."""
        mine = {stream for stream in self.capturing if self.capturers[stream] == threading.get_ident()}
        self.invalidated |= mine
        return bool(mine)

    def _allocate(self, kind: dict[int, Any], size: int) -> tuple[Any, ...]:
        self._need_context()
        if self._invalidates():
            return self.fail(Status.cudaErrorStreamCaptureUnsupported, None)
        if sum(ctypes.sizeof(block) for block in self.device.values()) + size > self.memory:
            return self.fail(Status.cudaErrorMemoryAllocation, None)
        block = (ctypes.c_uint8 * size)()
        kind[ctypes.addressof(block)] = block
        return (*OK, ctypes.addressof(block))

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        used = sum(ctypes.sizeof(block) for block in list(self.device.values()))
        return (*OK, self.memory - used, self.memory)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._allocate(self.device, size)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        return self._allocate(self.pinned, size)

    def _free(self, kind: dict[int, Any], address: int, what: str) -> tuple[Any, ...]:
        self.log.append(what)
        if self.in_flight(address) or self.streams.get(address):
            self.faults.append(f"{what} with work in flight")
        if self._invalidates():
            return self.fail(Status.cudaErrorStreamCaptureUnsupported)
        if address not in kind:
            return self.fail(Status.cudaErrorInvalidValue)
        del kind[address]
        return OK

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        return self._free(self.device, address, "free device")

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        return self._free(self.pinned, address, "free pinned")

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        stream = self._number()
        self._need_context()
        self.streams[stream], self.home[stream] = [], self.current
        return (*OK, stream)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        return self._free(self.streams, stream, "destroy stream")

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        if stream in self.capturing:
            return self.fail(Status.cudaErrorStreamCaptureUnsupported)
        self._work_off(stream)
        return OK

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[Any, ...]:
        sides = {1: (self.device, self.pinned), 2: (self.pinned, self.device), 3: (self.device, self.device)}[kind]
        if not (self.holds(sides[0], target, size) and self.holds(sides[1], source, size)):
            return self.fail(Status.cudaErrorInvalidValue)
        uses = self.start_of(target), self.start_of(source)
        done = self.enqueue(stream, lambda: ctypes.memmove(target, source, size), *uses)
        return OK if done else self.fail(Status.cudaErrorInvalidValue)

    def cudaMemcpy(self, target: int, source: int, size: int, kind: int) -> tuple[Any, ...]:
        if kind != self.cudaMemcpyKind.cudaMemcpyDeviceToHost or not self.holds(self.device, source, size):
            return self.fail(Status.cudaErrorInvalidValue)
        ctypes.memmove(target, source, size)
        return OK

    def cudaPointerGetAttributes(self, address: int) -> tuple[Any, ...]:
        start = self.start_of(address)
        if start not in self.device:
            return (*OK, SimpleNamespace(type=0, device=-1))
        return (*OK, SimpleNamespace(type=2, device=self.gpus_of.get(start, 0)))

    def cudaMemsetAsync(self, target: int, value: int, size: int, stream: int) -> tuple[Any, ...]:
        if not self.holds(self.device, target, size):
            return self.fail(Status.cudaErrorInvalidValue)
        done = self.enqueue(stream, lambda: ctypes.memset(target, value, size), self.start_of(target))
        return OK if done else self.fail(Status.cudaErrorInvalidValue)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        event = self._number()
        self.events[event] = None
        if flags & self.cudaEventBlockingSync:
            self._blocking.add(event)
        return (*OK, event)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Any, ...]:
        if event not in self.events:
            return self.fail(Status.cudaErrorInvalidValue)
        mark = Task(lambda: self.events.update({event: time.perf_counter()}))
        self._marks[event] = (stream, mark)
        return OK if self._put(stream, mark) else self.fail(Status.cudaErrorInvalidValue)

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[Any, ...]:
        if event not in self.events or flags:
            return self.fail(Status.cudaErrorInvalidValue)
        source, mark = self._marks[event]  # as recorded now; recording it again changes nothing about this wait

        def wait() -> None:
            if mark in (self._queue(source) or ()):
                self._work_off(source, until=mark)

        return OK if self.enqueue(stream, wait) else self.fail(Status.cudaErrorInvalidValue)

    def cudaEventSynchronize(self, event: int) -> tuple[Any, ...]:
        stream, mark = self._marks[event]
        if mark in (self._queue(stream) or ()):
            self._work_off(stream, until=mark)
        self.slept += event in self._blocking
        return OK

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[Any, ...]:
        first, last = self.events.get(start), self.events.get(end)
        if first is None or last is None:
            return self.fail(Status.cudaErrorInvalidValue, None)
        return (*OK, 1000.0 * (last - first))

    def cudaEventDestroy(self, event: int) -> tuple[Any, ...]:
        return self._free(self.events, event, "destroy event")

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Any, ...]:
        if stream in self.capturing:
            return self.fail(Status.cudaErrorStreamCaptureUnsupported)
        self.capturing[stream], self.capturers[stream] = [], threading.get_ident()
        return OK

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        work = self.capturing.pop(stream)
        if stream in self.invalidated:
            self.invalidated.remove(stream)
            return self.fail(Status.cudaErrorStreamCaptureInvalidated, None)
        if not self.records:
            return self.fail(Status.cudaErrorStreamCaptureUnsupported, None)
        graph = self._number()
        self.graphs.add(graph)
        self._recorded[graph] = [] if self.empties else work
        return (*OK, graph)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        if not self.instantiates:
            return self.fail(Status.cudaErrorInvalidValue, None)
        executable = self._number()
        self.executables[executable] = self._recorded[graph]
        return (*OK, executable)

    def cudaGraphDestroy(self, graph: int) -> tuple[Any, ...]:
        self.graphs.remove(graph)
        del self._recorded[graph]
        return OK

    def cudaGraphExecDestroy(self, executable: int) -> tuple[Any, ...]:
        return self._free(self.executables, executable, "destroy graph")

    def cudaGraphLaunch(self, executable: int, stream: int) -> tuple[Any, ...]:
        self.launches += 1
        for task in self.executables[executable]:
            self.enqueue(stream, task.work, *task.uses, executable)
        return OK
