"""How long the resources of an engine live: freed in order, once, on the GPU and in the process that they belong to."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from rtdetr_deploy.errors import DeviceError
from rtdetr_deploy.runtimes.feed import closed
from rtdetr_deploy.runtimes.trt.cuda import Cuda, Gpu, Stream

PATIENCE = 10.0
"""Seconds that freeing a forgotten engine waits for a call that never ends, as of a thread that Python has stopped."""

_kept_after_fork: list[Resources] = []


class Resources:
    """What an engine holds on `gpu`. Nothing here refers to its runtime, so that that one can be garbage collected."""

    def __init__(self, file: str, cuda: Cuda, gpu: Gpu) -> None:
        self._file, self._cuda, self._gpu = file, cuda, gpu
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._callers: list[int] = []  # the thread of each call
        self._stack = ExitStack()
        self._streams: list[Stream] = []
        self._open = True

    @contextmanager
    def opening(self) -> Iterator[ExitStack]:
        """Make the GPU current, and collect what frees all that the block opens; if it fails, that is freed at once."""
        with self._cuda.using(self._gpu), ExitStack() as stack:
            yield stack
            self._stack = stack.pop_all()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Make the GPU current for one call; nothing is freed before it ends.

        Raises `ArtifactError` once all is freed, `DeviceError` in another process.
        """
        if self._is_elsewhere():
            raise DeviceError(
                f"{self._file} was opened in another process, and CUDA does not survive a fork; open it in this one, "
                "after the fork"
            )
        with self._changed:
            if not self._open:
                raise closed(self._file)
            self._callers.append(threading.get_ident())
        try:
            with self._cuda.using(self._gpu):
                yield
        finally:
            with self._changed:
                self._callers.remove(threading.get_ident())
                self._changed.notify_all()

    def add_stream(self, stream: Stream) -> None:
        """Wait for this stream before anything is freed."""
        self._streams.append(stream)

    def free(self, patience: float = -1) -> None:
        """Refuse further calls, and free everything as soon as none runs.

        Where one still does after `patience` seconds nothing is done, nor where the wait is interrupted: all is open as
        before then. Twice is harmless. In a forked child nothing is touched: it all belongs to the parent.

        Raises `DeviceError` in the middle of a call of the same thread, which can't end meanwhile.
        """
        if self._is_elsewhere():
            _kept_after_fork.append(self)  # destructors of TensorRT's objects would call CUDA, too
            return
        with self._changed:
            if not self._open:
                return
            if patience < 0 and threading.get_ident() in self._callers:
                raise DeviceError(
                    f"{self._file} can't be closed by a signal handler in the middle of a call of its own thread; use "
                    "`with Predictor(...)`, and raise an exception in the handler (sys.exit)"
                )
            if not self._wait_for_calls(patience):
                return
        with self._cuda.using(self._gpu), self._stack:
            self._settle()

    def _wait_for_calls(self, patience: float) -> bool:
        """Refuse further calls, and tell whether all that run end in time; where they don't, calls are taken again."""
        idle = False
        self._open = False
        try:
            idle = self._changed.wait_for(lambda: not self._callers, None if patience < 0 else patience)
        finally:  # also when it is interrupted, by Ctrl-C
            self._open = not idle
        return idle

    def free_forgotten(self) -> None:
        """Free what the garbage collector found, or what is left when Python ends, and warn of it."""
        if not self._open:  # freed before, with an error
            return
        self.free(PATIENCE)
        if not self._is_elsewhere():
            warnings.warn(
                f"{self._file} was not closed; call `close`, or use `with Predictor(...)`",
                ResourceWarning,
                stacklevel=2,
            )

    def _settle(self) -> None:
        """Wait for what is queued. Errors are those of the call that queued it, which has told them."""
        for stream in self._streams:
            with suppress(DeviceError):
                stream.synchronize()

    def _is_elsewhere(self) -> bool:
        return os.getpid() != self._process
