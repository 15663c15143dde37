"""The input sizes that a model can be built for: one rule for checkpoints, exports, evaluation and training."""

from __future__ import annotations

from rtdetr_deploy.errors import OptionError

STRIDES = (8, 16, 32)
"""Pixels per cell of the three feature levels."""
STRIDE = STRIDES[-1]
"""Of the coarsest level: both sides of an input are multiples of it."""
MIN_SIDE, MAX_SIDE = 64, 8192
DEFAULT_INPUT_SIZE = (640, 640)
"""(height, width) in pixels; what the released models are trained with."""


def is_input_size(size: object) -> bool:
    """Tell whether `size` is (height, width), both multiples of 32 from 64 to 8192 pixels."""
    sides = _sides(size)
    return sides is not None and all(MIN_SIDE <= side <= MAX_SIDE and side % STRIDE == 0 for side in sides)


def check_input_size(size: object, name: str = "size") -> tuple[int, int]:
    """Return `size` as (height, width). Raises `OptionError` about the argument `name` unless `is_input_size`."""
    sides = _sides(size)
    rule = f"multiples of {STRIDE} from {MIN_SIDE} to {MAX_SIDE}"
    if sides is None:
        raise OptionError(f"`{name}` is {size!r}, expected (height, width), {rule}")
    if not is_input_size(sides):
        near = "x".join(str(min(max(MIN_SIDE, round(side / STRIDE) * STRIDE), MAX_SIDE)) for side in sides)
        raise OptionError(f"`{name}` is {'x'.join(map(str, sides))}, expected {rule}; try {near}")
    return sides


def count_tokens(height: int, width: int) -> int:
    """Return the number of cells of all levels, which queries are selected from; 8400 at 640x640."""
    return sum((height // stride) * (width // stride) for stride in STRIDES)


def _sides(size: object) -> tuple[int, int] | None:
    if isinstance(size, (tuple, list)) and len(size) == 2 and all(type(side) is int for side in size):
        return size[0], size[1]
    return None
