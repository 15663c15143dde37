"""The engines' runtime over real memory, streams and CUDA graphs; a stub of TensorRT runs a kernel of ours."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_check.check import Figures, Situation, demand
from gpu_check.stub.detector import make_detector
from gpu_check.stub.tensorrt import MAX_BATCH, open_stub, tensorrt_stub
from rtdetr_deploy.images.frame import Frame
from rtdetr_deploy.runtimes import open_runtime
from rtdetr_deploy.runtimes.protocol import Runtime
from rtdetr_deploy.runtimes.trt.cuda import Cuda
from rtdetr_deploy.runtimes.trt.runtime import TensorRtRuntime

BATCHES = (1, 3, 8, 1, 3, 8, 8, 3, 1, 1)
"""Batch sizes of calls: each is plain first, then recorded, then replayed in between others."""
SIZE = (64, 96)
THREADS, CALLS = 4, 200
LEFT = 8 << 20
"""Bytes of the GPU's memory that may stay in use: what the driver keeps for itself."""

Outputs = dict[str, NDArray[Any]]


@contextmanager
def no_warnings() -> Iterator[None]:
    """Let our own warning in the block be an error: a call that can't be recorded warns and goes on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*without CUDA graphs")
        yield


def random_images(rng: np.random.Generator, batch: int, raw: bool) -> NDArray[Any]:
    """Return a batch for the detector."""
    if raw:
        return rng.integers(0, 256, (batch, *SIZE, 3), np.uint8)
    return rng.random((batch, 3, *SIZE), np.float32)


def reference_of(raw: bool) -> Runtime:
    """Return ONNX Runtime with the detector's file."""
    return open_runtime(make_detector(*SIZE, raw=raw))


def demand_equal(found: Outputs, expected: Outputs, what: str) -> None:
    """Raise `CheckFailedError` unless all outputs are equal, bit for bit."""
    for name, values in expected.items():
        demand(np.array_equal(np.asarray(found[name]), values), f"{what}: {name} differs")


@contextmanager
def only_slot(runtime: TensorRtRuntime, number: int) -> Iterator[None]:
    """Let the slot of this number run the calls of the block: the others are taken. A free choice is the same one."""
    with ExitStack() as stack:
        for index, slot in enumerate(runtime._slots):
            if index != number:
                stack.enter_context(runtime._in_use(slot))
        yield


def check_calls(situation: Situation) -> Figures:
    """Compare run and run_timed with ONNX Runtime, bit for bit: each slot plain, recorded, replayed, batches mixed."""
    rng, calls, slots = np.random.default_rng(0), 0, 0
    with tensorrt_stub(situation.gpu), no_warnings():
        for raw in (True, False):
            runtime = open_stub(situation.gpu, *SIZE, raw=raw)
            try:
                slots = runtime.slots
                for slot in range(slots):
                    with only_slot(runtime, slot):
                        calls += _compare_calls(runtime, reference_of(raw), rng, raw, f"slot {slot}")
            finally:
                runtime.close()
    return {"calls": calls, "slots": slots, "batches": list(dict.fromkeys(BATCHES))}


def _compare_calls(
    runtime: TensorRtRuntime, reference: Runtime, rng: np.random.Generator, raw: bool, where: str
) -> int:
    """Compare the calls of all batches, and return how many there were."""
    for batch in BATCHES:
        feed = {"images": random_images(rng, batch, raw)}
        expected = reference.run(feed)
        demand_equal(runtime.run(feed), expected, f"run in {where}, batch {batch}")
        for repeats in (1, 5):
            outputs, milliseconds = runtime.run_timed(feed, repeats)
            demand_equal(outputs, expected, f"run_timed in {where}, batch {batch}")
            demand(0.0 < milliseconds < 1000.0, f"run_timed says {milliseconds} ms")
    return 3 * len(BATCHES)


