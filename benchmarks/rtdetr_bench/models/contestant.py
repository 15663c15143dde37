"""A model that is timed beside others, by a runtime of its own where one is named.

r18.onnx
r18.onnx@openvino
r18.onnx@openvino,precision=bf16,threads=1
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtdetr_deploy import OptionError
from rtdetr_deploy.options import find_options, path_argument
from rtdetr_deploy.runtimes import RUNTIMES, RuntimeOptions
from rtdetr_deploy.words import printable

if TYPE_CHECKING:
    from rtdetr_bench.options import RunOptions

SWITCH = {"true": True, "false": False}


@dataclass(frozen=True)
class Contestant:
    """A model file or checkpoint, and how it is run otherwise than the models beside it.

    `runtime` is one of `RUNTIMES`, None as all models are run; `where` are fields of `RuntimeOptions` for it alone.

    Raises `OptionError` for other runtimes and values, and a runtime that does not open such a file.
    """

    path: Path
    runtime: str | None = None
    where: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.runtime is None and self.where:
            raise OptionError("`where` needs a `runtime`")
        if self.runtime is not None and self.runtime not in RUNTIMES:
            raise OptionError(f"{self}: `runtime` is {self.runtime!r}, expected one of {', '.join(RUNTIMES)}")
        if self.runtime is not None and not RUNTIMES[self.runtime].opens(self.path):
            known = ", ".join(RUNTIMES[self.runtime].suffixes)
            raise OptionError(f"{self}: {self.runtime} opens {known}")
        RuntimeOptions(**self.where)

    def __str__(self) -> str:
        """Return what `parse` reads, with the file's name alone."""
        if self.runtime is None:
            return printable(self.path.name)
        settings = "".join(f",{name}={value}" for name, value in self.where.items())
        return f"{printable(self.path.name)}@{self.runtime}{settings}"

    def apply(self, run: RunOptions) -> RunOptions:
        """Return how this model is run where all are run as `run` says."""
        return replace(run, runtime=self.runtime or run.runtime, where=replace(run.where, **self.where))

    @classmethod
    def of(cls, model: Contestant | Path | str) -> Contestant:
        """Return `model` itself, or what a path or a text stands for."""
        if isinstance(model, Contestant):
            return model
        return cls.parse(model) if isinstance(model, str) else cls(model)

    @classmethod
    def parse(cls, text: str) -> Contestant:
        """Return what "FILE" or "FILE@RUNTIME[,SETTING=VALUE ...]" stands for; a file that is called so comes first.

        Raises `OptionError` for unknown runtimes and settings.
        """
        file, at, how = text.rpartition("@")
        if not at or "/" in how or Path(text).exists():
            return cls(Path(text))
        runtime, *settings = how.split(",")
        return cls(Path(file), runtime, dict(_setting(one, text) for one in settings))


def contestant_argument(text: str) -> Contestant | Path:
    """Return the path in a text, or the contestant where it names a runtime, for argparse."""
    path = path_argument(text)
    try:
        contestant = Contestant.parse(text)
        return path if contestant.runtime is None else contestant
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _setting(text: str, whole: str) -> tuple[str, Any]:
    """Return the field of `RuntimeOptions` and the value in "name=value", a part of `whole`."""
    known = find_options(RuntimeOptions)
    name, equals, value = text.partition("=")
    if name not in known or not equals:
        raise OptionError(
            f"{whole!r}: {text!r} is not understood, expected NAME=VALUE with a name of {', '.join(known)}"
        )
    item, how = known[name]
    try:
        if isinstance(item.default, bool):
            return name, SWITCH[value.lower()]
        return name, value if how.type is None else how.type(value)
    except (KeyError, ValueError, argparse.ArgumentTypeError) as error:
        raise OptionError(f"{whole!r}: {value!r} is not a value of {name}") from error
