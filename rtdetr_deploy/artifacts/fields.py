"""Frozen dataclasses that are stored as JSON: their fields checked against their annotations, and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from rtdetr_deploy.errors import ArtifactError, RtdetrError

Stored = TypeVar("Stored")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def find_wrong_field(instance: Any) -> str | None:
    """Return what to say about the first field of a dataclass whose value doesn't fit its annotation, or None."""
    kind: type = type(instance)
    hints = _hints(kind)
    for field in fields(instance):
        value = getattr(instance, field.name)
        if not _fits(value, hints[field.name]):
            return f"`{field.name}` is {value!r}, expected {_describe(hints[field.name])}"
    return None


def _fits(value: object, hint: Any) -> bool:
    kind, arguments = get_origin(hint), get_args(hint)
    if kind is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if kind in (Union, UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if kind is tuple:
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * (len(value) if isinstance(value, tuple) else 0)
        return (
            isinstance(value, tuple)
            and len(value) == len(arguments)
            and all(_fits(item, argument) for item, argument in zip(value, arguments, strict=True))
        )
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in get_args(hint))
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


def read_part(kind: type[Stored], stored: object, what: str) -> Stored:
    """Return the dataclass `kind` made of the JSON object `stored`; lists become tuples.

    Entries and values that are unknown here may change what all others mean: `ArtifactError` about `what` for them.
    """
    try:
        if not isinstance(stored, Mapping):
            raise TypeError(f"{stored!r} is not an object")
        return kind(**{key: _as_tuple(value) for key, value in stored.items()})
    except (RtdetrError, TypeError) as error:
        told = str(error).replace("`", "")  # these are entries of a file, and no arguments
        raise ArtifactError(f"{what} is not understood by this version ({told}); update rtdetr-deploy") from error


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value
