"""What a file says about BF16: which of its nodes stay in FP32 then, and how many detections that keeps."""

from __future__ import annotations

from dataclasses import dataclass

from rtdetr_deploy.artifacts.fields import find_wrong_field
from rtdetr_deploy.errors import ArtifactError

MIN_BF16_MATCH_RATE = 0.999
"""Share of FP32's detections that BF16 must keep within 2 px and 0.05 of score for `precision="auto"` to choose it."""
MIN_BF16_DETECTIONS = 500
"""Detections that must have been compared: of fewer, one more or less would decide."""


@dataclass(frozen=True)
class Bf16Check:
    """The export's comparison of BF16 with FP32 on `images` images.

    `match_rate` is the share of FP32's detections, `detections` in number, that BF16 kept within 2 px and 0.05. Raises
    `ArtifactError` for values that are not such.
    """

    match_rate: float
    images: int
    detections: int = 0

    def __post_init__(self) -> None:
        wrong = find_wrong_field(self)
        if wrong is not None or not 0.0 <= self.match_rate <= 1.0 or self.images < 1 or self.detections < 0:
            raise ArtifactError(
                wrong or f"{self.match_rate} of {self.detections} on {self.images} images is not a comparison"
            )

    @property
    def allowed(self) -> bool:
        """Whether enough detections were compared, and enough of them kept."""
        return self.detections >= MIN_BF16_DETECTIONS and self.match_rate >= MIN_BF16_MATCH_RATE
