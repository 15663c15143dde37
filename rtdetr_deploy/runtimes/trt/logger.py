"""What TensorRT says, kept for error messages instead of printed.

TensorRT has one logger per process: that of the first builder or runtime. Later ones are ignored with a warning ("The
logger passed into createInferRuntime differs from one already registered"), and messages of every engine go on to the
first one's, also after that engine is gone. So there is one here, made once and never freed, and whoever calls TensorRT
takes a `mark` first and reads what was said since.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any

KEPT = 5000
"""Messages that are kept: several builds say less."""
SHOWN = 3
"""Messages that an error shows."""
ERRORS = ("INTERNAL_ERROR", "ERROR")
NO_REASON = "it gave no reason"
LEAN = "nvinfer_lean"
"""A library that version-compatible engines need, and that TensorRT's packages for pip leave to another package."""


@dataclass(frozen=True)
class Message:
    """What TensorRT said: the thread that it ran in, the severity as TensorRT calls it ("ERROR"), and the text."""

    number: int
    thread: int
    severity: str
    text: str


@dataclass(frozen=True)
class Mark:
    """A moment in what TensorRT says, and the thread that took it."""

    number: int
    thread: int


_messages: deque[Message] = deque(maxlen=KEPT)
_numbers = count()
_making = threading.Lock()


def get_logger() -> Any:
    """Return the process's `trt.ILogger`, always the same one. It keeps all but VERBOSE messages."""
    with _making:
        return _make_logger()


def mark() -> Mark:
    """Return this moment, for what is said from now on; taken by the thread that then calls TensorRT."""
    return Mark(next(_numbers), threading.get_ident())


def messages_since(since: Mark) -> list[Message]:
    """Return what TensorRT has said since then, in any thread: builders have threads of their own."""
    return [message for message in list(_messages) if message.number > since.number]


def last_message(since: Mark) -> str:
    """Return what explains a failure: up to three messages, of errors where there are any, else of warnings.

    Those of the thread that took the mark are preferred, as other engines may speak meanwhile. Of more than three the
    first and the last ones are shown, since the first is often the cause.
    """
    said = messages_since(since)
    for severities in (ERRORS, ("WARNING",)):
        loud = [message for message in said if message.severity in severities]
        chosen = [message for message in loud if message.thread == since.thread] or loud
        texts = list(dict.fromkeys(" ".join(message.text.split()) for message in chosen))
        if texts:
            return _with_remedy("; ".join(texts if len(texts) <= SHOWN else [texts[0], *texts[1 - SHOWN :]]))
    return NO_REASON


def log_since(since: Mark) -> str:
    """Return all that is kept of what TensorRT has said since then, as lines of text ("[WARNING] ...")."""
    lines = [f"[{message.severity}] {message.text}\n" for message in messages_since(since)]
    dropped = ["(what was said before is lost)\n"] if len(lines) == KEPT else []
    return "".join([*dropped, *lines])


def _with_remedy(text: str) -> str:
    """Add what to do about a failure that TensorRT leaves to the reader."""
    if LEAN not in text:
        return text
    import tensorrt as trt

    version = trt.__version__
    return (
        f"{text}; the lean runtime, which version-compatible engines need, is a package of its own: pip install "
        f"tensorrt-lean=={version} (beside tensorrt-cu12: tensorrt-lean-cu12=={version})"
    )


@cache
def _make_logger() -> Any:
    import tensorrt as trt

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            # Without a lock: the garbage collector may destroy an engine in here, which speaks, too.
            if severity != trt.ILogger.VERBOSE:
                _messages.append(Message(next(_numbers), threading.get_ident(), severity.name, msg.strip()))

    logger = Logger()
    # One reference too many, on purpose: TensorRT still holds the address when Python clears its modules.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(logger))
    return logger
