"""Checkpoints of a run in the released layout, written so that a kill never leaves half a file.

    {"ema": {"module": state, "updates": n}, "model": state, "class_names": [...], "input_size": [height, width],
     "train": {...}}

All but the last open anywhere a released checkpoint does; "train" is what continuing needs. `publish` leaves
only what deployment needs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from rtdetr_deploy.artifacts.weights_file import find_weights
from rtdetr_deploy.errors import CheckpointError, OptionError, OutputError
from rtdetr_deploy.files import atomic_write, check_writable, refuse_overwriting
from rtdetr_deploy.model import RTDETR, load_checkpoint
from rtdetr_deploy.model.checkpoints.read import as_input_size
from rtdetr_train.ema import Average

LAST, BEST = "last.pth", "best.pth"


def save_checkpoint(
    path: Path, model: RTDETR, average: Average, class_names: tuple[str, ...], size: int, state: dict[str, Any]
) -> None:
    """Write `path`; `state` holds what continuing needs (the optimizer's state and plain numbers)."""
    content = {
        "ema": {"module": average.module.state_dict(), "updates": average.updates},
        "model": model.state_dict(),
        "class_names": list(class_names),
        "input_size": [size, size],
        "train": state,
    }
    if not all(bool(torch.isfinite(value).all()) for value in model.state_dict().values()):
        kept = f"{path} is kept as it was" if path.exists() else "there is no checkpoint yet"
        raise OptionError(f"training diverged; {kept}: start anew with a lower --rate and another --output folder")
    _write(path, content)


def publish(source: Path, target: Path, size: tuple[int, int] | None = None) -> None:
    """Write the weights to deploy alone: the moving average, matrices and kernels in half precision.

    Vectors (biases, batch normalization's statistics) stay in FP32: small, and the statistics' range is wide. About an
    eighth of a run's checkpoint; `load_checkpoint` opens it like any other. `size` (height, width) replaces the input
    size that the checkpoint names. Raises `CheckpointError`, `OptionError` and `OutputError`.
    """
    if target.suffix.lower() not in (".pth", ".pt"):
        raise OptionError(f"{target} would hold a checkpoint; end its name with .pth or .pt")
    if size is not None and as_input_size(size) is None:
        raise OptionError(f"size {size[0]}x{size[1]} doesn't fit; both sides must be multiples of 32 from 64 to 8192")
    refuse_overwriting({"the file to write": target}, [find_weights(source)])
    check_writable(target)
    checkpoint = load_checkpoint(source)
    state = {name: value.half() if value.ndim > 1 else value for name, value in checkpoint.model.state_dict().items()}
    content = {"ema": {"module": state}, "class_names": list(checkpoint.class_names)}
    size = size or checkpoint.input_size
    _write(target, {**content, "input_size": list(size)} if size else content)


def _write(path: Path, content: dict[str, Any]) -> None:
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
    average: Average,
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
            raise CheckpointError(f"{path} was trained on other classes; choose another --output folder")
        state: dict[str, Any] = content["train"]
        changed = [name for name, value in recipe.items() if state["recipe"].get(name) != value]
        if changed:
            raise CheckpointError(
                f"{path} was trained with other options ({', '.join(changed)}); give the same, or another --output"
            )
        model.load_state_dict(content["model"], strict=True)
        average.module.load_state_dict(content["ema"]["module"], strict=True)
        average.updates = int(content["ema"]["updates"])
        optimizer.load_state_dict(state["optimizer"])
    except CheckpointError:
        raise
    except Exception as error:  # a file of another model or kind, or a damaged one, fails in many ways
        raise CheckpointError(
            f"{path} is not a checkpoint of this run and can't be continued; choose another --output folder"
        ) from error
    return state
