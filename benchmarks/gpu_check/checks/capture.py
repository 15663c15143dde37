"""What may go wrong while a call is recorded as a CUDA graph."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from contextlib import closing

import numpy as np

from gpu_check.check import CheckFailedError, Figures, Situation, demand
from gpu_check.checks.arrays import require_torch
from gpu_check.checks.runtime import SIZE, demand_equal, no_warnings, only_slot, random_images, reference_of
from gpu_check.stub.tensorrt import open_stub, tensorrt_stub
from rtdetr_deploy.errors import DeviceError
from rtdetr_deploy.runtimes.trt.cuda import Cuda, DeviceMemory, PinnedArray, Stream
from rtdetr_deploy.runtimes.trt.runtime import TensorRtRuntime

SIZES = 1 << 16
COLLECTED = (1, 2, 3, 4)
"""Batches of the calls with garbage."""


def check_capture(situation: Situation) -> Figures:
    """Other threads may allocate meanwhile; cudaMalloc inside fails cleanly; garbage freed inside spoils no call."""
    return {
        "another thread allocates": _allocate_in_another_thread(situation),
        "allocation inside": _fail_inside(situation.cuda),
        "garbage inside": _collect_inside(situation),
    }


class _Copies:
    """A stream, and work for it: pinned memory to the GPU and back."""

    def __init__(self, cuda: Cuda) -> None:
        self.stream = Stream(cuda)
        self.source, self.target = (PinnedArray(cuda, (SIZES,), np.dtype(np.uint8)) for _ in range(2))
        self.memory = DeviceMemory(cuda, SIZES)

    def queue(self) -> None:
        self.stream.upload(self.memory, self.source, SIZES)
        self.stream.download(self.target, self.memory, SIZES)

    def demand_right(self, launch: Callable[[], object], value: int, what: str) -> None:
        """Raise `CheckFailedError` unless `launch` brings the value over and back."""
        self.source.array[:], self.target.array[:] = value, 0
        launch()
        self.stream.synchronize()
        demand((self.target.array == value).all(), what)

    def close(self) -> None:
        for resource in (self.memory, self.target, self.source, self.stream):
            resource.close()


def _allocate_in_another_thread(situation: Situation) -> str:
    """Allocate by torch in a thread, between the begin and the end of a capture in this one."""
    torch = require_torch()
    copies, errors = _Copies(situation.cuda), []

    def allocate() -> None:
        try:
            torch.empty(64 << 20, dtype=torch.uint8, device=f"cuda:{situation.gpu.number}").fill_(1)
            torch.cuda.synchronize(situation.gpu.number)
        except RuntimeError as error:
            errors.append(str(error).partition("\n")[0])

    def work() -> None:
        thread = threading.Thread(target=allocate)
        thread.start()
        copies.queue()
        thread.join()

    try:
        with closing(copies.stream.capture(work)) as graph:
            demand(not errors, f"torch could not allocate while another thread recorded: {''.join(errors)}")
            copies.demand_right(lambda: copies.stream.launch(graph), 7, "the recorded copies are wrong")
    finally:
        copies.close()
    return "allowed"


def _fail_inside(cuda: Cuda) -> str:
    """Allocate inside a capture, which CUDA forbids; the stream must be as good as before."""
    copies = _Copies(cuda)
    memory: list[DeviceMemory] = []

    def work() -> None:
        copies.queue()
        memory.append(DeviceMemory(cuda, 1 << 20))

    try:
        try:
            copies.stream.capture(work).close()
            told = "allowed"  # a driver may come to allow it: then all that counts is what follows
        except DeviceError as error:
            told = str(error)
        copies.demand_right(copies.queue, 9, "copies are wrong after a capture that failed")
        with closing(copies.stream.capture(copies.queue)) as graph:
            copies.demand_right(lambda: copies.stream.launch(graph), 11, "a capture after one that failed is wrong")
    finally:
        for block in memory:
            block.close()
        copies.close()
    return told


class _Garbage:
    """Part of a cycle, with memory of the GPU that is freed when it is collected."""

    def __init__(self, cuda: Cuda, freed: list[str]) -> None:
        self.cycle = self
        address = int(cuda.call("cudaMalloc", 1 << 20))
        weakref.finalize(self, _free, cuda, address, freed)


def _free(cuda: Cuda, address: int, freed: list[str]) -> None:
    try:
        cuda.call("cudaFree", address)
        freed.append("")
    except DeviceError as error:
        freed.append(str(error))


def _collect_inside(situation: Situation) -> str:
    """Leave garbage that frees GPU memory, and collect it inside every call in which Python may do so.

    While a call is recorded that is what the runtime must rule out.
    """
    freed: list[str] = []
    recorded, before = 0, gc.get_threshold()

    def collect() -> None:
        nonlocal recorded
        recorded += not gc.isenabled()
        if gc.isenabled():
            gc.collect()

    try:
        with tensorrt_stub(situation.gpu) as launcher, no_warnings():
            runtime = open_stub(situation.gpu, *SIZE)
            launcher.on_execute = collect
            gc.set_threshold(0)  # no collection before the one inside: the garbage must last until then
            try:
                for slot in range(runtime.slots):
                    with only_slot(runtime, slot):
                        _call_with_garbage(situation.cuda, runtime, freed, f"slot {slot}")
                wanted = runtime.slots * len(COLLECTED)
            finally:
                gc.set_threshold(*before)
                runtime.close()
    except Warning as error:
        raise CheckFailedError(f"garbage collected inside a capture cost the CUDA graph: {error}") from error
    gc.collect()
    wrong = [text for text in freed if text]
    demand(not wrong, f"{len(wrong)} blocks could not be freed: {wrong[:1]}")
    demand(
        recorded == wanted, f"garbage could not be collected in {recorded} calls, expected the {wanted} recorded ones"
    )
    return f"{len(freed)} blocks freed, none in {recorded} captures"


def _call_with_garbage(cuda: Cuda, runtime: TensorRtRuntime, freed: list[str], where: str) -> None:
    """Compare calls before each of which garbage was made: plain, then recorded, then replayed."""
    reference, rng = reference_of(raw=True), np.random.default_rng(0)
    for turn in range(3):
        for batch in COLLECTED:
            feed = {"images": random_images(rng, batch, True)}
            expected = reference.run(feed)
            _Garbage(cuda, freed)
            demand_equal(runtime.run(feed), expected, f"call {turn} in {where} with garbage inside")
