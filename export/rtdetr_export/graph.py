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

from rtdetr_deploy.model import RTDETR
from rtdetr_deploy.model.query_selection import gather_rows


class ScaleBytes(nn.Module):
    """uint8 `(B, H, W, 3)` in 0 .. 255 -> float32 `(B, 3, H, W)` in [0, 1].

    The cast comes first: TensorRT takes UINT8 as the network's input, and for nothing else.
    """

    def forward(self, images: Tensor) -> Tensor:
        return images.to(torch.float32).permute(0, 3, 1, 2) / 255.0


class TopDetections(nn.Module):
    """The best query-class pairs, as the released models' postprocessor selects them (no NMS).

    `logits (B, Q, K)` and `boxes (B, Q, 4)` cxcywh -> labels, boxes, scores as above. The logits are sorted and only
    the survivors go through the sigmoid: it keeps the order.
    """

    def __init__(self, max_detections: int) -> None:
        super().__init__()
        self.max_detections = max_detections

    def forward(self, logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, classes = int(logits.shape[1]), int(logits.shape[2])
        count = min(self.max_detections, queries * classes)
        best, pairs = logits.reshape(-1, queries * classes).topk(count, dim=1)
        rows = torch.div(pairs, classes, rounding_mode="trunc")
        labels = (pairs - rows * classes).to(torch.int32)
        centre, size = gather_rows(boxes, rows).chunk(2, dim=-1)
        corners = torch.cat((centre - 0.5 * size, centre + 0.5 * size), dim=-1)
        return labels, corners.clamp(0.0, 1.0), best.sigmoid()


class DetectionGraph(nn.Module):
    """Model and what stands before and behind it."""

    def __init__(self, model: RTDETR, before: nn.Module, behind: nn.Module | None) -> None:
        super().__init__()
        self.before = before
        self.model = model
        self.behind = behind

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits, boxes = self.model(self.before(images))
        return (logits, boxes) if self.behind is None else self.behind(logits, boxes)
