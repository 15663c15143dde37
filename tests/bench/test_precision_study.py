"""Rows of the precision study: what a file is made of, files of other converters, and those that can't be run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conftest import slow_except

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from onnx import numpy_helper, parser  # noqa: E402

from rtdetr_bench.options import EvaluationSet, PrecisionStudyOptions  # noqa: E402
from rtdetr_bench.studies import precision as study  # noqa: E402
from rtdetr_bench.studies.graph_counts import GraphCounts, count_graph  # noqa: E402
from rtdetr_deploy import ArtifactError, OptionError  # noqa: E402
from rtdetr_export import export_onnx  # noqa: E402
from rtdetr_export.precision import reduce  # noqa: E402
from rtdetr_export.precision.sensitivity import QuantizationPlan, TradeOff  # noqa: E402
from rtdetr_export.verify.agreement import Agreement  # noqa: E402
from rtdetr_export.verify.tolerances import TOLERANCES  # noqa: E402

MIXED = """
    <ir_version: 9, opset_import: ["" : 17]>
    g (float[1,4,8,8] x) => (float[1,4,8,8] y) <float s = {0.1}, int8 z = {0}> {
        q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
        v = DequantizeLinear<axis=0>(w, t, u)
        c = Conv(d, v)  a = Add(c, d)  b = Add(c, x)
        m = Add(a, b)  h = Cast<to=10>(m)  r = Relu(h)  f = Cast<to=1>(r)  n = Cast<to=7>(f)
        k = Cast<to=1>(n)  y = Add(k, f)
    }
"""


def test_nodes_casts_and_additions_are_counted(tmp_path: Path) -> None:
    model = parser.parse_model(MIXED)
    stored: dict[str, NDArray[Any]] = {
        "w": np.ones((4, 4, 1, 1), np.int8), "t": np.ones(4, np.float32), "u": np.zeros(4, np.int8),
    }  # fmt: skip
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in stored.items())
    onnx.save(model, tmp_path / "mixed.onnx")
    moved = 2 * 256 * (4 + 2) / 1e6  # two Casts between float types, each of 256 values
    assert count_graph(tmp_path / "mixed.onnx") == GraphCounts(
        fp32=5, fp16=1, int8=1, casts=2, cast_megabytes=moved, fused_additions=1, additions=2
    )


def test_casts_are_those_that_the_export_reports(small_options: Any) -> None:
    result = export_onnx(small_options("counted.onnx", layers=1, precision="fp16", verify=False))
    counts = count_graph(result.path)
    assert result.fp16 is not None
    assert counts.casts == result.fp16.casts
    assert counts.cast_megabytes > 0.1
    assert counts.int8 == counts.additions == 0


@pytest.fixture
def data(tmp_path: Path) -> EvaluationSet:
    """One black image, and a json that says that a red cell is on it."""
    Image.new("RGB", (160, 128)).save(tmp_path / "a.png")
    names = ["red", "white", "platelet"]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 160, "height": 128}],
        "categories": [{"id": index, "name": name} for index, name in enumerate(names)],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 0, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}],
    }
    (tmp_path / "val.json").write_text(json.dumps(content))
    return EvaluationSet(tmp_path / "val.json", tmp_path)


def test_a_third_party_file_that_is_refused_has_the_reason_in_its_row(
    data: EvaluationSet, small_onnx: Path, tmp_path: Path
) -> None:
    expected, ap = study._detect(small_onnx, data)
    row = study._measure(study._File("theirs", small_onnx, third_party=True), expected, data)
    assert row.ap == ap
    assert row.agreement is not None
    assert row.agreement.match_rate() == 1.0
    assert row.counts.fp32 > 100
    model = onnx.load(str(small_onnx))
    wrong = onnx.helper.make_node("Cast", ["scores"], ["nowhere"], to=onnx.TensorProto.FLOAT16, name="wrong")
    model.graph.node.extend([wrong, onnx.helper.make_node("Add", ["scores", "nowhere"], ["sum"], name="mixed_types")])
    broken = tmp_path / "theirs.onnx"
    onnx.save(model, broken)
    row = study._measure(study._File("theirs", broken, third_party=True), expected, data)
    assert (row.ap, row.agreement) == (None, None)
    assert row.refused is not None
    assert "theirs.onnx" in row.refused
    assert f"refused: {row.refused}" in study.format_precision(row)
    assert row.to_json()["refused"] == row.refused
    with pytest.raises(ArtifactError, match="theirs.onnx"):
        study._measure(study._File("ours", broken), expected, data)


@pytest.mark.parametrize("target", slow_except(["cpu", "tensorrt"], "cpu"))
def test_int8_is_measured_on_the_graph_that_the_export_writes(
    target: Any, data: EvaluationSet, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    nothing = Agreement(TOLERANCES, 0, (0, 0, 0), 0, np.zeros(0, np.float32), np.zeros(0, np.float32))

    def choose_all(_: Any, scheme: Any, *__: Any, **___: Any) -> QuantizationPlan:
        """Choose every block without a trial: trials take the most time, and are the same ones for the same nodes."""
        seen.append(scheme.nodes)
        blocks = tuple(dict.fromkeys(node.block for node in scheme.nodes))
        return QuantizationPlan((TradeOff(blocks, 1.0, nothing),), len(blocks))

    for module in (study, reduce):
        monkeypatch.setattr(module, "choose_blocks", choose_all)
    options = PrecisionStudyOptions(small_checkpoint, data, calibration=data.images, target=target)
    export = replace(study._int8_export(options, tmp_path / "trial.onnx"), size=(128, 160))
    (measured,) = study._quantized(export, tmp_path / "trial.onnx")
    chosen = onnx.load(str(measured.path)).graph
    written = onnx.load(str(export_onnx(replace(export, output=tmp_path / "written.onnx", verify=False)).path)).graph
    assert seen[0] == seen[1]
    assert {node.block for node in seen[0]} > {"encoder.encoder.0"}
    assert [node.SerializeToString() for node in chosen.node] == [node.SerializeToString() for node in written.node]
    assert {i.name for i in chosen.initializer} == {i.name for i in written.initializer}
    names = [i.name for i in (*written.input, *written.initializer)] + [o for node in written.node for o in node.output]
    assert len(names) == len(set(names))
    if target == "cpu":  # with exact sums ONNX Runtime derives names from those of weights, and refuses shared ones
        settings = onnxruntime.SessionOptions()
        settings.add_session_config_entry("session.x64quantprecision", "1")
        onnxruntime.InferenceSession(str(tmp_path / "written.onnx"), settings, providers=["CPUExecutionProvider"])


def test_a_target_is_one_that_there_is_and_needs_calibration_images(data: EvaluationSet) -> None:
    with pytest.raises(OptionError, match="`target` is 'gpu', expected one of cpu, tensorrt"):
        PrecisionStudyOptions(Path("w.pth"), data, calibration=data.images, target="gpu")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match='`target="tensorrt"` is for INT8; add `calibration`'):
        PrecisionStudyOptions(Path("w.pth"), data, target="tensorrt")
