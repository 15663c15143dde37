"""Maps as tokens, and tokens by index: what encoder, decoder and postprocessing share.

map      (B, D, h, w)   one level
tokens   (B, T, D)      all levels, level by level, row-major; T = sum over levels of h * w
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LevelSizes = Sequence[tuple[int, int]]
"""Height and width of each level."""


def flatten_map(x: Tensor) -> Tensor:
    """Turn a map into tokens, row-major: `(B, D, h, w) -> (B, h * w, D)`."""
    return x.reshape(-1, int(x.shape[1]), int(x.shape[2]) * int(x.shape[3])).transpose(1, 2)


def gather_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Return `table[b, rows[b, q]]`: `(B, T, D)` and `(B, Q)` -> `(B, Q, D)`, as one flat row gather."""
    length, width = int(table.shape[1]), int(table.shape[2])
    batch = torch.arange(table.shape[0], dtype=rows.dtype, device=rows.device)[:, None]
    flat = (batch * length + rows).reshape(-1)
    return table.reshape(-1, width).index_select(0, flat).reshape(-1, int(rows.shape[1]), width)
