"""Options that a command and its Python call share: one definition each, on the fields of a frozen dataclass.

    @dataclass(frozen=True)
    class RuntimeOptions:
        threads: int | None = option(None, "threads of the runtime", type=int, metavar="N")

`rtdetr_deploy.cli.arguments` makes command line options of such fields. Library errors name an argument in backticks
(`threads`, `precision="int8"`); commands show it as it is typed there (--threads, --precision int8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

_KEY = "option"


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
    default_help: str | None = None


def option(default: Any = MISSING, /, help: str = "", **how: Any) -> Any:  # noqa: A002 (argparse's own word)
    """Return a dataclass field with a `default` (left out: a required option); `how` are the fields of `Option`."""
    return field(default=default, metadata={_KEY: Option(help=help, **how)})


def find_options(definition: type) -> dict[str, tuple[Field[Any], Option]]:
    """Return the fields of a dataclass that are options, with how each is typed, by name, in their order."""
    return {item.name: (item, item.metadata[_KEY]) for item in fields(definition) if _KEY in item.metadata}
