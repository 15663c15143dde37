"""The shipped checkpoint on BCCD's validation images: what each precision may cost, on the exact files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import ROOT, shared_folder

pytest.importorskip("onnx_ir")
pytest.importorskip("torch")

from rtdetr_bench.accuracy import open_any
from rtdetr_deploy import Detections
from rtdetr_deploy.artifacts.metadata import METADATA_KEY
from rtdetr_deploy.evaluate.coco import average_precision, read_annotations
from rtdetr_deploy.runtimes.onnx_file import read_graph
from rtdetr_export import ExportOptions, export_onnx
from rtdetr_export.graph import POSTPROCESS
from rtdetr_export.pipeline import trace_checkpoint
from rtdetr_export.precision.fp16 import to_fp16
from rtdetr_export.precision.int8 import Scheme
from rtdetr_export.precision.sensitivity import QuantizationPlan, TradeOff
from rtdetr_export.simplify import serialize
from rtdetr_export.trt.lint import lint_file
from rtdetr_export.verify.agreement import Agreement, compare
from rtdetr_export.verify.reduced_precision import ReducedPrecisionReport
from rtdetr_export.verify.tolerances import TOLERANCES
from rtdetr_train.data.smears import write_smears

CELLS = ROOT / "demo" / "blood-cells-r18.pth"
Found = tuple[list[Detections], float]


def _detect(file: Path) -> Found:
    """Return all detections and the AP."""
    data = shared_folder("data") / "bccd"
    with open_any(file) as predictor:
        truth = read_annotations(data / "annotations" / "val.json", data / "val", predictor.class_names)
        found = predictor.detect_batch([image for _, image in truth.images], threshold=0.0)
        return found, average_precision(found, truth, predictor.class_names).ap


@pytest.fixture(scope="module")
def reference() -> Found:
    """The FP32 torch model."""
    shared_folder("data")
    return _detect(CELLS)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4, "dynamic"])
def test_half_keeps_every_detection(batch: Any, reference: Found, tmp_path: Path) -> None:
    """AP drops by 0.001 at most, and 99.9 % of the detections stay within 0.5 px and 0.01, at every kind of batch."""
    path = export_onnx(ExportOptions(CELLS, tmp_path / "half.onnx", precision="fp16", batch=batch)).path
    found, ap = _detect(path)
    agreement = compare(reference[0], found)
    assert agreement.expected > 800
    assert agreement.match_rate() >= 0.999
    assert agreement.spurious <= 1
    assert ap >= reference[1] - 0.001


@pytest.mark.slow
def test_half_everywhere_loses_detections(reference: Found, tmp_path: Path) -> None:
    """What the placement is for: the same comparison without it fails."""
    traced = trace_checkpoint(ExportOptions(CELLS))
    to_fp16(traced.graph, keep=traced.placement.only(POSTPROCESS.name).kept)
    content = serialize(traced.graph, {METADATA_KEY: traced.info.to_json()}, "0")
    (tmp_path / "naive.onnx").write_bytes(content)
    assert compare(reference[0], _detect(tmp_path / "naive.onnx")[0]).match_rate() < 0.999


@pytest.mark.slow
def test_int8_keeps_detections(reference: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AP drops by 0.003 at most, 95 % of the detections stay within 2 px and 0.05; most of the work is in INT8."""
    monkeypatch.setattr("rtdetr_export.precision.sensitivity.MAX_IMAGES", 8)  # of 16, to save time
    calibration = shared_folder("data") / "bccd" / "train"
    options = ExportOptions(CELLS, tmp_path / "int8.onnx", precision="int8", calibration=calibration)
    result = export_onnx(options)
    found, ap = _detect(result.path)
    agreement = compare(reference[0], found)
    assert agreement.match_rate(-1) >= 0.95
    assert ap >= reference[1] - 0.003
    assert result.quantization is not None
    assert result.quantization.macs > 0.8
    assert {finding.rule for finding in lint_file(result.path)} >= {"zero-point"}
    assert result.path.stat().st_size < 0.4 * 79.8e6


def test_int8_with_an_fp16_rest_passes_its_own_verification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's QDQ optimizer breaks such files unless it is switched off, in verification and Predictor alike."""
    write_smears(tmp_path, 2)
    monkeypatch.setattr("rtdetr_export.precision.reduce.choose_blocks", _backbone)
    options = ExportOptions(
        CELLS,
        tmp_path / "int8.onnx",
        precision="int8",
        non_int8_precision="fp16",
        calibration=tmp_path,
        layers=1,
        size=(128, 128),
    )
    result = export_onnx(options)
    assert isinstance(result.report, ReducedPrecisionReport)
    assert result.report.agreement.match_rate(-1) >= 0.9
    assert read_graph(result.path).dequantizes_to_half()


def _backbone(model: Any, scheme: Scheme, *_: Any) -> QuantizationPlan:
    blocks = tuple(dict.fromkeys(node.block for node in scheme.nodes if node.block.startswith("backbone.res_layers")))
    nothing = Agreement(TOLERANCES, 0, (0,) * len(TOLERANCES), 0, np.zeros(0, np.float32), np.zeros(0, np.float32))
    return QuantizationPlan((TradeOff(blocks, 1.0, nothing),), len(blocks))
