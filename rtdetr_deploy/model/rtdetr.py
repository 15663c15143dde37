"""RT-DETR and RT-DETRv2, all variants.

    images   (B, 3, H, W)   RGB in [0, 1], plainly resized, no mean or standard deviation; H, W multiples of 32
    logits   (B, Q, K)      one sigmoid per class, no background class
    boxes    (B, Q, 4)      cxcywh in [0, 1] of the input image

Papers: arXiv 2304.08069 and 2407.17140. Parameter names follow the released checkpoints (strict=True).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from rtdetr_deploy.artifacts.cascade import Cascade, check_cascade
from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.model.backbones.hgnetv2 import HgNetV2Backbone
from rtdetr_deploy.model.backbones.resnet_vd import ResNetVdBackbone
from rtdetr_deploy.model.decoder import Decoder, DecoderOutput, ExtraQueries
from rtdetr_deploy.model.hybrid_encoder import HybridEncoder
from rtdetr_deploy.model.layers.deformable_attention import DeformableAttention
from rtdetr_deploy.model.query_selection import QueryCut
from rtdetr_deploy.model.variants import ResNetVdConfig, Variant
from rtdetr_deploy.words import plural


class RawOutput(NamedTuple):
    """What the model computes: logits (B, Q, K) and boxes (B, Q, 4) cxcywh in [0, 1]."""

    logits: Tensor
    boxes: Tensor


class RTDETR(nn.Module):
    """The whole detector; `layers` keeps the first layers only (default: as many as the variant runs)."""

    def __init__(self, variant: Variant, layers: int | None = None) -> None:
        super().__init__()
        layers = check_layers(variant, layers)
        self.variant = variant
        self.backbone: nn.Module = (
            ResNetVdBackbone(variant.backbone)
            if isinstance(variant.backbone, ResNetVdConfig)
            else HgNetV2Backbone(variant.backbone)
        )
        self.encoder = HybridEncoder(variant)
        self.decoder = Decoder(variant, layers)

    @property
    def layers(self) -> int:
        """Number of decoder layers that this model holds and runs."""
        return len(self.decoder.decoder.layers)

    def forward(self, images: Tensor) -> RawOutput:
        """Images (B, 3, H, W) in [0, 1] -> logits (B, Q, K) and boxes (B, Q, 4) cxcywh of the last layer."""
        output = self.forward_layers(images)
        return RawOutput(output.logits[-1], output.boxes[-1])

    def forward_layers(self, images: Tensor, extra: ExtraQueries | None = None) -> DecoderOutput:
        """Images (B, 3, H, W) in [0, 1] -> the output of every decoder layer and of the query selection.

        `extra` queries come first in the outputs of the layers.
        """
        return self.decoder(self.encode(images), extra)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [0, 1] -> the encoder's 3 maps (B, D, H/s, W/s)."""
        return self.encoder(self.backbone(images))

    @property
    def sampler(self) -> str:
        """Name of the sampler that deformable attention uses."""
        return self._cross_attention()[0].sampler_name

    def use_sampler(self, name: str) -> None:
        """Sample in deformable attention with `grid`, `gather` (the same function) or `discrete`."""
        for attention in self._cross_attention():
            attention.use_sampler(name)

    @property
    def cascade(self) -> Cascade | None:
        """(K, N) where only the N best queries go on after layer K; None where all do."""
        cut = self.decoder.cascade
        return None if cut is None else (cut.after, cut.keep)

    def use_cascade(self, cascade: Cascade | None) -> None:
        """Let only the N best queries go on after layer K, for inference; None: all.

        Raises `OptionError` unless K is in 1 .. layers - 1 and N in 1 .. queries.
        """
        if cascade is not None:
            cascade = check_cascade(cascade, self.layers, self.variant.queries)
        self.decoder.cascade = None if cascade is None else QueryCut(*cascade)

    def _cross_attention(self) -> list[DeformableAttention]:
        return [module for module in self.decoder.modules() if isinstance(module, DeformableAttention)]


def check_layers(variant: Variant, layers: int | None) -> int:
    """Return the number of decoder layers to build; `OptionError` unless it is 1 .. `variant.max_layers`."""
    layers = variant.layers if layers is None else layers
    if not 1 <= layers <= variant.max_layers:
        raise OptionError(
            f"`layers` is {layers}, but {variant.name} has {plural(variant.max_layers, 'decoder layer')}: "
            f"choose 1 to {variant.max_layers}"
        )
    return layers
