"""Values as people type them on a command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rtdetr_deploy.errors import OptionError


def path_argument(text: str) -> Path:
    """Return a path; an empty one is refused, because it would mean the current folder (an unset shell variable?)."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty; is a shell variable not set?")
    return Path(text)


def parse_given(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, tuple[str, ...]]:
    """Return the parsed command line, and the names of what was typed, also where it was typed as its default is."""
    arguments = parser.parse_args(argv)
    typed = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(arguments))))  # untyped options stay None
    return arguments, tuple(name for name, value in vars(typed).items() if value is not None)


def flag(name: str) -> str:
    """Return an option as it is typed."""
    return "--" + name.replace("_", "-")


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) of "640" or "480x800" (height first). Raises `OptionError`."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise OptionError(f"size {text!r} is not understood; write 640 or HEIGHTxWIDTH, e.g. 480x800")
    return int(parts[0]), int(parts[-1])


def parse_classes(text: str) -> list[int | str]:
    """Return the class names and indices of "person,car,7"."""
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise OptionError("--classes is empty; name classes or indices, comma-separated")
    return [int(item) if item.isascii() and item.isdigit() else item for item in items]
