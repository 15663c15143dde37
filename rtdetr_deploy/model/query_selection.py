"""Uncertainty-minimal query selection: the Q best encoder tokens become the decoder's queries.

    memory      (B, T, D)   tokens of all levels
    content     (B, Q, D)   output_memory at the selected tokens
    reference   (B, Q, 4)   logit of cxcywh boxes
    T = sum over levels of h * w; 8400 at 640x640

Paper: arXiv 2304.08069, section 4.3. Selecting first and computing boxes for the selected tokens only is the same
function as the released code's and cheaper.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from rtdetr_deploy.model.layers.tokens import LevelSizes, gather_rows

ANCHOR_SIZE = 0.05
"""Side of an anchor on the finest level, in shares of the image; it doubles from level to level."""
ANCHOR_EPS = 0.01
"""Distance from 0 and 1 that centre and sides of a valid anchor keep."""
INVALID_ANCHOR_LOGIT = 1.0e4
"""Logit of an invalid anchor: its sigmoid is exactly 1, as for the infinity of the released code, and it is finite in
half precision too."""


class Selection(NamedTuple):
    """Selected tokens (B, Q), their content (B, Q, D), reference (B, Q, 4) and class logits `scores` (B, Q, K)."""

    tokens: Tensor
    content: Tensor
    reference: Tensor
    scores: Tensor


@lru_cache(maxsize=32)
def make_anchors(sizes: tuple[tuple[int, int], ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return anchors `(T, 4)` as logits of cxcywh, and their validity `(T, 1)` as 0.0 or 1.0; both float32.

    Centres ((x + 0.5) / w, (y + 0.5) / h), size 0.05 * 2^level; valid where all four lie within (0.01, 0.99).
    """
    levels = []
    for level, (height, width) in enumerate(sizes):
        y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        size = np.full(height * width, ANCHOR_SIZE * 2**level)
        levels.append(np.stack([(x.ravel() + 0.5) / width, (y.ravel() + 0.5) / height, size, size], axis=1))
    anchors = np.concatenate(levels)
    valid = ((anchors > ANCHOR_EPS) & (anchors < 1.0 - ANCHOR_EPS)).all(axis=1, keepdims=True)
    logits = np.where(valid, np.log(anchors / (1.0 - anchors)), INVALID_ANCHOR_LOGIT)
    return logits.astype(np.float32), np.asarray(valid, np.float32)


class QuerySelection(nn.Module):
    """Selects the `queries` tokens with the largest class score (all of them where there are fewer).

    It has no parameters: in the released checkpoints its heads belong to the decoder, which hands them in.
    """

    def __init__(self, queries: int) -> None:
        super().__init__()
        self.queries = queries

    def forward(
        self,
        memory: Tensor,
        sizes: LevelSizes,
        *,
        project: nn.Module,
        score: nn.Module,
        box: nn.Module,
        among: Tensor | None = None,
    ) -> Selection:
        """Memory (B, T, D) of levels with `sizes` -> the selection.

        `project` (B, T, D) -> (B, T, D), `score` (B, T, D) -> class logits (B, T, K), `box` (B, Q, D) -> corrections
        of the anchors' logits (B, Q, 4). `among` (B, P) int32 are the only tokens to choose from (see `Preselection`);
        `memory` is theirs then, (B, P, D).
        """
        # float32 whatever the tokens are: under autocast the boxes must not be rounded to bfloat16.
        anchors, valid = (torch.from_numpy(array).to(memory.device) for array in make_anchors(tuple(sizes)))
        if among is not None:
            anchors, valid = functional.embedding(among, anchors), functional.embedding(among, valid)
        output_memory, scores = _score(memory, valid, project, score)
        count = min(self.queries, int(memory.shape[1]))
        best = scores.amax(dim=-1).topk(count, dim=1).indices.to(torch.int32)  # (B, Q)
        content = gather_rows(output_memory, best)
        chosen = functional.embedding(best, anchors) if among is None else gather_rows(anchors, best)
        tokens = best if among is None else torch.gather(among, 1, best.to(torch.int64))
        return Selection(tokens, content, box(content) + chosen, gather_rows(scores, best))


class Preselection(nn.Module):
    """Chooses `count` tokens by scores that may be rounded, for a selection that is exact among them.

    So the many can be scored in half precision, and only the few in float32. The selection is that of exact scores
    where none of its tokens has a rounded score below the `count` best; it has copies of the selection's own heads.
    """

    def __init__(self, project: nn.Module, score: nn.Module, count: int) -> None:
        super().__init__()
        self.project, self.score = copy.deepcopy(project), copy.deepcopy(score)
        self.count = count

    def forward(self, memory: Tensor, sizes: LevelSizes) -> tuple[Tensor, Tensor]:
        """Memory (B, T, D) of levels with `sizes` -> tokens (B, P) int32 and their memory (B, P, D); P <= `count`."""
        _, scores = score_tokens(memory, sizes, project=self.project, score=self.score)
        count = min(self.count, int(memory.shape[1]))
        tokens = scores.amax(dim=-1).topk(count, dim=1).indices.to(torch.int32)
        return tokens, gather_rows(memory, tokens)


class QueryCut(nn.Module):
    """Chooses the `keep` queries with the largest class score, best first (all of them where there are fewer).

    For cascades: they alone go on after decoder layer `after`. Of equal scores the first query is taken in ONNX files,
    by the definition of TopK. A module without parameters, so that exports can keep its scores in FP32.
    """

    def __init__(self, after: int, keep: int) -> None:
        super().__init__()
        self.after, self.keep = after, keep

    def forward(self, logits: Tensor) -> Tensor:
        """Class logits (B, Q, K) -> the chosen queries (B, N), int32."""
        count = min(self.keep, int(logits.shape[1]))
        return logits.amax(dim=-1).topk(count, dim=1).indices.to(torch.int32)


def score_tokens(memory: Tensor, sizes: LevelSizes, *, project: nn.Module, score: nn.Module) -> tuple[Tensor, Tensor]:
    """Return output_memory `(B, T, D)` and the class logits `(B, T, K)` of all tokens; invalid ones enter as zeros."""
    return _score(memory, torch.from_numpy(make_anchors(tuple(sizes))[1]).to(memory.device), project, score)


def _score(memory: Tensor, valid: Tensor, project: nn.Module, score: nn.Module) -> tuple[Tensor, Tensor]:
    """As `score_tokens`, of the tokens (B, T, D) whose validity (T, 1) or (B, T, 1) is given."""
    output_memory = project(memory * valid.to(memory))
    return output_memory, score(output_memory)
