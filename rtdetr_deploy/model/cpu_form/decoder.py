"""The decoder on the encoder's maps themselves: its input projection is part of the products that read it.

input    3 maps (B, D_encoder, H/s, W/s)   s = 8, 16, 32
output   per layer: class logits (B, Q, K) and boxes (B, Q, 4) as cxcywh in [0, 1]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rtdetr_deploy.model.cpu_form.pointwise import LevelProjection, convolution_of, join
from rtdetr_deploy.model.cpu_form.sampling import TableAttention
from rtdetr_deploy.model.decoder import Decoder, DecoderLayer, SelectionProjection
from rtdetr_deploy.model.layers.deformable_attention import DeformableAttention
from rtdetr_deploy.model.layers.tokens import LevelSizes, gather_rows
from rtdetr_deploy.model.query_selection import QuerySelection, Selection, make_anchors


class MapProjection(SelectionProjection):
    """The selection's projection and norm, of maps: 3 maps (B, D_encoder, h, w) -> output_memory (B, T, D)."""

    def __init__(self, projection: SelectionProjection, inputs: list[nn.Conv2d]) -> None:
        nn.Module.__init__(self)
        linear = projection.proj
        self.proj = LevelProjection([join(conv, linear.weight, linear.bias) for conv in inputs])  # type: ignore[assignment]
        self.norm = projection.norm

    def forward(self, maps: list[Tensor]) -> Tensor:  # type: ignore[override]
        """3 maps (B, D_encoder, h, w) -> (B, T, D)."""
        return self.norm(self.proj(maps))


class MapSelection(QuerySelection):
    """`QuerySelection` that masks scores and selected tokens in place of all tokens.

    A token without a valid anchor enters the projection as zeros, so what comes out is the same for all of them:
    `content` (D,), with the best class score `score` ().
    """

    content: Tensor
    score: Tensor

    def __init__(self, selection: QuerySelection, projection: SelectionProjection, score: nn.Module) -> None:
        super().__init__(selection.queries)
        with torch.no_grad():
            content = projection.norm(projection.proj.bias)
            self.register_buffer("content", content)
            self.register_buffer("score", score(content).amax())

    def forward(  # type: ignore[override]
        self, maps: list[Tensor], sizes: LevelSizes, *, project: nn.Module, score: nn.Module, box: nn.Module
    ) -> Selection:
        """3 maps (B, D_encoder, h, w) of `sizes` -> the selection; `project` makes output_memory (B, T, D) of maps."""
        anchors, valid = (torch.from_numpy(array).to(maps[0].device) for array in make_anchors(tuple(sizes)))
        output_memory = project(maps)
        best_class = score(output_memory).amax(dim=-1)
        if not bool(valid.all()):
            best_class = torch.where(valid[:, 0] > 0, best_class, self.score)
        count = min(self.queries, len(anchors))
        tokens = best_class.topk(count, dim=1).indices.to(torch.int32)  # (B, Q)
        content = gather_rows(output_memory, tokens)
        if not bool(valid.all()):
            content = torch.where(functional.embedding(tokens, valid) > 0, content, self.content)
        reference = box(content) + functional.embedding(tokens, anchors)
        return Selection(tokens, content, reference, score(content))


class CpuDecoder(Decoder):
    """A folded `Decoder`, whose modules it takes over under their names. `values` is the table of all layers."""

    def __init__(self, decoder: Decoder) -> None:
        nn.Module.__init__(self)
        vars(self).update({name: value for name, value in vars(decoder).items() if not name.startswith("_")})
        for name, module in decoder.named_children():
            self.add_module(name, module)
        inputs = [convolution_of(project) for project in decoder.input_proj]
        del self.input_proj
        assert isinstance(decoder.enc_output, SelectionProjection)
        self.query_selection = MapSelection(decoder.query_selection, decoder.enc_output, decoder.enc_score_head)
        self.enc_output = MapProjection(decoder.enc_output, inputs)
        layers = [layer for layer in decoder.decoder.layers if isinstance(layer, DecoderLayer)]
        projections = [layer.cross_attn.value_proj for layer in layers]
        weight = torch.cat([linear.weight for linear in projections])
        bias = torch.cat([linear.bias for linear in projections])
        self.values = LevelProjection([join(conv, weight, bias) for conv in inputs])
        for index, layer in enumerate(layers):
            assert isinstance(layer.cross_attn, DeformableAttention)
            layer.cross_attn = TableAttention(layer.cross_attn, index, len(layers))

    def select(self, maps: list[Tensor]) -> tuple[Selection, Tensor, LevelSizes]:
        """Select queries of 3 maps (B, D_encoder, h, w); return the table (B, T, layers * D) and the levels, too."""
        sizes = [(int(x.shape[2]), int(x.shape[3])) for x in maps]
        heads = {"project": self.enc_output, "score": self.enc_score_head, "box": self.enc_bbox_head}
        return self.query_selection(maps, sizes, **heads), self.values(maps), sizes
