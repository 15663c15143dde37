"""How raw scores are to be read, as data that is stored with a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rtdetr_deploy.artifacts.fields import find_wrong_field
from rtdetr_deploy.errors import ArtifactError, OptionError

MAX_DETECTIONS = 300
"""Detections kept of an image, as the released models do."""


@dataclass(frozen=True)
class ScoreDecoding:
    """How a model's raw logits `(Q, K)` become detections; stored with the file.

    - "sigmoid": the best query-class pairs, as RT-DETR; a query may give several detections of different classes;
    - "one-class": the best class of each query, by its sigmoid;
    - "softmax": the best class of each query, by the softmax over all K, of which one, `no_object` (None: the last),
      means that there is nothing, as DETR. Labels count the K - 1 others.

    Raises `OptionError` for other values.
    """

    kind: Literal["sigmoid", "one-class", "softmax"] = "sigmoid"
    no_object: int | None = None

    def __post_init__(self) -> None:
        wrong = find_wrong_field(self)
        if wrong is not None:
            raise OptionError(wrong)
        if self.no_object is not None and (self.kind != "softmax" or self.no_object < 0):
            raise OptionError(f"`no_object` is {self.no_object}, expected an index from 0, and only with softmax")

    def count_classes(self, logits: int) -> int:
        """Return the number of classes of a model with so many logits per query.

        Raises `ArtifactError` where there is no logit for the no-object class.
        """
        if self.kind != "softmax":
            return logits
        if logits <= (self.no_object or 0):
            raise ArtifactError(f"a model with {logits} logits per query has no class {self.no_object} for no object")
        return logits - 1


RTDETR_DECODING = ScoreDecoding()
