"""What may differ, and by how much: the tolerances of all reports, in one table.

Pixels are those of the original image, in parity reports those of the model's input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Tolerance:
    """Maximum difference of any of the four box coordinates, in pixels, and of the score."""

    pixels: float
    score: float

    def __str__(self) -> str:
        return f"{self.pixels:g} px, {self.score:g}"


@dataclass(frozen=True)
class Limits:
    """What detections must keep to.

    They are compared at `tolerances`, narrow to wide; at least `min_match_rate` of the expected ones must be within
    the widest, and there may be `max_spurious` extra ones, as a share of the expected (None: any number). Where few are
    compared, shares are coarse: `allowance` missing and as many extra ones are allowed in any case, as long as they are
    at most `MAX_ALLOWANCE_SHARE` of the expected.
    """

    tolerances: tuple[Tolerance, ...]
    min_match_rate: float
    max_spurious: float | None = None
    allowance: int = 0


MIN_COMPARED, MIN_COMPARED_IN_TRIALS = 20, 10
"""Detections per image that are compared even where fewer are confident: in reports, and when INT8 blocks are tried."""
MIN_PRECISION_SHARE = 0.8
"""Part of the graph's nodes of a precision that an engine must have in that precision at least: kernels are fused."""
MIN_PLAN_MATCH_RATE = 0.97
"""Share of detections within the widest tolerance that a choice of INT8 blocks must keep on the calibration images."""

MAX_ALLOWANCE_SHARE = 0.05
"""Share of the expected detections that an absolute allowance may amount to."""

FIXED = Tolerance(0.1, 1e-3)
"""Where only the order of sums differs: an FP32 file and its model, a replayed and a plain call, rows of a batch."""
TOLERANCES = (Tolerance(0.5, 0.01), Tolerance(1.0, 0.02), Tolerance(2.0, 0.05))
"""Where precisions differ."""
LIMITS: Mapping[str, Limits] = {
    "fp32": Limits((FIXED,), 1.0),  # or what the model's own rounding explains, see below
    "fp16": Limits(TOLERANCES, 0.98),
    "int8": Limits(TOLERANCES, 0.9),
    # FP16 kernels sum in another order: of the 80 best detections on four pictures, two faint ones may be other ones
    "engine": Limits((TOLERANCES[0], TOLERANCES[-1]), 0.98, max_spurious=0.02, allowance=3),
    "int8 engine": Limits((TOLERANCES[0], TOLERANCES[-1]), 0.9, max_spurious=0.1, allowance=3),
    "repeated": Limits((FIXED,), 0.98),
}
"""By precision of an ONNX file against torch; of an engine against its file, or where it holds INT8 against FP32; of an
engine against itself."""

OWN_ROUNDING_FACTOR = 3.0
"""How many times the model's own rounding an FP32 file may differ where that is more than the fixed tolerance."""
MAX_MEDIAN_BOX, MAX_MEDIAN_SCORE = 0.005, 0.01
"""What half of the detections may differ by, however much rounding moves them; boxes in shares of the longer side."""
MAX_MISSING = 0.02
"""Share of the detections that may be missing, however many the model itself loses by rounding."""


def engine_limits(precision: str, *, against_fp32: bool, match_rate: float | None = None) -> Limits:
    """Return what an engine of an ONNX file of this `precision` must keep to.

    INT8 engines are judged against FP32, as INT8 files are. Where only the INT8 file is at hand, `match_rate` says how
    much of FP32 the file keeps (None: what is demanded of files). An engine of it may keep as much and lose others:
    TensorRT fuses what ONNX Runtime rounds step by step, so levels flip by one. Twice what the file loses is allowed.
    """
    if precision != "int8":
        return LIMITS["engine"]
    if against_fp32:
        return LIMITS["int8 engine"]
    lost = 1.0 - (LIMITS["int8"].min_match_rate if match_rate is None else match_rate)
    limits = LIMITS["engine"]
    assert limits.max_spurious is not None
    return replace(
        limits,
        min_match_rate=max(0.0, limits.min_match_rate - 2 * lost),
        max_spurious=limits.max_spurious + 2 * lost,
    )
