"""Checkpoints of a run in the released layout, written so that a kill never leaves half a file.

    {"ema": {"module": state, "updates": n}, "model": state, "class_names": [...], "train": {...}}

The first three open anywhere a released checkpoint does; "train" is what continuing needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rtdetr_deploy.errors import CheckpointError
from rtdetr_deploy.files import written_beside
from rtdetr_deploy.model import RTDETR
from rtdetr_train.ema import Average

LAST, BEST = "last.pth", "best.pth"


def save_checkpoint(
    path: Path, model: RTDETR, average: Average, class_names: tuple[str, ...], state: dict[str, Any]
) -> None:
    """Write `path`; `state` holds what continuing needs (the optimizer's state and plain numbers)."""
    content = {
        "ema": {"module": average.module.state_dict(), "updates": average.updates},
        "model": model.state_dict(),
        "class_names": list(class_names),
        "train": state,
    }
    with written_beside(path) as beside:
        torch.save(content, beside)


def restore_checkpoint(
    path: Path, model: RTDETR, average: Average, optimizer: torch.optim.Optimizer, class_names: tuple[str, ...]
) -> dict[str, Any]:
    """Load what `save_checkpoint` wrote and return its `state`. Raises `CheckpointError` for another run's file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if tuple(content["class_names"]) != class_names:
            raise CheckpointError(f"{path} was trained on other classes; choose another --output folder")
        model.load_state_dict(content["model"], strict=True)
        average.module.load_state_dict(content["ema"]["module"], strict=True)
        average.updates = int(content["ema"]["updates"])
        state: dict[str, Any] = content["train"]
        optimizer.load_state_dict(state["optimizer"])
    except CheckpointError:
        raise
    except Exception as error:  # a file of another model or kind, or a damaged one, fails in many ways
        raise CheckpointError(
            f"{path} is no checkpoint of this run and can't be continued; choose another --output folder"
        ) from error
    return state
