"""Graphs as the published times were measured on: the released exporter's form of any variant, depth and encoder.

It differs from this project's form: sampling by GridSample, and the selection's box head runs on all tokens before the
best are chosen. Weights are random.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from rtdetr_bench.studies.encoders import build_encoder
from rtdetr_deploy.model import RTDETR
from rtdetr_deploy.model.family import family_of
from rtdetr_deploy.model.layers.tokens import LevelSizes, gather_rows
from rtdetr_deploy.model.query_selection import QuerySelection, Selection, make_anchors, score_tokens
from rtdetr_deploy.model.random_weights import fill_randomly
from rtdetr_deploy.model.variants import find_variant
from rtdetr_export import ExportOptions
from rtdetr_export.graph import DeployedModel, PostProcessor
from rtdetr_export.pipeline import trace
from rtdetr_export.simplify import serialize, simplify


class BoxesOfAllTokens(QuerySelection):
    """The selection of the released code: boxes for all tokens, then the best are chosen."""

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
        """See `QuerySelection`; it chooses among all tokens."""
        anchors = torch.from_numpy(make_anchors(tuple(sizes))[0])
        output_memory, scores = score_tokens(memory, sizes, project=project, score=score)
        references = box(output_memory) + anchors
        tokens = scores.amax(dim=-1).topk(min(self.queries, len(anchors)), dim=1).indices
        rows = (gather_rows(values, tokens) for values in (output_memory, references, scores))
        return Selection(tokens, *rows)


def released_graph(variant: str, layers: int | None = None, encoder: str | None = None) -> onnx.ModelProto:
    """Return the FP32 graph of `variant` at 640x640, with fewer decoder layers or another of the paper's encoders.

    Raises `OptionError` for an unknown variant, and for layers that it doesn't have.
    """
    described = find_variant(variant)
    model = RTDETR(described, layers)
    if encoder is not None:
        model.encoder = build_encoder(encoder, described)  # type: ignore[assignment]
    fill_randomly(model)
    model.decoder.query_selection = BoxesOfAllTokens(described.queries)
    options = ExportOptions(Path(f"{variant}.pth"), size=(640, 640), sampler="grid")
    family = family_of(model)
    folded = family.fold(model.eval())
    family.use_sampler(folded, "grid")  # and neither our form for CPUs nor that for GPUs
    traced = trace(DeployedModel(folded, None, PostProcessor(options.max_detections)).eval(), options)
    return onnx.load_from_string(serialize(simplify(traced.content), {}, ""))
