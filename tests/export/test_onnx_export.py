"""Exported graphs: the contract, parity, determinism, and nothing left behind on failure."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")

from rtdetr_deploy import ArtifactInfo, CheckpointError, ExportError, OptionError, OutputError  # noqa: E402
from rtdetr_deploy.artifacts.metadata import METADATA_KEY, read_metadata  # noqa: E402
from rtdetr_export import Step, export_onnx  # noqa: E402

Operators = dict[str, int]


def _load(path: Path) -> tuple[Any, Operators]:
    model = onnx.load(str(path))
    operators: Operators = {}
    for node in model.graph.node:
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
    return model, operators


def _signature(values: Any) -> dict[str, list[Any]]:
    return {
        value.name: [
            onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type),
            *(dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim),
        ]
        for value in values
    }


def test_graph_contract(small_onnx: Path) -> None:
    model, operators = _load(small_onnx)
    assert _signature(model.graph.input) == {"images": ["FLOAT", 1, 3, 128, 160]}
    assert _signature(model.graph.output) == {
        "labels": ["INT32", 1, 300],
        "boxes": ["FLOAT", 1, 300, 4],
        "scores": ["FLOAT", 1, 300],
    }
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert "GridSample" not in operators
    assert not {"Constant", "Identity", "BatchNormalization", "If", "Loop", "Shape", "ReduceMean", "Range"} & set(
        operators
    )
    # one in AIFI's two norms, one in the query selection, three in each of the two decoder layers
    assert operators["LayerNormalization"] == 2 + 1 + 3 * 2
    assert operators["TopK"] == 2
    assert not [node for node in model.graph.node if node.domain]


def test_no_constant_is_infinite_and_anchors_and_embedding_are_constants(small_onnx: Path) -> None:
    model, _ = _load(small_onnx)
    shapes = []
    for initializer in model.graph.initializer:
        array = onnx.numpy_helper.to_array(initializer)
        shapes.append(array.shape)
        if array.dtype.kind == "f":
            assert np.isfinite(array).all()
            assert np.abs(array).max(initial=0) < 65504
    tokens = 16 * 20 + 8 * 10 + 4 * 5
    assert (tokens, 4) in shapes
    assert (tokens, 1) not in shapes  # which anchors are valid: all of them at this size
    assert (1, 4 * 5, 64) in shapes


def test_box_head_runs_on_the_selected_queries_only(small_onnx: Path) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(str(small_onnx)))
    shapes = _signature(model.graph.value_info)
    heads = [shape for shape in shapes.values() if len(shape) == 4 and shape[-1] == 4]
    assert heads
    assert {shape[2] for shape in heads} == {300}


def test_dynamic_batch_reaches_every_output(dynamic_onnx: Path) -> None:
    model, _ = _load(dynamic_onnx)
    assert _signature(model.graph.input) == {"images": ["UINT8", "batch", 128, 160, 3]}
    assert {shape[1] for shape in _signature(model.graph.output).values()} == {"batch"}


def test_metadata_tells_where_the_file_comes_from(small_onnx: Path, small_checkpoint: Path) -> None:
    model, _ = _load(small_onnx)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert set(metadata) == {METADATA_KEY}
    info = read_metadata(metadata, "small.onnx")
    assert isinstance(info, ArtifactInfo)
    assert info.source_digest == hashlib.sha256(small_checkpoint.read_bytes()).hexdigest()
    assert (info.source, info.precision, info.sampler, info.opset) == ("cells.pth", "fp32", "gather", 17)
    assert (info.queries, info.max_detections, info.class_names) == (300, 300, ("red", "white", "platelet"))
    assert str(small_checkpoint.parent).encode() not in small_onnx.read_bytes()


def test_same_input_gives_the_same_bytes(small_options: Any, small_onnx: Path) -> None:
    again = export_onnx(small_options("again.onnx")).path
    assert again.read_bytes() == small_onnx.read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": "grid", "batch": "dynamic"},
        {"opset": 18, "queries": 50, "max_detections": 20, "layers": 1},
        pytest.param({"opset": 19, "raw_output": True, "batch": 3}, marks=pytest.mark.slow),
        {"raw_input": True, "layers": 3, "size": (128, 64)},
        pytest.param({"size": (64, 64), "batch": "dynamic"}, marks=pytest.mark.slow),
        {"variant": "r18-dsp"},
    ],
    ids=str,
)
def test_every_option_passes_its_parity_report(
    changes: dict[str, Any], small_options: Any, r18_checkpoint: Path
) -> None:
    if "variant" in changes:  # small_options is for no variant that has a name
        changes = {**changes, "weights": r18_checkpoint}
    steps: list[Step] = []
    result = export_onnx(small_options("option.onnx", **changes), steps.append)
    assert result.report is not None
    assert result.report.passed
    assert "maximum difference: box" in str(result.report)
    assert ("mixed, batch 3" in str(result.report)) == (changes.get("batch") == "dynamic")
    assert sum(step.seconds is not None for step in steps) == 7
    model, operators = _load(result.path)
    assert model.opset_import[0].version == changes.get("opset", 17)
    assert ("GridSample" in operators) == (changes.get("sampler") == "grid")
    rows = _signature(model.graph.output)
    expected = min(
        changes.get("queries", 300), sum(result.info.height * result.info.width // s**2 for s in (8, 16, 32))
    )
    if changes.get("raw_output"):
        assert rows["logits"] == ["FLOAT", 3, expected, 3]
    else:
        assert rows["scores"][2] == min(changes.get("max_detections", 300), expected * 3) == result.info.max_detections
    assert result.info.sampler == ("discrete" if "variant" in changes else changes.get("sampler", "gather"))


def test_unverified_files_say_so(small_options: Any) -> None:
    result = export_onnx(small_options("quick.onnx", verify=False))
    assert result.report is None
    assert not result.info.verified


def test_disagreement_leaves_no_file(small_options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from rtdetr_deploy.model.layers.deformable_attention import SAMPLERS

    monkeypatch.setitem(SAMPLERS, "gather", SAMPLERS["discrete"])
    options = small_options("wrong.onnx")
    options.output.write_bytes(b"an older file")
    with pytest.raises(
        ExportError, match=r"wrong.onnx disagrees with the torch model and was not written: structured, batch 1"
    ):
        export_onnx(options)
    assert options.output.read_bytes() == b"an older file"
    assert not [path for path in options.output.parent.iterdir() if ".part" in path.name]


def test_a_checkpoint_with_nan_is_refused(r18_checkpoint: Path, tmp_path: Path, small_options: Any) -> None:
    import torch

    content = torch.load(r18_checkpoint, weights_only=True)
    content["ema"]["module"]["decoder.enc_score_head.bias"][0] = float("nan")
    weights = tmp_path / "nan.pth"
    torch.save(content, weights)
    with pytest.raises(CheckpointError, match="holds NaN or infinity in decoder.enc_score_head.bias"):
        export_onnx(small_options("nan.onnx", weights=weights))


def test_infinite_constants_are_refused(small_options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from rtdetr_deploy.model import query_selection

    query_selection.make_anchors.cache_clear()
    monkeypatch.setattr(query_selection, "INVALID_ANCHOR_LOGIT", float("inf"))
    with pytest.raises(ExportError, match="constant .* of the graph is not finite"):
        export_onnx(small_options("inf.onnx", size=(128, 1600)))
    query_selection.make_anchors.cache_clear()


def test_images_too_large_for_the_memory_are_named(small_options: Any) -> None:
    with pytest.raises(ExportError, match="not enough memory for batch 1000000000 of 128x160 images"):
        export_onnx(small_options("huge.onnx", batch=1_000_000_000))


def test_discrete_models_refuse_a_bilinear_sampler(small_options: Any, r18_checkpoint: Path) -> None:
    with pytest.raises(OptionError, match="r18-dsp was trained with discrete sampling; leave `sampler` out"):
        export_onnx(small_options("no.onnx", weights=r18_checkpoint, variant="r18-dsp", sampler="grid"))


def test_an_unwritable_output_is_named(small_options: Any, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(OutputError, match="can't write .*model.onnx"):
        export_onnx(small_options("x.onnx", output=blocked / "model.onnx"))


def test_a_disk_that_fills_up_leaves_nothing(
    small_options: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import errno

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:1000])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left on device"):
        export_onnx(small_options("x.onnx", output=tmp_path / "model.onnx"))
    assert list(tmp_path.iterdir()) == []
