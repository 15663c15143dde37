"""Maps as tokens, and tokens by index: what encoder, decoder and postprocessing share.

map      (B, D, h, w)   one level
tokens   (B, T, D)      all levels, level by level, row-major; T = sum over levels of h * w
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

LevelSizes = Sequence[tuple[int, int]]
"""Height and width of each level."""


def flatten_map(x: Tensor) -> Tensor:
    """Turn a map into tokens, row-major: `(B, D, h, w) -> (B, h * w, D)`."""
    return x.reshape(-1, int(x.shape[1]), int(x.shape[2]) * int(x.shape[3])).transpose(1, 2)


def gather_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Return `table[b, rows[b, q]]`: `(B, T, D)` and `(B, Q)` -> `(B, Q, D)`, as one flat row gather."""
    length, width = int(table.shape[1]), int(table.shape[2])
    flat = rows.to(torch.int32) + batch_starts(table, length)[:, None]
    return functional.embedding(flat, table.reshape(-1, width))


def batch_starts(like: Tensor, rows: int) -> Tensor:
    """Return the first row of each image `(B,)`, int32, in a table of `rows` rows per image; `like` is (B, ...)."""
    # The exporter drops arange's own dtype.
    return torch.arange(like.shape[0], device=like.device).to(torch.int32) * rows
