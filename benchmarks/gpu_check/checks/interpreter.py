"""Whether Python goes on while a call waits for the GPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from gpu_check.check import Figures, Situation, demand
from gpu_check.checks.runtime import SIZE, random_images
from gpu_check.stub.tensorrt import open_stub, tensorrt_stub

BUSY_MS = 20.0
CALLS = 25
WANTED = 0.5
"""Share of its speed alone that another thread must keep; with the lock held it gets next to nothing."""


def check_lock(situation: Situation) -> Figures:
    """Another Python thread keeps counting while this one waits for a kernel of 20 ms: the lock is released."""
    with tensorrt_stub(situation.gpu) as launcher:
        runtime = open_stub(situation.gpu, *SIZE)
        launcher.milliseconds = BUSY_MS
        feed = {"images": random_images(np.random.default_rng(0), 1, True)}
        try:
            for _ in range(4):
                runtime.run(feed)

            def calls() -> None:
                for _ in range(CALLS):
                    runtime.run(feed)

            alone, _ = count_beside(lambda: time.sleep(CALLS * BUSY_MS / 1000))
            beside, seconds = count_beside(calls)
        finally:
            runtime.close()
    each = 1000 * seconds / CALLS
    demand(each >= 0.9 * BUSY_MS, f"calls took {each:.1f} ms, less than the kernel's {BUSY_MS:g}: it didn't run")
    share = beside / alone
    demand(share >= WANTED, f"another thread ran at {share:.0%} of its speed: is the lock held during the wait?")
    return {"share_of_speed": share, "call_ms": each, **bindings_versions()}


def count_beside(work: Callable[[], object]) -> tuple[float, float]:
    """Return how far a thread counts per second beside `work`, and the seconds that took."""
    counted, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    start = time.perf_counter()
    try:
        work()
    finally:
        seconds = time.perf_counter() - start
        stop.set()
        thread.join()
    return counted[0] / seconds, seconds


def bindings_versions() -> dict[str, str]:
    """Return the versions of the packages that hold or release the lock."""
    found = {}
    for name in ("cuda-bindings", "cuda-python"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
