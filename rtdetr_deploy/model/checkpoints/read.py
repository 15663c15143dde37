"""Reading the content of a file: what torch.save wrote, or safetensors, whatever the file is called.

Nothing in a file is ever executed: pickles are read with `weights_only=True`. Whose the content is, the sources tell.
"""

from __future__ import annotations

import json
import pickle
import pickletools
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from rtdetr_deploy.artifacts.input_size import is_input_size
from rtdetr_deploy.errors import CheckpointError

_CLASS_NAME_KEYS = ("class_names", "classes", "names")


@dataclass(frozen=True)
class Content:
    """What a file holds.

    `value` is what was saved, tensors in mappings for a checkpoint; `beside` is what may lie beside the weights: the
    outermost keys, or the metadata of safetensors. A pickle that asks for anything but tensors is not opened: `refused`
    is what it asks for first, e.g. "ultralytics.nn.tasks.RTDETRDetectionModel", and `value` is None.
    """

    path: Path
    value: Any
    beside: Mapping[Any, Any] = field(default_factory=dict)
    refused: str | None = None

    @property
    def class_names(self) -> Any:
        """The class names stored beside the weights, in whatever form; None where there are none."""
        stored = (self.beside[key] for key in _CLASS_NAME_KEYS if key in self.beside)
        return next((value for value in stored if not isinstance(value, int)), None)  # `classes: 80` is their number

    @property
    def input_size(self) -> tuple[int, int] | None:
        """The (height, width) stored beside the weights, if the model can take it."""
        return as_input_size(self.beside.get("input_size"))


def read_content(path: Path) -> Content:
    """Read the file. Raises `CheckpointError` for one that is damaged or that torch.save didn't write."""
    if _is_safetensors(path):
        return _read_safetensors(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of third-party pickles before it refuses them
            content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        refused = _find_refused(path, str(error))
        if refused is None:
            raise CheckpointError(f"{path} is not a checkpoint: expected a file written by torch.save") from error
        return Content(path, None, refused=refused)
    except Exception as error:  # torch reports damaged files with many types
        raise CheckpointError(
            f"{path} is not a readable checkpoint (damaged or incomplete?): expected a file written by torch.save"
        ) from error
    return Content(path, content, content if isinstance(content, Mapping) else {})


def as_input_size(value: Any) -> tuple[int, int] | None:
    """Return (height, width) if `value` is such a pair that the model can take."""
    return (value[0], value[1]) if is_input_size(value) else None


def _is_safetensors(path: Path) -> bool:
    """Tell by the content: eight bytes of length, then a json. The suffix counts where the file is too short."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" or path.suffix.lower() == ".safetensors"


def _read_safetensors(path: Path) -> Content:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no iteration of its own)
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    return Content(path, state, {key: _from_text(key, text) for key, text in metadata.items()})


def _from_text(key: str, text: str) -> Any:
    """Return what an entry of safetensors' metadata, which are texts, stands for."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text.split(",") if key in _CLASS_NAME_KEYS else text


def _find_refused(path: Path, message: str) -> str | None:
    """Return what a pickle asks for besides tensors, which torch refused with `message`; None for other files."""
    named = re.search(r"[Uu]nsupported (?:global|class|GLOBAL)\W+(?:GLOBAL )?([\w.]+)", message)
    return named[1] if named else next((text for kind, text in pickled_texts(path) if kind == "global"), None)


def pickled_texts(path: Path) -> Iterator[tuple[Literal["global", "text"], str]]:
    """Yield the texts in a bare pickle, and the globals that it would import, read without unpickling it."""
    texts: list[str] = []
    try:
        with path.open("rb") as file:
            for code, argument, _ in pickletools.genops(file):
                if code.name in ("GLOBAL", "INST"):
                    yield "global", str(argument).replace(" ", ".")
                elif code.name == "STACK_GLOBAL":
                    yield "global", ".".join(texts[-2:])
                elif isinstance(argument, str):
                    texts.append(argument)
                    yield "text", argument
    except Exception:  # not a pickle, or a damaged one: there are many ways
        return
