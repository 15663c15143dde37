"""Every variant x one contract: built, loaded, recognised, exported with parity, run by the Predictor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from rtdetr_deploy import ArtifactInfo, Predictor  # noqa: E402
from rtdetr_deploy.model import RTDETR, VARIANTS  # noqa: E402
from rtdetr_deploy.model.random_weights import fill_randomly  # noqa: E402
from rtdetr_deploy.model.variants import find_variant  # noqa: E402
from rtdetr_export import ExportOptions, export_onnx  # noqa: E402
from rtdetr_export.pipeline import TracedCheckpoint, trace_checkpoint  # noqa: E402
from rtdetr_export.precision.int8 import find_quantizable  # noqa: E402
from rtdetr_export.verify.parity import ParityReport  # noqa: E402

HEIGHT, WIDTH = 64, 96
QUERIES = 8 * 12 + 4 * 6 + 2 * 3
"""Tokens of so small an image: all of them are selected."""


def _write_weights(name: str, folder: Path) -> Path:
    variant = find_variant(name)
    model = RTDETR(replace(variant, classes=3), variant.max_layers)
    fill_randomly(model, seed=1)
    path = folder / f"{name}.pth"
    torch.save({"model": model.half().state_dict()}, path)
    return path


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("hgnetv2-l", 1),
        *(
            pytest.param(name, layers, marks=pytest.mark.slow)
            for name, layers in [
                *((name, 1) for name in VARIANTS if name != "hgnetv2-l"),
                ("r50-dsp", 1),
                *((name, layers) for name in ("r50-dsp", "hgnetv2-h") for layers in (4, 6)),
            ]
        ),
    ],
)
def test_every_variant_is_loaded_exported_and_run(
    name: str, layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[TracedCheckpoint] = []

    def record(*arguments: Any) -> TracedCheckpoint:
        traced.append(trace_checkpoint(*arguments))
        return traced[-1]

    monkeypatch.setattr("rtdetr_export.pipeline.trace_checkpoint", record)
    weights = _write_weights(name, tmp_path)
    dsp = name if name.endswith("-dsp") else None
    result = export_onnx(ExportOptions(weights, layers=layers, size=(HEIGHT, WIDTH), variant=dsp))
    assert isinstance(result.report, ParityReport)
    assert result.report.passed
    placement = traced[0].placement  # every scope and block has a node, or this raises
    assert find_quantizable(traced[0].graph, placement)
    with Predictor(result.path, 0.0) as predictor:
        assert isinstance(predictor.info, ArtifactInfo)
        assert (predictor.info.variant, predictor.info.layers, predictor.info.queries) == (name, layers, QUERIES)
        found = predictor.detect(np.full((50, 70, 3), 128, np.uint8))
    assert len(found) == 300
    assert set(found.names) == {"class 0", "class 1", "class 2"}
