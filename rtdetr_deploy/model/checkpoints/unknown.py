"""What is said of a file that no source matches: whose it is, where that shows, and what could be opened instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from rtdetr_deploy.errors import CheckpointError
from rtdetr_deploy.model.checkpoints.find_state import states_in
from rtdetr_deploy.model.checkpoints.read import Content, pickled_texts

MAX_LISTED_KEYS = 5

_ULTRALYTICS_NAME = re.compile(r"^(?:model\.)*\d+\.")
_PADDLE_TABLE = "StructuredToParameterName@@"
"""Key of the table of names that paddle.save writes into each state dict."""


def refuse(content: Content, sources: Iterable[str]) -> CheckpointError:
    """Return the error for `content`; `sources` are the names of those that are known."""
    path, known = content.path, " or ".join(sources)
    sign = _sign_of_ultralytics(content)
    if sign is not None:
        return CheckpointError(
            f"{path} was written by Ultralytics ({sign}), which is another model that can't be opened here. "
            f"Export it there (yolo export format=onnx), or take a checkpoint of {known}"
        )
    if _is_paddle(content):
        return CheckpointError(
            f"{path} was written by PaddlePaddle, whose checkpoints can't be opened here. Take the PyTorch one of "
            f"the same model: a checkpoint of {known}"
        )
    if content.refused is not None:
        return CheckpointError(
            f"{path} is a pickle that asks for {content.refused} and is not opened, because unpickling it could "
            "run code; expected tensors alone: torch.save({'model': model.state_dict()}, ...)"
        )
    return _without_detector(content, known)


def _sign_of_ultralytics(content: Content) -> str | None:
    if content.refused is not None:
        return content.refused if content.refused.startswith("ultralytics.") else None
    _, state = next(states_in(content.value), ((), {}))
    return f"its weights are called {next(iter(state))}" if any(map(_ULTRALYTICS_NAME.match, state)) else None


def _is_paddle(content: Content) -> bool:
    if content.refused is None:
        return False
    return content.path.suffix.lower() == ".pdparams" or ("text", _PADDLE_TABLE) in pickled_texts(content.path)


def _without_detector(content: Content, known: str) -> CheckpointError:
    path, (_, state) = content.path, next(states_in(content.value), ((), {}))
    if state:
        return CheckpointError(
            f"{path} has no detection head (no name holds 'decoder.decoder.layers'; there are "
            f"{_listed([*state])}): is it a backbone or another model? Known are checkpoints of {known}"
        )
    keys = [str(key) for key in content.value] if isinstance(content.value, Mapping) else []
    found = f"its keys are {_listed(keys)}" if keys else f"it is {type(content.value).__name__}"
    return CheckpointError(
        f"{path} holds no weights ({found}): expected {{'ema': {{'module': ...}}}}, {{'model': ...}} or a plain "
        f"state dict of {known}"
    )


def _listed(keys: Sequence[str]) -> str:
    more = f", ... ({len(keys)} keys)" if len(keys) > MAX_LISTED_KEYS else ""
    return ", ".join(map(repr, keys[:MAX_LISTED_KEYS])) + more
