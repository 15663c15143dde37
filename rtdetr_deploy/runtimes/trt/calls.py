"""Calls of TensorRT, which fails in two ways: it returns False or None, or pybind11 raises for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from rtdetr_deploy.errors import DeviceError, RtdetrError
from rtdetr_deploy.runtimes.trt.logger import NO_REASON, Mark, last_message, mark

Answer = TypeVar("Answer")

PYBIND_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, MemoryError)
"""What pybind11 makes of C++ exceptions, and of null pointers."""


def ask(call: Callable[[], Answer | None], failure: str, kind: type[RtdetrError] = DeviceError) -> Answer:
    """Return what a call of TensorRT returns. Where it fails, raise `kind`: `failure`, and why in TensorRT's words."""
    since = mark()
    try:
        answer = call()
    except PYBIND_ERRORS as error:
        raise kind(f"{failure}: {explain(since, error)}") from error
    if answer is None or answer is False:
        raise kind(f"{failure}: {last_message(since)}")
    return answer


def explain(since: Mark, error: Exception) -> str:
    """Return TensorRT's words for an exception of the bindings, or the exception's where it said nothing."""
    said = last_message(since)
    return " ".join(str(error).split()) if said == NO_REASON else said
