"""The modules that stand around the model in an exported graph.

images    (B, 3, H, W) float32 RGB in [0, 1], or (B, H, W, 3) uint8 RGB
labels    (B, N) int32        class index
boxes     (B, N, 4) float32   xyxy in [0, 1] of the image
scores    (B, N) float32      in [0, 1], best first
N = min(max_detections, Q * K)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtdetr_deploy.model.boxes import cxcywh_to_xyxy
from rtdetr_deploy.model.family import family_of
from rtdetr_deploy.model.fp32_scope import Fp32Scope
from rtdetr_deploy.model.layers.tokens import gather_rows

MODEL = "model"
"""Name of the model inside a `DeployedModel`."""
PREPROCESS = Fp32Scope("preprocess", "preprocess", "bytes become shares of 255, which FP16 rounds")
POSTPROCESS = Fp32Scope("postprocess", "postprocess", "the final selection, and boxes that are drawn on large images")


class NormalizeUint8(nn.Module):
    """uint8 `(B, H, W, 3)` in 0 .. 255 -> float32 `(B, 3, H, W)` in [0, 1].

    The cast comes first: TensorRT takes UINT8 as the network's input, and for nothing else.
    """

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) -> float32 (B, 3, H, W)."""
        return images.to(torch.float32).permute(0, 3, 1, 2) / 255.0


class PostProcessor(nn.Module):
    """The best query-class pairs, as the released models' postprocessor selects them (no NMS).

    The logits are sorted and only the survivors go through the sigmoid: it keeps the order.
    """

    def __init__(self, max_detections: int) -> None:
        super().__init__()
        self.max_detections = max_detections

    def forward(self, logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, Q, K) and boxes (B, Q, 4) cxcywh -> labels, boxes and scores as above."""
        queries, classes = int(logits.shape[1]), int(logits.shape[2])
        count = min(self.max_detections, queries * classes)
        best, pairs = logits.reshape(-1, queries * classes).topk(count, dim=1)
        pairs = pairs.to(torch.int32)
        rows = torch.div(pairs, classes, rounding_mode="trunc")
        labels = pairs - rows * classes
        corners = cxcywh_to_xyxy(gather_rows(boxes, rows))
        return labels, corners.clamp(0.0, 1.0), best.sigmoid()


class DeployedModel(nn.Module):
    """A model and what stands before and behind it; None where the file takes floats, or returns raw outputs."""

    def __init__(
        self, model: nn.Module, preprocess: NormalizeUint8 | None = None, postprocess: PostProcessor | None = None
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.model = model
        self.postprocess = postprocess

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images as the file takes them -> labels, boxes, scores, or the model's logits and boxes."""
        logits, boxes = self.model(images if self.preprocess is None else self.preprocess(images))
        return (logits, boxes) if self.postprocess is None else self.postprocess(logits, boxes)

    @property
    def fp32_scopes(self) -> tuple[Fp32Scope, ...]:
        """What stays in FP32: the model's own scopes, and what stands around it."""
        return self._around(family_of(self.model).fp32_scopes(self.model))

    @property
    def bf16_scopes(self) -> tuple[Fp32Scope, ...]:
        """What stays in FP32 when a CPU computes the rest in BF16."""
        return self._around(family_of(self.model).bf16_scopes(self.model))

    def _around(self, scopes: tuple[Fp32Scope, ...]) -> tuple[Fp32Scope, ...]:
        own = (scope.inside(MODEL) for scope in scopes)
        before = () if self.preprocess is None else (PREPROCESS,)
        behind = () if self.postprocess is None else (POSTPROCESS,)
        return (*before, *own, *behind)

    @property
    def quantization_blocks(self) -> tuple[str, ...]:
        """Globs of the blocks that go to INT8 as a whole."""
        return tuple(f"{MODEL}.{glob}" for glob in family_of(self.model).quantization_blocks(self.model))

    @property
    def unquantized(self) -> tuple[str, ...]:
        """Globs of what stays out of INT8."""
        return tuple(f"{MODEL}.{glob}" for glob in family_of(self.model).unquantized(self.model))