def check_threads(situation: Situation) -> Figures:
    """Four fresh threads of 200 calls each, none of which has chosen a device, get their own results from two slots."""
    with tensorrt_stub(situation.gpu), no_warnings():
        runtime = open_stub(situation.gpu, *SIZE)
        feeds = [
            {"images": random_images(np.random.default_rng(seed), seed % MAX_BATCH + 1, True)} for seed in range(16)
        ]
        expected = [reference_of(raw=True).run(feed) for feed in feeds]

        def work(worker: int) -> int:
            for turn in range(CALLS):
                index = (worker * 5 + turn) % len(feeds)
                demand_equal(runtime.run(feeds[index]), expected[index], f"thread {worker}, call {turn}")
            return CALLS

        try:
            with ThreadPoolExecutor(THREADS) as threads:
                done = sum(threads.map(work, range(THREADS)))
            return {"calls": done, "slots": runtime.slots}
        finally:
            runtime.close()


def free_memory(cuda: Cuda) -> int:
    """Return the bytes of the GPU that are free."""
    free, _ = cuda.call("cudaMemGetInfo")
    return int(free)


def check_memory(situation: Situation, times: int = 50) -> Figures:
    """All memory comes back: engines opened and closed 50 times, and two of them closed in either order."""
    cuda, feed = situation.cuda, {"images": random_images(np.random.default_rng(0), MAX_BATCH, True)}
    with tensorrt_stub(situation.gpu), no_warnings():
        expected = reference_of(raw=True).run(feed)

        def use(count: int) -> None:
            runtimes = [open_stub(situation.gpu, *SIZE) for _ in range(count)]
            while runtimes:  # the first is closed first, the others go on
                for runtime in runtimes:
                    demand_equal(runtime.run(feed), expected, f"one of {len(runtimes)} open engines")
                runtimes.pop(0).close()

        use(1)  # what the driver loads once
        gc.collect()
        before = free_memory(cuda)
        for _ in range(times):
            use(1)
        use(2)
        gc.collect()
        lost = before - free_memory(cuda)
    demand(lost <= LEFT, f"{lost} bytes of the GPU were not given back after {times} engines")
    return {"engines": times + 2, "lost_bytes": lost}


def check_devices(situation: Situation) -> Figures:
    """See that a call leaves the caller's current GPU as it was; only several GPUs show that it does."""
    cuda, gpu = situation.cuda, situation.gpu
    count = int(cuda.call("cudaGetDeviceCount"))
    other = next((number for number in range(count) if number != gpu.number), gpu.number)
    with tensorrt_stub(gpu):
        runtime = open_stub(gpu, *SIZE)
        try:
            cuda.call("cudaSetDevice", other)
            runtime.run({"images": random_images(np.random.default_rng(0), 2, True)})
            now = int(cuda.call("cudaGetDevice"))
        finally:
            runtime.close()
    demand(now == other, f"GPU {other} was current before a call, GPU {now} after it")
    return {"gpus": count, "shown": count > 1}


def check_frames_of_the_host(situation: Situation) -> Figures:
    """Batches of frames that are resized on the GPU are those of single frames, in any order of batch sizes."""
    from gpu_check.checks.resize import resize_on_gpu

    rng = np.random.default_rng(1)
    frames = [Frame(rng.integers(0, 256, (40 + 9 * n, 200 - 7 * n, 3), np.uint8), rgb=n % 2 == 0) for n in range(8)]
    with tensorrt_stub(situation.gpu), no_warnings():
        runtime = open_stub(situation.gpu, *SIZE)
        try:
            single = [resize_on_gpu(runtime, [frame], *SIZE, True)[0] for frame in frames]
            for slot in range(runtime.slots):
                with only_slot(runtime, slot):
                    for batch in BATCHES:
                        found = resize_on_gpu(runtime, frames[:batch], *SIZE, True)
                        what = f"a batch of {batch} frames in slot {slot} differs from single ones"
                        demand(np.array_equal(found, single[:batch]), what)
            return {"batches": len(BATCHES), "slots": runtime.slots}
        finally:
            runtime.close()
