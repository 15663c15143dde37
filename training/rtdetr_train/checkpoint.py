"""Checkpoints of a run in the released layout, written so that a kill never leaves half a file.

    {"ema": {"module": state, "updates": n}, "model": state, "class_names": [...], "input_size": [height, width],
     "train": {...}}

All but the last open anywhere a released checkpoint does; "train" is what continuing needs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from rtdetr_deploy.errors import CheckpointError, OptionError, OutputError
from rtdetr_deploy.files import atomic_write
from rtdetr_deploy.model import RTDETR
from rtdetr_train.optim import ema_updates, set_ema_updates

LAST, BEST = "last.pth", "best.pth"


def save_checkpoint(
    path: Path,
    model: RTDETR,
    ema: AveragedModel,
    class_names: tuple[str, ...],
    size: tuple[int, int],
    state: dict[str, Any],
) -> None:
    """Write `path`; `state` holds what continuing needs (the optimizer's state and plain numbers).

    `size` (height, width) is the input size that the file names. Raises `OptionError` for weights that are not finite,
    and `OutputError`.
    """
    content = {
        "ema": {"module": ema.module.state_dict(), "updates": ema_updates(ema)},
        "model": model.state_dict(),
        "class_names": list(class_names),
        "input_size": list(size),
        "train": state,
    }
    if not all(bool(torch.isfinite(value).all()) for value in model.state_dict().values()):
        kept = f"{path} is kept as it was" if path.exists() else "there is no checkpoint yet"
        raise OptionError(f"training diverged; {kept}: start anew with a lower `lr` and another `output` folder")
    write_checkpoint(path, content)


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path`, whole or not at all. Raises `OutputError`."""
    with atomic_write(path) as beside, beside.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's writer hides the error of the operating system behind its own
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise OutputError(f"can't write {path}: {str(error).splitlines()[0]}") from error
        file.flush()
        os.fsync(file.fileno())


def restore_checkpoint(
    path: Path,
    model: RTDETR,
    ema: AveragedModel,
    optimizer: torch.optim.Optimizer,
    class_names: tuple[str, ...],
    recipe: dict[str, str],
) -> dict[str, Any]:
    """Load what `save_checkpoint` wrote and return its `state`.

    Raises `CheckpointError` for another run's file, or when the run had another `recipe`.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if tuple(content["class_names"]) != class_names:
            raise CheckpointError(f"{path} was trained on other classes; choose another `output` folder")
        state: dict[str, Any] = content["train"]
        _check_recipe(path, state["recipe"], recipe)
        model.load_state_dict(content["model"], strict=True)
        ema.module.load_state_dict(content["ema"]["module"], strict=True)
        set_ema_updates(ema, int(content["ema"]["updates"]))
        optimizer.load_state_dict(state["optimizer"])
    except CheckpointError:
        raise
    except Exception as error:  # a file of another model or kind, or a damaged one, fails in many ways
        raise CheckpointError(
            f"{path} is not a checkpoint of this run and can't be continued; choose another `output` folder"
        ) from error
    return state


def _check_recipe(path: Path, trained_with: dict[str, str], recipe: dict[str, str]) -> None:
    """Raise `CheckpointError` unless the run that wrote `path` had the same options."""
    if trained_with.keys() != recipe.keys():
        raise CheckpointError(
            f"{path} is of a run of another version and can't be continued; "
            "choose another `output` folder, and start from it with `weights`"
        )
    changed = [f"`{name}`" for name, value in recipe.items() if trained_with[name] != value]
    if changed:
        raise CheckpointError(
            f"{path} was trained with other options ({', '.join(changed)}); give the same, or another `output`"
        )
