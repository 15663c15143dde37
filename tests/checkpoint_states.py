"""Seeded state dicts that tests write as checkpoints of every kind."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

State = dict[str, Any]


@cache
def _r18() -> State:
    from rtdetr_deploy.model import RTDETR, VARIANTS
    from rtdetr_deploy.model.random_weights import fill_randomly

    model = RTDETR(VARIANTS["r18"])
    fill_randomly(model, seed=1)
    return dict(model.state_dict())


def r18_state() -> State:
    """Return the state dict of a seeded R18, always the same tensors."""
    return dict(_r18())


def save_variant(path: Path, name: str, extra: State | None = None, **changes: Any) -> None:
    """Write a checkpoint of the variant `name` with `changes`, and `extra` beside the weights."""
    import torch

    from rtdetr_deploy.model import RTDETR, VARIANTS

    model = RTDETR(replace(VARIANTS[name], **changes), changes.get("max_layers", VARIANTS[name].max_layers))
    torch.save({"model": model.state_dict(), **(extra or {})}, path)
