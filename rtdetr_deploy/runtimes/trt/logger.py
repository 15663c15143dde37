"""What TensorRT says, kept for error messages instead of printed."""

from __future__ import annotations

from typing import Any

KEPT = 20


def make_logger(messages: list[str]) -> Any:
    """Return a TensorRT logger that keeps the last warnings and errors in `messages`."""
    import tensorrt as trt

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                messages.append(msg.strip().replace("\n", " "))
                del messages[:-KEPT]

    return Logger()


def last_message(messages: list[str]) -> str:
    """Return the last thing that TensorRT said."""
    return messages[-1] if messages else "it gave no reason"
