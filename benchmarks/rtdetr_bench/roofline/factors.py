"""The shares of a GPU's peaks that engines reach: fitted on published times, and stored with the errors of the fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

STORED = "t4_fit.json"


@dataclass(frozen=True)
class Factors:
    """Shares of the peak rates and of the peak bandwidth that are reached; `launch`: microseconds a kernel costs.

    The share of the bandwidth may be above 1: what a kernel wrote is partly in the cache when the next one reads it.
    """

    compute: float
    bandwidth: float
    launch: float


IDEAL = Factors(1.0, 1.0, 0.0)


def fitted_factors() -> Factors:
    """Return the factors that `python -m rtdetr_bench.roofline.fit` found for TensorRT FP16 on a T4."""
    return Factors(**stored_fit()["factors"])


@cache
def stored_fit() -> Mapping[str, Any]:
    """Return what the fit stored: `factors`, `figures` with published and estimated milliseconds, `max_error`."""
    content: dict[str, Any] = json.loads(files(__package__).joinpath(STORED).read_text(encoding="utf-8"))
    return content
