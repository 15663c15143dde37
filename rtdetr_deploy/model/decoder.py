"""Decoder: query selection, then layers that each refine Q boxes and have class and box heads of their own.

    input    3 maps (B, D_encoder, H/s, W/s)   s = 8, 16, 32
    output   per layer: class logits (B, Q, K) and boxes (B, Q, 4) as cxcywh in [0, 1]; in a cascade, Q shrinks

Because every layer has its own heads, the first k layers are a complete model without retraining (arXiv 2304.08069,
section 5.4). Parameter names follow the released checkpoints (strict=True).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rtdetr_deploy.model.layers.attention import SelfAttention
from rtdetr_deploy.model.layers.conv_norm import ConvNorm
from rtdetr_deploy.model.layers.deformable_attention import DeformableAttention
from rtdetr_deploy.model.layers.tokens import LevelSizes, flatten_map, gather_rows
from rtdetr_deploy.model.query_selection import Preselection, QueryCut, QuerySelection, Selection, score_tokens
from rtdetr_deploy.model.variants import DECODER_WIDTH, HEADS, Variant

FEEDFORWARD = 1024
LOGIT_LIMIT = 11.512925
"""logit(1 - 1e-5): the released code clamps boxes to [1e-5, 1 - 1e-5] before taking their logit. Clamping the logit
itself is the same function and needs no 1 - 1e-5, which half precision can't hold."""


@dataclass(frozen=True)
class DecoderOutput:
    """One entry per layer that ran: logits (B, Q, K) and boxes (B, Q, 4); and the encoder's selection.

    In a cascade K:N the entries from layer K on have N rows, those of the queries that go on.
    """

    logits: list[Tensor]
    boxes: list[Tensor]
    selection: Selection


class ExtraQueries(NamedTuple):
    """Queries put before the selected ones (denoising, in training).

    `content` (B, E, D), `reference` (B, E, 4) logits of cxcywh, and the attention `mask` (E + Q, E + Q) of all queries.
    """

    content: Tensor
    reference: Tensor
    mask: Tensor


class Mlp(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, width_in: int, hidden: int, width_out: int, count: int) -> None:
        super().__init__()
        widths = [width_in, *([hidden] * (count - 1)), width_out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width_in) -> (..., width_out)."""
        *hidden, last = self.layers
        for layer in hidden:
            x = functional.relu(layer(x))
        return last(x)


class SelectionProjection(nn.Module):
    """Linear and LayerNorm before the selection's heads; invalid tokens enter as zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, memory: Tensor) -> Tensor:
        """Tokens (B, T, D) -> output_memory (B, T, D)."""
        return self.norm(self.proj(memory))


