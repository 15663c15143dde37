"""Options that a command and its Python call share: one definition each, on the fields of a frozen dataclass.

    @dataclass(frozen=True)
    class RuntimeOptions:
        threads: int | None = option(None, "threads of the runtime", type=int, metavar="N")

`rtdetr_deploy.cli.arguments` makes command line options of such fields. Library errors name an argument in backticks
(`threads`, `precision="int8"`); commands show it as it is typed there (--threads, --precision int8).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from rtdetr_deploy.artifacts.cascade import Cascade, parse_cascade
from rtdetr_deploy.errors import OptionError

_KEY = "option"

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Option:
    """How a field is typed on a command line.

    `type` turns the typed text into the value (None for switches); `flag` is the spelling (default: `--` and the
    field's name with dashes, or `--no-...` for a switch that is on by default; without dashes: a positional argument,
    shown by its `metavar`); `old` are spellings of earlier versions, which still work with a warning; `repeated`
    options may be typed several times and make a tuple; `default_help` replaces the default that the help shows.
    """

    help: str
    type: Callable[[str], Any] | None = None
    """`bool` makes a pair of switches, `--x` and `--no-x`, for a field that is None where neither is typed."""
    metavar: str | None = None
    choices: Sequence[Any] | None = None
    flag: str | None = None
    old: tuple[str, ...] = ()
    repeated: bool = False
    nargs: str | None = None
    const: Any = None
    """The value where the option is typed without one, with `nargs="?"`."""
    default_help: str | None = None


def option(default: Any = MISSING, /, help: str = "", **how: Any) -> Any:  # noqa: A002 (argparse's own word)
    """Return a dataclass field with a `default` (left out: a required option); `how` are the fields of `Option`."""
    return field(default=default, metadata={_KEY: Option(help=help, **how)})


def find_options(definition: type) -> dict[str, tuple[Field[Any], Option]]:
    """Return the fields of a dataclass that are options, with how each is typed, by name, in their order."""
    return {item.name: (item, item.metadata[_KEY]) for item in fields(definition) if _KEY in item.metadata}


def path_argument(text: str) -> Path:
    """Return a path; an empty one is refused, because it would mean the current folder (an unset shell variable?)."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty; is a shell variable not set?")
    return Path(text)


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) of "640" or "480x800" (height first). Raises `OptionError`."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise OptionError(f"size {text!r} is not understood; write 640 or HEIGHTxWIDTH, e.g. 480x800")
    return int(parts[0]), int(parts[-1])


def size_argument(text: str) -> tuple[int, int]:
    """As `parse_size`, for argparse."""
    return _for_argparse(parse_size, text)


def cascade_argument(text: str) -> Cascade:
    """As `parse_cascade`, for argparse."""
    return _for_argparse(parse_cascade, text)


def parse_classes(text: str) -> list[int | str]:
    """Return the class names and indices of "person,car,7"."""
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise OptionError("`classes` is empty; name classes or indices, comma-separated")
    return [int(item) if item.isascii() and item.isdigit() else item for item in items]


def classes_argument(text: str) -> list[int | str]:
    """As `parse_classes`, for argparse."""
    return _for_argparse(parse_classes, text)


def _for_argparse(parse: Callable[[str], Value], text: str) -> Value:
    try:
        return parse(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def refuse_options(given: Iterable[str], allowed: Collection[str], reason: str) -> None:
    """Raise `OptionError` for the first option of `given` that is not `allowed`: it would be ignored."""
    for name in given:
        if name not in allowed:
            raise OptionError(f"`{name}` {reason}")
