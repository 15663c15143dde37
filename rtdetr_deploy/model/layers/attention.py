"""Multi-head attention with the parameter names of the released checkpoints.

    content    (B, N, D)                source of query, key and value
    position   (B, N, D) or (1, N, D)   added to query and key, never to the value
    output     (B, N, D)

Written as plain matrix products, so that the exported graph holds two MatMuls and one Softmax.
Formula: softmax(Q K^T / sqrt(D / heads)) V (arXiv 1706.03762, equation 1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class SelfAttention(nn.Module):
    """Attention of a set of tokens to itself; `in_proj_weight` stacks the projections of query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, content: Tensor, position: Tensor, mask: Tensor | None = None) -> Tensor:
        """`content` (B, N, D) and `position` (B, N, D) or (1, N, D) -> (B, N, D).

        `mask` (N, N) is added to the attention scores: 0 where a query may see a key, -inf where it may not.
        """
        count, width = int(content.shape[1]), int(content.shape[2])
        dim = width // self.heads
        weight, bias = self.in_proj_weight, self.in_proj_bias
        query_key = functional.linear(content + position, weight[: 2 * width], bias[: 2 * width])
        value = functional.linear(content, weight[2 * width :], bias[2 * width :])
        query, key, value = (
            x.reshape(-1, count, self.heads, dim).transpose(1, 2) for x in (*query_key.chunk(2, dim=-1), value)
        )
        scores = (query * dim**-0.5) @ key.transpose(2, 3)  # (B, heads, N, N)
        if mask is not None:
            scores = scores + mask
        mixed = torch.softmax(scores, dim=-1) @ value
        return self.out_proj(mixed.transpose(1, 2).reshape(-1, count, width))