class BoxRefinement(nn.Module):
    """Boxes and the next reference from a reference and what a box head changes; all as logits of cxcywh.

    Without parameters: a module, so that exports can name it (`1 - 1e-5` is 1 in half precision).
    """

    def forward(self, reference: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (B, Q, 4) cxcywh in [0, 1] and the next reference from `reference` and `change` (B, Q, 4).

        In training the loss of a layer's boxes reaches that layer and the one before it, no further: each layer starts
        from a detached box ("look forward twice", arXiv 2203.03605, section 3.5). Values are the same either way.
        """
        boxes = torch.sigmoid(change + reference.clamp(-LOGIT_LIMIT, LOGIT_LIMIT))
        return boxes, change + reference.detach().clamp(-LOGIT_LIMIT, LOGIT_LIMIT)


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward; each added and normalized (post-norm)."""

    def __init__(self, variant: Variant, width: int = DECODER_WIDTH) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width, HEADS)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn = DeformableAttention(variant.points, variant.sampling)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, FEEDFORWARD)
        self.linear2 = nn.Linear(FEEDFORWARD, width)
        self.norm3 = nn.LayerNorm(width)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Tensor,
        sizes: LevelSizes,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the content (B, Q, D) of the queries after this layer.

        `content` (B, Q, D) and `position` (B, Q, D), which is added wherever queries attend; `reference` boxes
        (B, Q, 4) as cxcywh in [0, 1]; `memory` (B, T, D), tokens of levels with `sizes`; `mask` (Q, Q), see
        `SelfAttention`.
        """
        content = self.norm1(content + self.self_attn(content, position, mask))
        content = self.norm2(content + self.cross_attn(content + position, reference, memory, sizes))
        return self.norm3(content + self.linear2(functional.relu(self.linear1(content))))


class DecoderLayers(nn.Module):
    """Holds the layers under the name that released checkpoints use (`decoder.decoder.layers`)."""

    def __init__(self, variant: Variant, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(variant) for _ in range(count))


class Decoder(nn.Module):
    """Query selection and the first `layers` decoder layers."""

    def __init__(self, variant: Variant, layers: int) -> None:
        super().__init__()
        width, classes = DECODER_WIDTH, variant.classes
        self.input_proj = nn.ModuleList(ConvNorm(variant.width, width, 1) for _ in range(3))
        self.decoder = DecoderLayers(variant, layers)
        self.denoising_class_embed = nn.Embedding(classes + 1, width, padding_idx=classes)
        self.query_pos_head = Mlp(4, 2 * width, width, 2)
        self.query_selection = QuerySelection(variant.queries)
        self.preselection: Preselection | None = None
        self.cascade: QueryCut | None = None
        self.enc_output = SelectionProjection(width)
        self.enc_score_head = nn.Linear(width, classes)
        self.enc_bbox_head = Mlp(width, width, 4, 3)
        self.reference_box = nn.Sigmoid()
        self.refinement = BoxRefinement()
        self.dec_score_head = nn.ModuleList(nn.Linear(width, classes) for _ in range(layers))
        self.dec_bbox_head = nn.ModuleList(Mlp(width, width, 4, 3) for _ in range(layers))

    def forward(self, maps: list[Tensor], extra: ExtraQueries | None = None) -> DecoderOutput:
        """3 maps (B, D_encoder, H/s, W/s) -> logits (B, Q, K) and boxes (B, Q, 4) cxcywh of every layer.

        With `extra` queries, E of them, each output has E + Q rows, theirs first; a cascade takes none.
        """
        selection, memory, sizes = self.select(maps)
        # Training: the decoder's losses don't reach the encoder's heads, which have losses of their own.
        content, reference, mask = selection.content.detach(), selection.reference.detach(), None
        if extra is not None:
            content = torch.cat((extra.content, content), dim=1)
            reference = torch.cat((extra.reference, reference), dim=1)
            mask = extra.mask
        logits, boxes = self.refine(content, reference, memory, sizes, mask)
        return DecoderOutput(logits, boxes, selection)

    def select(self, maps: list[Tensor]) -> tuple[Selection, Tensor, LevelSizes]:
        """Select queries; return the tokens that layers read, memory (B, T, D), and the size of each level, too."""
        memory, sizes = self.flatten(maps)
        among, candidates = (None, memory) if self.preselection is None else self.preselection(memory, sizes)
        heads = {"project": self.enc_output, "score": self.enc_score_head, "box": self.enc_bbox_head}
        return self.query_selection(candidates, sizes, **heads, among=among), memory, sizes

    def preselect(self) -> None:
        """Choose twice as many tokens as queries first, for files that score all of them in half precision."""
        self.preselection = Preselection(self.enc_output, self.enc_score_head, 2 * self.queries)

    @property
    def queries(self) -> int:
        """Number of queries that are selected where there are tokens enough."""
        return self.query_selection.queries

    def flatten(self, maps: list[Tensor]) -> tuple[Tensor, LevelSizes]:
        """Project the maps and return them as tokens, memory (B, T, D), and the height and width of each level."""
        sizes = [(int(x.shape[2]), int(x.shape[3])) for x in maps]
        levels = [flatten_map(project(x)) for project, x in zip(self.input_proj, maps, strict=True)]
        return torch.cat(levels, dim=1), sizes

    def refine(
        self, content: Tensor, reference: Tensor, memory: Tensor, sizes: LevelSizes, mask: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run the layers from `content` (B, Q, D) and box logits `reference` (B, Q, 4); one output per layer."""
        assert mask is None or self.cascade is None
        logits, boxes = [], []
        for number, (layer, score_head, box_head) in enumerate(
            zip(self.decoder.layers, self.dec_score_head, self.dec_bbox_head, strict=True), start=1
        ):
            box = self.reference_box(reference).detach()
            content = layer(content, self.query_pos_head(box), box, memory, sizes, mask)
            if self.cascade is not None and self.cascade.after == number:
                rows = self.cascade(score_head(content))
                content, reference = gather_rows(content, rows), gather_rows(reference, rows)
            refined, reference = self.refinement(reference, box_head(content))
            boxes.append(refined)
            logits.append(score_head(content))
        return logits, boxes

    def selection_margin(self, maps: list[Tensor]) -> float:
        """Return by how much (logits) the last selected token of one image beats the first rejected one.

        Infinite where no token is rejected.
        """
        memory, sizes = self.flatten(maps)
        _, scores = score_tokens(memory, sizes, project=self.enc_output, score=self.enc_score_head)
        best = scores[0].amax(dim=-1)
        if len(best) <= self.queries:
            return float("inf")
        kept, rejected = best.topk(self.queries + 1).values[-2:]
        return float(kept - rejected)
