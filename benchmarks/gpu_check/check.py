"""What a check is, what it is given, and what comes of it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from gpu_check.options import CheckOptions
from rtdetr_deploy.errors import MissingPackageError
from rtdetr_deploy.runtimes.trt.cuda import Cuda, Gpu

Figures = dict[str, Any]
"""What was measured, by name: numbers, text, or lists and maps of these."""
Status = Literal["passed", "failed", "skipped"]


class CheckFailedError(Exception):
    """What was checked is not so."""


class SkippedError(Exception):
    """Something that the check needs is not here."""


@dataclass(frozen=True)
class Situation:
    """The GPU, and what the command was asked for."""

    cuda: Cuda
    gpu: Gpu
    options: CheckOptions


@dataclass(frozen=True)
class Check:
    """A check: what it shows, how many seconds it may take, and the function that returns its figures.

    The function raises `CheckFailedError` or `SkippedError`; any other error is a failure too, but for a package
    that is missing.
    """

    name: str
    title: str
    seconds: int
    work: Callable[[Situation], Figures]


@dataclass(frozen=True)
class Outcome:
    """What came of a check, why, in how many seconds, and its figures."""

    name: str
    status: Status
    reason: str = ""
    seconds: float = 0.0
    figures: Figures = field(default_factory=dict)

    def to_json(self) -> Figures:
        """Return it for a JSON file."""
        return {**asdict(self), "seconds": round(self.seconds, 2)}


def perform(check: Check, situation: Situation) -> Outcome:
    """Run a check and return what came of it, whatever that is."""
    start = time.perf_counter()

    def end(status: Status, reason: str = "", figures: Figures | None = None) -> Outcome:
        return Outcome(check.name, status, reason, time.perf_counter() - start, figures or {})

    try:
        return end("passed", figures=check.work(situation))
    except (SkippedError, MissingPackageError) as error:
        return end("skipped", str(error))
    except CheckFailedError as error:
        return end("failed", str(error))
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        return end("failed", f"{type(error).__name__}: {error} ({line.filename.rpartition('/')[2]}:{line.lineno})")


def demand(condition: object, message: str) -> None:
    """Raise `CheckFailedError` unless the condition holds."""
    if not condition:
        raise CheckFailedError(message)
