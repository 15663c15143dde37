"""Command lines: options made of dataclass fields, errors in the words of the command."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, Field
from typing import Any, ClassVar, NoReturn

from rtdetr_deploy.options import Option, find_options

_NAMED = re.compile(r"`(\w+)(?:=(\"?)([^`]*?)\2)?`")
"""An argument in a library's message, perhaps with a value."""


class Parser(argparse.ArgumentParser):
    """A parser with `--version`, examples as they are written, and errors in one line."""

    last: ClassVar[Parser | None] = None
    """The parser that parsed last: its options are those that errors may speak of (see `run_main`)."""

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=prog, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        _add_version(self)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """See argparse."""
        Parser.last = self
        return super().parse_known_args(args, namespace)

    def spellings(self) -> dict[str, str]:
        """Return how each option is typed, by the name of its argument; positional ones by their metavar."""
        names = {action.dest: action for action in reversed(self._actions)}
        return {
            name: action.option_strings[0] if action.option_strings else str(action.metavar or name.upper())
            for name, action in names.items()
        }

    def error(self, message: str) -> NoReturn:
        """See argparse; without the usage, which would hide the error."""
        told = in_words_of_the_command(message)
        self.exit(2, f"{self.prog}: {told}; {self.prog} --help shows all options\n")


def _add_version(parser: argparse.ArgumentParser) -> None:
    """Add `--version`, which prints the command's name and the package's version."""

    class Version(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
            from rtdetr_deploy import __version__

            print(f"{parser.prog} {__version__}")  # noqa: T201
            parser.exit()

    parser.add_argument("--version", action=Version, nargs=0, help="print the version and exit")


def add_options(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    definition: type,
    names: Collection[str] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Add the options of the dataclass `definition` (those of `names`, default: all), old spellings included.

    `defaults` replace the fields' own.
    """
    for name, (item, how) in find_options(definition).items():
        if names is None or name in names:
            _add(parser, name, item, how, (defaults or {}).get(name, item.default))


def options_of(definition: type, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the values of the options of the dataclass `definition` that `arguments` hold, by field name."""
    typed = {name: getattr(arguments, name) for name in find_options(definition) if hasattr(arguments, name)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in typed.items()}


def _add(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, name: str, item: Field[Any], how: Option, default: Any
) -> None:
    switch = isinstance(default, bool) and how.type is None
    spelled = how.flag or (f"--no-{name}".replace("_", "-") if switch and default else flag(name))
    shown = how.default_help or (None if default in (None, MISSING, (), "") or switch else "%(default)s")
    settings: dict[str, Any] = {"dest": name, "help": how.help + (f" (default: {shown})" if shown else "")}
    if switch:
        settings |= {"action": "store_false" if default else "store_true"}
    elif how.type is bool:
        settings |= {"action": argparse.BooleanOptionalAction}
    else:
        settings |= {"type": how.type or str, "metavar": how.metavar, "choices": how.choices, "nargs": how.nargs}
        settings |= {"action": "append"} if how.repeated else {}
        settings |= {"const": how.const} if how.const is not None else {}
    if not spelled.startswith("-"):
        del settings["dest"]
        parser.add_argument(name, **settings)
    elif default is MISSING:
        parser.add_argument(spelled, required=True, **settings)
    else:
        parser.add_argument(spelled, default=[] if how.repeated else default, **settings)
    for old in how.old:
        add_old_spelling(parser, old, spelled)


def add_old_spelling(parser: argparse.ArgumentParser | argparse._ArgumentGroup, old: str, new: str) -> None:
    """Let the option `new`, which `parser` has, be typed as `old` too, with a warning."""
    known = next(action for action in parser._actions if new in action.option_strings)

    class OldSpelling(argparse.Action):
        def __call__(
            self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, typed: str | None = None
        ) -> None:
            warnings.warn(f"{old} is called {new} now", FutureWarning, stacklevel=2)
            known(parser, namespace, values, new)
            known.required = False  # argparse doesn't see that it is given

    parser.add_argument(
        old,
        dest=known.dest,
        action=OldSpelling,
        nargs=known.nargs,
        type=known.type or str,
        choices=known.choices,
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )


def parse_given(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, tuple[str, ...]]:
    """Return the parsed command line, and the names of what was typed, also where it was typed as its default is."""
    arguments = parser.parse_args(argv)
    with warnings.catch_warnings():  # about old spellings, given above
        warnings.simplefilter("ignore", FutureWarning)
        unset = argparse.Namespace(**dict.fromkeys(vars(arguments)))  # options that are not typed stay None
        typed = parser.parse_args(argv, unset)
    return arguments, tuple(name for name, value in vars(typed).items() if value is not None)


def flag(name: str) -> str:
    """Return an option as it is typed."""
    return "--" + name.replace("_", "-")


def in_words_of_the_command(
    message: str, spellings: Mapping[str, str] | None = None, options: Mapping[str, str] | None = None
) -> str:
    """Return a library's message with arguments as they are typed: `threads` becomes --threads.

    `spellings` are those of arguments whose option has another name, by argument (`engine`) or with a value
    (`verify=False`). A value goes on behind the option: `precision="int8"` becomes --precision int8; True and False
    become --name and --no-name. `options` are those that the command has (None: of every name); what is none of them
    is shown as it is, without the backticks.
    """
    known = spellings or {}

    def typed(match: re.Match[str]) -> str:
        name, value = match[1], match[3]
        text = match[0].strip("`")
        if text in known:
            return known[text]
        spelled = known.get(name) or (flag(name) if options is None else options.get(name))
        if spelled is None:
            return text
        if value is None or (value == "False" and spelled.startswith("--no-")):
            return spelled
        if value in ("True", "False"):
            return spelled if value == "True" else spelled.replace("--", "--no-", 1)
        return f"{spelled} {value}"

    return _NAMED.sub(typed, message)
