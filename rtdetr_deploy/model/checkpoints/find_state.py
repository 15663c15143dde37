"""Finding the weights of a detector in what a file holds, under whichever keys and prefixes a framework put them.

    {"ema": {"module": state}, "model": state}     released checkpoints; moving averages are preferred everywhere
    {"state_dict": {"model.backbone...": ...}}     Lightning; any other key and any other prefix is found alike

A source knows a detector by the names in its decoder: a pattern whose first group is what stands before them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdetr_deploy.errors import CheckpointError
from rtdetr_deploy.model.checkpoints.read import Content
from rtdetr_deploy.model.checkpoints.source import State

Place = tuple[str, ...]

MAX_DEPTH = 3
"""Levels of keys that are searched."""
_AVERAGE = re.compile(r"(^|[._])ema([._]|$)")
_MAY_BE_INTEGER = re.compile(r"(num_batches_tracked|anchors|valid_mask)$")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def has_detector(content: Content, decoder: re.Pattern[str]) -> bool:
    """Tell whether there are weights with the names of `decoder` anywhere in `content`."""
    return next(_detectors(content.value, decoder), None) is not None


def find_state(content: Content, decoder: re.Pattern[str]) -> State:
    """Return the state dict with the names of `decoder` in `content`, which has one, without the names' prefix.

    Raises `CheckpointError` where several are alike, or for tensors that are not plain numbers.
    """
    found, path = dict(_detectors(content.value, decoder)), content.path
    best = min(_rank(place) for place in found)
    places = [place for place in found if _rank(place) == best]
    if len(places) > 1:
        names = ", ".join(".".join(place) for place in places)
        raise CheckpointError(f"{path} holds several models ({names}); save the one to use alone")
    state = found[places[0]]
    for key, value in state.items():
        _check_tensor(key, value, path)
    return state


def _rank(place: Place) -> int:
    if _AVERAGE.search(".".join(place)):
        return 0
    return 1 if place[:1] == ("model",) else 2


def _detectors(content: Any, decoder: re.Pattern[str]) -> Iterator[tuple[Place, State]]:
    """Yield every state dict with a decoder: where it lies (keys, and the prefix of its names), and the state dict."""
    for place, state in states_in(content):
        matches = [match for key in state if (match := decoder.match(key))]
        prefixes = list(dict.fromkeys(match[1] for match in matches))
        for prefix in prefixes:
            longer = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
            own = {
                key.removeprefix(prefix): value
                for key, value in state.items()
                if key.startswith(prefix) and not (longer and key.startswith(longer))
            }
            yield (*place, *filter(None, prefix.split("."))), own


def states_in(content: Any) -> Iterator[tuple[Place, State]]:
    """Yield every mapping that holds tensors and its place, the outer ones first, each once: pickles can hold rings."""
    seen: set[int] = set()
    waiting: list[tuple[Place, Any]] = [((), content)]
    for place, value in waiting:
        if not isinstance(value, Mapping) or id(value) in seen:
            continue
        seen.add(id(value))
        state = {str(key): item for key, item in value.items() if isinstance(item, Tensor)}
        if state:
            yield place, state
        if len(place) < MAX_DEPTH:
            waiting += [((*place, str(key)), item) for key, item in value.items()]


def _check_tensor(key: str, value: Tensor, path: Path) -> None:
    """Raise `CheckpointError` for what can't be a learned parameter."""
    problem = None
    if value.is_meta:
        problem = "without values (on the meta device)"
    elif value.layout != torch.strided or value.is_quantized or value.is_nested:
        problem = "in a sparse, quantized or nested form"
    elif value.dtype not in _FLOATS and not _MAY_BE_INTEGER.search(key):
        problem = f"as {str(value.dtype).removeprefix('torch.')}"
    elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
        problem = "as an expanded tensor, larger than what is stored"
    if problem is not None:
        raise CheckpointError(f"{path} holds {key} {problem}; expected plain floating-point numbers")
