"""What a sweep is asked for."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rtdetr_bench.options import EvaluationSet
from rtdetr_bench.parts import part
from rtdetr_bench.sweep.axes import Way, parse_way
from rtdetr_deploy import OptionError
from rtdetr_deploy.artifacts.input_size import check_input_size
from rtdetr_deploy.options import option, parse_size, path_argument
from rtdetr_deploy.runtimes import RuntimeOptions

WITHIN = 0.005
MAX_ROUNDS = 1000
PRECISIONS = ("fp32", "fp16", "int8")
NO_CASCADE = "none"
_BUDGET = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|)", re.ASCII)
_CASCADE = re.compile(r"[1-9]\d*:[1-9]\d*", re.ASCII)


def parse_budget(text: str) -> float:
    """Return the milliseconds in "30ms", "30" or "0.03s". Raises `OptionError`."""
    match = _BUDGET.fullmatch(text.strip().lower())
    if match is None:
        raise OptionError(f"`budget` is {text!r}, expected a time like 30ms")
    return float(match[1]) * (1000.0 if match[2] == "s" else 1.0)


def parse_cascade(text: str) -> str | None:
    """Return "K:N", or None for "none". Raises `OptionError`."""
    if text == NO_CASCADE:
        return None
    if not _CASCADE.fullmatch(text):
        raise OptionError(f"`cascade` is {text!r}, expected K:N, e.g. 2:100, or {NO_CASCADE}")
    return text


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise OptionError(f"{text!r} is not a whole number")
    return int(text)


def _precision(text: str) -> str:
    if text not in PRECISIONS:
        raise OptionError(f"`precision` is {text!r}, expected one of {', '.join(PRECISIONS)}")
    return text


def listed(parse: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Return what reads a list "A,B" of what `parse` reads, for argparse."""

    def read(text: str) -> tuple[Any, ...]:
        try:
            return tuple(parse(item.strip()) for item in text.split(","))
        except OptionError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def budget_argument(text: str) -> float:
    """As `parse_budget`, for argparse."""
    try:
        return parse_budget(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


@dataclass(frozen=True)
class GridOptions:
    """The values of each axis that are tried, in all combinations; empty: what suits the model and the machine.

    `layers` and `queries` are numbers, `cascade` "K:N" or None, `size` (height, width), `precision` "fp32", "fp16"
    (engines only) or "int8", `runtime` `Way`s or their names ("openvino:bf16"). `only` are patterns of names, as shells
    have them, one of which a candidate must match.
    """

    title: ClassVar[str] = "what is tried (lists: all combinations)"

    layers: tuple[int, ...] = option(
        (), "decoder layers", type=listed(_number), metavar="K[,K]", default_help="all numbers down to half"
    )
    queries: tuple[int, ...] = option(
        (), "queries", type=listed(_number), metavar="Q[,Q]", default_help="the model's, and 100"
    )
    cascade: tuple[str | None, ...] = option(
        (), f"cascades K:N of queries, {NO_CASCADE} for none", type=listed(parse_cascade), metavar="K:N[,K:N]",
        default_help=NO_CASCADE,
    )  # fmt: skip
    size: tuple[tuple[int, int], ...] = option(
        (), "input sizes, 640 or HEIGHTxWIDTH", type=listed(parse_size), metavar="SIZE[,SIZE]",
        default_help="the trained one, and two around three quarters of it",
    )  # fmt: skip
    precision: tuple[str, ...] = option(
        (), f"precisions of the file: {', '.join(PRECISIONS)} (fp16: engines only)", type=listed(_precision),
        metavar="P[,P]", default_help="fp32, fp16 for engines, int8 where there is --calibration",
    )  # fmt: skip
    runtime: tuple[Way | str, ...] = option(
        (), "runtimes, with an arithmetic of their own behind a colon: onnxruntime, openvino, openvino:bf16, tensorrt",
        type=listed(parse_way), metavar="R[,R]", default_help="those that this machine has",
    )  # fmt: skip
    batch: int | None = option(
        None, "images that the files take at once, a number", type=int, metavar="N",
        default_help="1, any number for engines",
    )  # fmt: skip
    only: tuple[str, ...] = option(
        (), "leave out all whose name does not match, e.g. '*int8@openvino*' (may be repeated)", metavar="PATTERN",
        repeated=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name in ("layers", "queries", "cascade", "size", "precision", "runtime", "only"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or len(set(values)) < len(values):
                raise OptionError(f"`{name}` is {values!r}, expected different values")
        for name in ("layers", "queries"):
            for value in getattr(self, name):
                if type(value) is not int or value < 1:
                    raise OptionError(f"`{name}` is {value!r}, expected a whole number from 1 up")
        for text in self.cascade:
            parse_cascade(NO_CASCADE if text is None else text)
        for text in self.precision:
            _precision(text)
        object.__setattr__(self, "size", tuple(check_input_size(size) for size in self.size))
        ways = tuple(way if isinstance(way, Way) else parse_way(way) for way in self.runtime)
        object.__setattr__(self, "runtime", ways)
        if self.batch is not None and (type(self.batch) is not int or self.batch < 1):
            raise OptionError(f"`batch` is {self.batch!r}, expected a whole number from 1 up")

    def values(self, name: str) -> tuple[Any, ...]:
        """Return the values of the axis `name`; empty where the defaults are tried."""
        if name == "batch":
            return () if self.batch is None else (self.batch,)
        return tuple(getattr(self, name))


@dataclass(frozen=True)
class LimitOptions:
    """What decides: `within` this AP of the best the fastest (default: 0.005), or one of the other two.

    `budget` milliseconds that SingleStream's p90 may take: the most accurate; `min_ap` in [0, 1]: the fastest.
    """

    title: ClassVar[str] = "what is recommended"

    within: float | None = option(
        None, "the fastest within this AP of the best", type=float, metavar="AP", default_help=str(WITHIN)
    )
    budget: float | None = option(
        None, "the most accurate whose SingleStream p90 is at most this, e.g. 30ms", type=budget_argument,
        metavar="TIME",
    )  # fmt: skip
    min_ap: float | None = option(None, "the fastest of at least this AP, e.g. 0.6", type=float, metavar="AP")

    def __post_init__(self) -> None:
        given = [name for name in ("within", "budget", "min_ap") if getattr(self, name) is not None]
        if len(given) > 1:
            raise OptionError(f"`{given[0]}` and `{given[1]}` both say what decides; leave one of them out")
        for name in ("within", "min_ap"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise OptionError(f"`{name}` is {value}, expected a number from 0 to 1")
        if self.budget is not None and not (math.isfinite(self.budget) and self.budget > 0):
            raise OptionError(f"`budget` is {self.budget}, expected milliseconds above 0")

    def to_json(self) -> dict[str, float | None]:
        """Return the limits for a JSON file; `within` is None where another one decides."""
        others = self.budget is not None or self.min_ap is not None
        within = None if others else WITHIN if self.within is None else self.within
        return {"budget_ms": self.budget, "min_ap": self.min_ap, "within": within}


@dataclass(frozen=True)
class SweepOptions:
    """A checkpoint, the user's own images, and the folder that keeps files, results and how far the sweep has come.

    `calibration` is a folder of images for INT8, other ones than those evaluated. `max_images` evaluates on so many,
    spread over the json. `rounds` are those of timing. `time_all` times at length what others beat clearly, too;
    `retry` tries again what has failed before; `dry_run` shows what would be done.
    """

    weights: Path = option(help="checkpoint", type=path_argument, metavar="CHECKPOINT")
    data: EvaluationSet = part(EvaluationSet, required=True)
    output: Path = option(
        help="folder for files and results; a second call continues", type=path_argument, metavar="DIR"
    )
    calibration: Path | None = option(
        None, "folder of images for calibration: try INT8 too", type=path_argument, metavar="DIR"
    )
    grid: GridOptions = part(GridOptions)
    limits: LimitOptions = part(LimitOptions)
    max_images: int | None = option(
        None, "evaluate on N images, spread over the json", type=int, metavar="N", default_help="all"
    )
    rounds: int = option(5, "rounds of timing, each 13 images, 2 queries of 8, and Offline", type=int, metavar="N")
    time_all: bool = option(False, "time at length what others clearly beat, too")
    retry: bool = option(False, "try again what has failed in an earlier call")
    dry_run: bool = option(False, "show what would be done, with an estimate of the time")
    where: RuntimeOptions = part(RuntimeOptions, only=("device", "threads"))

    def __post_init__(self) -> None:
        for name, value, limit in (("max_images", self.max_images, None), ("rounds", self.rounds, MAX_ROUNDS)):
            if value is not None and (type(value) is not int or value < 1 or (limit and value > limit)):
                raise OptionError(
                    f"`{name}` is {value!r}, expected a whole number from 1{f' to {limit}' if limit else ' up'}"
                )
        if "int8" in self.grid.precision and self.calibration is None:
            raise OptionError('`precision="int8"` needs `calibration`, a folder of images like those to detect on')
        if self.grid.precision and "int8" not in self.grid.precision and self.calibration is not None:
            raise OptionError("`calibration` is for INT8, which is not in `precision`; leave it out")
