"""The parity report must notice what is wrong and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rtdetr_deploy import ExportError, Predictor  # noqa: E402
from rtdetr_deploy.artifacts.metadata import ArtifactInfo  # noqa: E402
from rtdetr_export.verify.agreement import Agreement  # noqa: E402
from rtdetr_export.verify.differences import Differences, RawOutput, compare_detections, compare_raw  # noqa: E402
from rtdetr_export.verify.parity import FIXED_ALLOWED, Parity, ParityReport, allow  # noqa: E402
from rtdetr_export.verify.reduced_precision import ReducedPrecisionReport  # noqa: E402
from rtdetr_export.verify.tolerances import LIMITS, OWN_ROUNDING_FACTOR  # noqa: E402

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (20, 3)).astype(np.float32)
BOXES = RNG.uniform(0.2, 0.6, (20, 4)).astype(np.float32)
MODEL = RawOutput(LOGITS, BOXES)


@pytest.fixture
def info(small_onnx: Path) -> ArtifactInfo:
    stored = Predictor(small_onnx).info
    assert isinstance(stored, ArtifactInfo)
    return replace(stored, max_detections=30)


@pytest.fixture
def found() -> dict[str, Any]:
    """What a faithful file returns: the 30 best of the 60 pairs."""
    scores = 1 / (1 + np.exp(-LOGITS.ravel()))
    order = np.argsort(-scores)[:30]
    half = BOXES[:, 2:] / 2
    corners = np.concatenate([BOXES[:, :2] - half, BOXES[:, :2] + half], axis=1).clip(0, 1)
    return {"labels": order % 3, "boxes": corners[order // 3], "scores": scores[order]}


def test_equal_sets_in_any_order_agree(info: ArtifactInfo, found: dict[str, Any]) -> None:
    shuffled = {name: array[::-1] for name, array in found.items()}
    box, score, missing = compare_detections(shuffled, MODEL, info)
    assert box.max() < 1e-4
    assert score.max() < 1e-6
    assert missing == 0


def test_a_moved_box_is_measured_in_pixels(info: ArtifactInfo, found: dict[str, Any]) -> None:
    found["boxes"][4, 2] += 0.01
    box, _, missing = compare_detections(found, MODEL, info)
    assert box.max() == pytest.approx(0.01 * info.width, rel=1e-3)
    assert missing == 0


def test_a_wrong_score_label_or_lost_detection_is_noticed(info: ArtifactInfo, found: dict[str, Any]) -> None:
    lower = {**found, "scores": found["scores"] - 0.02}
    assert compare_detections(lower, MODEL, info)[1].max() == pytest.approx(0.02, rel=1e-3)
    doubled = {name: np.concatenate([array[:1], array[:1], array[2:]]) for name, array in found.items()}
    assert compare_detections(doubled, MODEL, info)[2] == 1
    found["labels"] = (found["labels"] + 1) % 3
    assert compare_detections(found, MODEL, info)[2] > 0


def test_raw_outputs_are_matched_in_any_order(info: ArtifactInfo) -> None:
    box, score, missing = compare_raw(RawOutput(LOGITS[::-1], BOXES[::-1]), MODEL, info)
    assert (box.max(), score.max(), missing) == (0.0, 0.0, 0)
    repeated = np.concatenate([LOGITS[:1], LOGITS[:-1]])
    assert compare_raw(RawOutput(repeated, np.concatenate([BOXES[:1], BOXES[:-1]])), MODEL, info)[2] == 1


@pytest.mark.parametrize("value", [float("nan"), 0.2])
def test_nan_and_large_differences_fail_by_the_fixed_tolerance(value: float) -> None:
    found = _differences([0.0, value])
    assert not ParityReport("test", (Parity("noisy", found),)).passed
    assert ParityReport("test", (Parity("noisy", _differences([0.0, 0.09])),)).passed


def test_own_rounding_widens_the_limits_quantile_by_quantile() -> None:
    rounded = _differences([0.001] * 199 + [2.0], missing=1)
    limits = allow([rounded, _differences([0.0] * 200)], 200)
    assert limits.boxes[-1] == pytest.approx(2.0 * OWN_ROUNDING_FACTOR)
    assert limits.boxes[0] == FIXED_ALLOWED.boxes[0]
    assert limits.missing == OWN_ROUNDING_FACTOR
    assert limits.admits(_differences([0.001] * 199 + [5.0], missing=3))
    assert not limits.admits(_differences([0.001] * 199 + [6.1]))
    assert not limits.admits(_differences([0.5] * 200)), "all detections move by half a pixel: that isn't rounding"
    assert not limits.admits(_differences([0.0] * 200, missing=4))
    assert not limits.admits(_differences([0.001] * 199 + [float("nan")]))


def test_a_model_that_rounding_moves_as_a_whole_does_not_let_everything_pass() -> None:
    limits = allow([_differences([3.0] * 200, missing=90)], 200)
    assert limits.boxes[0] == pytest.approx(1.0), "half a percent of the longer side"
    assert limits.missing == 4
    assert limits.admits(_differences([0.9] * 200))
    refused = Parity("noisy", _differences([1.1] * 200), limits)
    assert not refused.passed
    with pytest.raises(ExportError, match="rounding alone moves half of this model's boxes by 3 px. No file of such"):
        ParityReport("test", (refused,)).require("x.onnx")


def test_a_report_says_which_limits_were_applied() -> None:
    widened = Parity("noisy", _differences([0.0] * 9 + [1.0]), allow([_differences([0.0] * 9 + [0.5])], 200))
    report = ParityReport("test", (Parity("structured", _differences([0.01])), widened))
    assert report.passed
    assert "allowed, by the model's own rounding: box 1.5 px" in str(report)
    failed = ParityReport("test", (Parity("structured", _differences([0.3])),))
    with pytest.raises(
        ExportError, match=r"x.onnx disagrees .* box 3.0e-01 px .* allowed, fixed tolerance: box 0.1 px"
    ):
        failed.require("x.onnx")


def _differences(boxes: list[float], missing: int = 0) -> Differences:
    return Differences(np.array(boxes, np.float32), np.zeros(len(boxes), np.float32), missing)


def _agreement(precision: str, matched: int, spurious: int = 0) -> Agreement:
    """Of 100 expected detections."""
    tolerances, nothing = LIMITS[precision].tolerances, np.empty(0, np.float32)
    return Agreement(tolerances, 100, (0,) * (len(tolerances) - 1) + (matched,), spurious, nothing, nothing)


@pytest.mark.parametrize(("precision", "enough"), [("fp16", 98), ("int8", 90), ("engine", 97), ("repeated", 98)])
def test_enough_detections_must_be_matched_within_the_widest_tolerance(precision: str, enough: int) -> None:
    assert _agreement(precision, enough).keeps_to(LIMITS[precision])
    assert not _agreement(precision, enough - 1).keeps_to(LIMITS[precision])


def test_engines_may_have_few_extra_detections_and_files_any_number() -> None:
    assert _agreement("engine", 100, spurious=3).keeps_to(LIMITS["engine"])
    assert not _agreement("engine", 100, spurious=4).keeps_to(LIMITS["engine"])
    assert _agreement("fp16", 100, spurious=50).keeps_to(LIMITS["fp16"])


@pytest.mark.parametrize(
    ("expected", "lost", "passes"),
    [
        (80, 2, True),
        (80, 3, True),
        (80, 4, False),
        (20, 1, True),
        (20, 2, False),
        (10, 1, False),
        (400, 8, True),
        (400, 9, False),
    ],
)
def test_where_few_are_compared_a_few_wrong_ones_refuse_no_engine(expected: int, lost: int, passes: bool) -> None:
    """Four synthetic images have 80 detections: of a share of 98 %, two faint ones would be too many."""
    limits, nothing = LIMITS["engine"], np.empty(0, np.float32)
    for matched, spurious in ((expected - lost, 0), (expected, lost), (expected - lost, lost)):
        agreement = Agreement(limits.tolerances, expected, (matched, matched), spurious, nothing, nothing)
        assert agreement.keeps_to(limits) is passes


def test_a_file_of_lower_precision_that_loses_detections_is_refused() -> None:
    good = ReducedPrecisionReport("test", "int8", 4, {"test": _agreement("int8", 90, spurious=1)})
    assert good.passed
    assert str(good).endswith("0.9000 of 100 detections within 2 px, 0.05\n  1 extra detection")
    good_and_bad = {"one": _agreement("fp16", 99), "other": _agreement("fp16", 97)}
    bad = ReducedPrecisionReport("one and other", "fp16", 4, good_and_bad)
    assert bad.agreement is good_and_bad["other"]
    assert not bad.passed
    expected = r"x.onnx loses .* and was not written: only 0.970 .* in other .*0.98.* `keep_fp32`.*`calibration`"
    with pytest.raises(ExportError, match=expected):
        bad.require("x.onnx")
