"""Reading the content of a checkpoint: what torch.save wrote, or safetensors, whatever the file is called.

Nothing in a file is ever executed: pickles are read with `weights_only=True`.
"""

from __future__ import annotations

import json
import pickle
import pickletools
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rtdetr_deploy.artifacts.input_size import is_input_size
from rtdetr_deploy.errors import CheckpointError

_CLASS_NAME_KEYS = ("class_names", "classes", "names")
_ULTRALYTICS = (
    "{path} was written by Ultralytics ({reason}), which is another model that can't be opened here. Export it there "
    "(yolo export format=onnx), or take a checkpoint of the RT-DETR or RT-DETRv2 repository or of Hugging Face"
)


@dataclass(frozen=True)
class Stored:
    """What lies beside the weights; None where there is nothing."""

    class_names: Any = None
    input_size: tuple[int, int] | None = None


def ultralytics_error(path: Path, reason: str) -> CheckpointError:
    """Return the error for a file of Ultralytics, which `reason` shows."""
    return CheckpointError(_ULTRALYTICS.format(path=path, reason=reason))


def read_content(path: Path) -> tuple[Any, Stored]:
    """Return the content of the file and what is stored beside the weights. Raises `CheckpointError`."""
    if _is_safetensors(path):
        return _read_safetensors(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of third-party pickles before it refuses them
            content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        raise _refused_pickle(path, str(error)) from error
    except Exception as error:  # torch reports damaged files with many types
        raise CheckpointError(
            f"{path} is not a readable checkpoint (damaged or incomplete?): expected a file written by torch.save"
        ) from error
    stored = content if isinstance(content, Mapping) else {}
    names = (stored[key] for key in _CLASS_NAME_KEYS if key in stored)
    class_names = next((value for value in names if not isinstance(value, int)), None)  # an int is a count
    return content, Stored(class_names, as_input_size(stored.get("input_size")))


def as_input_size(value: Any) -> tuple[int, int] | None:
    """Return (height, width) if `value` is such a pair that the model can take."""
    return (value[0], value[1]) if is_input_size(value) else None


def _is_safetensors(path: Path) -> bool:
    """Tell by the content: eight bytes of length, then a json. The suffix counts where the file is too short."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" or path.suffix.lower() == ".safetensors"


def _read_safetensors(path: Path) -> tuple[Any, Stored]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no iteration of its own)
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    stored = next((metadata[key] for key in _CLASS_NAME_KEYS if key in metadata), None)
    if stored is None:
        return state, Stored()
    try:
        return state, Stored(json.loads(stored))
    except (ValueError, RecursionError):
        return state, Stored(stored.split(","))


def _refused_pickle(path: Path, message: str) -> CheckpointError:
    """Return the error for a pickle that asks for more than tensors, or that torch does not understand."""
    named = re.search(r"[Uu]nsupported (?:global|class|GLOBAL)\W+(?:GLOBAL )?([\w.]+)", message)
    wanted = named[1] if named else next(_globals(path), None)
    if wanted is None:
        return CheckpointError(f"{path} is not a checkpoint: expected a file written by torch.save")
    if wanted.startswith("ultralytics."):
        return ultralytics_error(path, wanted)
    return CheckpointError(
        f"{path} is a pickle that asks for {wanted} and is not opened, because unpickling it could run code; expected "
        f"tensors alone: torch.save({{'model': model.state_dict()}}, ...)"
    )


def _globals(path: Path) -> Iterator[str]:
    """Yield what a bare pickle would import, read without unpickling it."""
    texts: list[str] = []
    try:
        with path.open("rb") as file:
            for code, argument, _ in pickletools.genops(file):
                if code.name in ("GLOBAL", "INST"):
                    yield str(argument).replace(" ", ".")
                elif code.name == "STACK_GLOBAL":
                    yield ".".join(texts[-2:])
                elif isinstance(argument, str):
                    texts.append(argument)
    except Exception:  # not a pickle, or a damaged one: there are many ways
        return
