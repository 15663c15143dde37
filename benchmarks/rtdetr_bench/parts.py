"""Options made of parts: dataclasses whose fields are options, or other such dataclasses that several studies share.

    @dataclass(frozen=True)
    class DecoderStudyOptions:
        weights: Path = option(help="checkpoint", type=path_argument)
        timing: TimingOptions = part(TimingOptions)
        run: RunOptions = part(RunOptions, only=("size", "threads"))

A command line shows the options of all parts side by side; `build` puts their values where they belong.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from rtdetr_deploy.cli.arguments import add_options
from rtdetr_deploy.options import find_options

_KEY = "part"


@dataclass(frozen=True)
class Part:
    """The options of another dataclass: those called `only` (None: all), its own parts' included."""

    definition: type
    only: frozenset[str] | None


def part(definition: type, *, only: Collection[str] | None = None, required: bool = False) -> Any:
    """Return a dataclass field that holds a `definition`, by default one of defaults unless it is `required`."""
    metadata = {_KEY: Part(definition, None if only is None else frozenset(only))}
    return field(metadata=metadata) if required else field(default_factory=definition, metadata=metadata)


def find_parts(definition: type) -> dict[str, tuple[Field[Any], Part]]:
    """Return the fields of a dataclass that are parts, by name, in their order."""
    return {item.name: (item, item.metadata[_KEY]) for item in fields(definition) if _KEY in item.metadata}


def add_all_options(
    parser: argparse.ArgumentParser,
    definition: type,
    only: Collection[str] | None = None,
    group: argparse._ArgumentGroup | None = None,
) -> None:
    """Add the options of `definition` and of its parts (of all these those called `only`, where it is given).

    Options of a definition with a `title` stand below it in the help; others in the `group` of what they are part of.
    """
    own = [name for name in find_options(definition) if only is None or name in only]
    title = getattr(definition, "title", None)
    if own and title:
        group = parser.add_argument_group(title)
    if own:
        add_options(group or parser, definition, own)
    for _, inner in find_parts(definition).values():
        add_all_options(parser, inner.definition, _both(only, inner.only), group)


def _both(one: Collection[str] | None, other: Collection[str] | None) -> Collection[str] | None:
    if one is None or other is None:
        return other if one is None else one
    return frozenset(one) & frozenset(other)


def build(definition: type, values: Mapping[str, Any]) -> Any:
    """Return a `definition` of the `values` by option name; what is missing there has its default."""
    content = {name: _as_value(values[name]) for name in find_options(definition) if name in values}
    for name, (_, inner) in find_parts(definition).items():
        content[name] = build(inner.definition, _only(values, inner))
    return definition(**content)


def _only(values: Mapping[str, Any], inner: Part) -> Mapping[str, Any]:
    """Return the values that are a part's: options that it leaves out may be others' of the same name."""
    return values if inner.only is None else {name: value for name, value in values.items() if name in inner.only}


def _as_value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def values_of(options: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and value of each option of a built object, those of its parts included; of one name the first."""
    known = set()
    for name in find_options(type(options)):
        known.add(name)
        yield name, getattr(options, name)
    for name in find_parts(type(options)):
        for inner, value in values_of(getattr(options, name)):
            if inner not in known:
                known.add(inner)
                yield inner, value
