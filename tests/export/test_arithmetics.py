"""BF16 in the export: which nodes stay in FP32, what is compared, and what a file says about it."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from rtdetr_deploy.artifacts.bf16 import MIN_BF16_MATCH_RATE, Bf16Check
from rtdetr_deploy.artifacts.metadata import METADATA_KEY, ArtifactInfo, read_metadata
from rtdetr_deploy.errors import ArtifactError, ExportError
from rtdetr_deploy.model.fp32_scope import Fp32Scope
from rtdetr_export.module_map import ModuleMap
from rtdetr_export.precision.bf16 import find_fp32_nodes, shorten
from rtdetr_export.verify.agreement import Agreement
from rtdetr_export.verify.arithmetics import ArithmeticsReport
from rtdetr_export.verify.tolerances import TOLERANCES

INFO = ArtifactInfo(
    class_names=("cell",),
    height=64,
    width=64,
    batch=1,
    variant="r18",
    layers=3,
    queries=10,
    max_detections=10,
    precision="fp32",
    sampler="gather",
    outputs="detections",
    raw_input=False,
    opset=17,
    source="r18.pth",
    source_digest="0" * 64,
    verified=True,
    version="0.2.0",
)


def agreement(matched: int) -> Agreement:
    none = np.zeros(0, np.float32)
    return Agreement(TOLERANCES, 1000, (900, 950, matched), 0, none, none)


def test_names_are_as_short_as_what_is_not_kept_allows() -> None:
    kept = ("/model/box/Add", "/model/box/layers.2/MatMul", "/model/box/layers.2/Add", "/post/TopK")
    assert shorten(kept, ("/model/box/Mul", "/model/Conv")) == ("/model/box/Add", "/model/box/layers.2/", "/post/")


def test_a_scope_of_bf16_that_matches_nothing_is_refused() -> None:
    node = ir.node("Relu", [ir.Value(name="x")], name="/model/act/Relu")
    graph = ir.Model(ir.Graph([], [], nodes=[node]), ir_version=8)
    deployed = SimpleNamespace(bf16_scopes=(Fp32Scope("heads", "model.heads", "a reason"),))
    with pytest.raises(ExportError, match=r"no node is in the scope 'heads' \(model\.heads\), which BF16"):
        find_fp32_nodes(graph, deployed, ModuleMap({"": "", "/model": "model", "/model/act": "model.act"}))  # type: ignore[arg-type]


def test_metadata_keep_what_stays_in_fp32_and_what_was_found() -> None:
    info = replace(INFO, fp32_nodes=("/post/",), bf16=Bf16Check(0.9991, 32))
    assert read_metadata({METADATA_KEY: info.to_json()}, "m.onnx") == info
    assert info.arithmetics == ("fp32", "bf16")


@pytest.mark.parametrize("bf16", [None, Bf16Check(MIN_BF16_MATCH_RATE - 0.001, 4)])
def test_bf16_is_not_allowed_unless_it_was_found_to_keep_detections(bf16: Bf16Check | None) -> None:
    assert replace(INFO, bf16=bf16).arithmetics == ("fp32",)


def test_files_of_before_have_nothing_to_say_about_bf16() -> None:
    stored = json.loads(INFO.to_json())
    del stored["bf16"], stored["fp32_nodes"]
    found = read_metadata({METADATA_KEY: json.dumps(stored)}, "m.onnx")
    assert found is not None
    assert (found.bf16, found.fp32_nodes) == (None, ())


@pytest.mark.parametrize(("rate", "images"), [(1.5, 4), (0.5, 0)])
def test_a_comparison_that_is_none_is_refused(rate: float, images: int) -> None:
    with pytest.raises(ArtifactError, match="is not a comparison"):
        Bf16Check(rate, images)


def test_a_comparison_of_another_kind_is_refused() -> None:
    with pytest.raises(ArtifactError, match="`images` is 'four', expected int"):
        Bf16Check(1.0, "four")  # type: ignore[arg-type]


def test_the_report_says_whether_bf16_is_allowed() -> None:
    assert "allowed; of 1000 detections on 32 images" in str(ArithmeticsReport(32, agreement(999)))
    assert "not allowed" in str(ArithmeticsReport(32, agreement(990)))
    assert ArithmeticsReport(32, agreement(999)).check == Bf16Check(0.999, 32)


def test_the_report_says_why_nothing_is_known() -> None:
    report = ArithmeticsReport(0, None, "this processor has no BF16")
    assert report.check is None
    assert "not compared, this processor has no BF16" in str(report)
