"""Graphs as engines fuse them: the sampler's operators, int32 indices, one batch axis."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

import onnx_ir as ir  # noqa: E402
from torch import nn  # noqa: E402

from rtdetr_deploy.model.layers.deformable_attention import CellSampler  # noqa: E402
from rtdetr_deploy.runtimes import open_runtime  # noqa: E402
from rtdetr_export.batch_axis import unify_batch_axis  # noqa: E402
from rtdetr_export.graph import DeployedModel  # noqa: E402
from rtdetr_export.simplify import simplify  # noqa: E402

POINTS, HEADS = 12, 8
INTEGERS = frozenset({ir.DataType.INT32, ir.DataType.INT64})


def _open(path: Path) -> ir.Model:
    """Return a file with all shapes and types inferred."""
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(onnx.load(str(path)), strict_mode=True))


def _sampler(model: ir.Model, layer: int) -> list[ir.Node]:
    part = f"/model/decoder/layers.{layer}/cross_attn/"
    return [node for node in model.graph if part in str(node.name) or part in str(node.outputs[0].name)]


@pytest.mark.parametrize("changes", [{}, {"batch": None}, {"precision": "fp16"}])
def test_the_sampler_is_one_gather_and_element_wise_operations(changes: dict[str, Any], small_export: Any) -> None:
    model = _open(small_export(f"sampler-{'-'.join(map(str, changes.values()))}.onnx", verify=False, **changes))
    nodes = _sampler(model, 0)
    operators = Counter(node.op_type for node in nodes)
    assert operators["Gather"] == 1, "constant indices are Slices, and corners come by broadcasting"
    assert not {"Concat", "GridSample", "Expand", "Range", "Shape"} & set(operators)
    gather = next(node for node in nodes if node.op_type == "Gather")
    kinds = [value.dtype for value in gather.inputs if value is not None]
    half = changes.get("precision") == "fp16"
    assert kinds == [ir.DataType.FLOAT16 if half else ir.DataType.FLOAT, ir.DataType.INT32]


def test_half_casts_no_table_of_values(small_export: Any) -> None:
    """Values stay in half from the projection to the weighted sum."""
    model = _open(small_export("half-1.onnx", precision="fp16"))
    tokens = 128 // 8 * 160 // 8 + 128 // 16 * 160 // 16 + 128 // 32 * 160 // 32
    casts = [node for node in model.graph if node.op_type == "Cast"]
    long = [node for node in casts if node.outputs[0].shape is not None and tokens in node.outputs[0].shape]
    assert [node.name for node in long if "cross_attn" in str(node.name)] == []
    per_layer = [sum(f"/decoder/layers.{layer}/" in str(node.name) for node in casts) for layer in range(2)]
    assert per_layer == [10, 10]  # three norms in and out, offsets, weights in and out, cells as integers


@pytest.mark.parametrize("changes", [{}, {"batch": None}, {"batch": 3}])
def test_indices_are_int32(changes: dict[str, Any], small_export: Any) -> None:
    """What TopK returns is INT64 by definition, and shapes are; nothing else is computed in it."""
    model = _open(small_export(f"indices-{'-'.join(map(str, changes.values()))}.onnx", verify=False, **changes))
    wide = {"TopK", "Shape", "Gather", "Range"}
    for node in model.graph:
        for value in node.outputs:
            assert value.dtype != ir.DataType.INT64 or node.op_type in wide, node.name
    detours = [
        node.name
        for node in model.graph
        if node.op_type == "Cast"
        and node.inputs[0] is not None
        and (first := node.inputs[0].producer()) is not None
        and first.op_type == "Cast"
        and {node.outputs[0].dtype, node.inputs[0].dtype} <= INTEGERS
    ]
    assert detours == []


def test_one_image_has_no_batch_arithmetic(small_onnx: Path) -> None:
    added = [node for node in _open(small_onnx).graph if node.op_type == "Add" and node.inputs[1] is not None]
    constants = [node.inputs[1].const_value for node in added if node.inputs[1] is not None]
    integers = [tensor.numpy() for tensor in constants if tensor is not None and tensor.dtype in INTEGERS]
    assert integers
    assert all(array.any() for array in integers)


def test_the_batch_is_asked_for_once_and_known_everywhere(dynamic_onnx: Path) -> None:
    model = _open(dynamic_onnx)
    operators = Counter(node.op_type for node in model.graph)
    assert (operators["Shape"], operators["Range"]) == (1, 1)
    shape = next(node for node in model.graph if node.op_type == "Shape")
    assert shape.inputs[0] is model.graph.inputs[0]
    unknown = [
        (node.name, str(value.shape))
        for node in model.graph
        for value in node.outputs
        if value.shape is not None and any(not isinstance(n, int) and str(n) != "batch" for n in value.shape)
    ]
    # Only the tables that rows are gathered from have another axis: rows of all images, one after the other.
    assert len(unknown) == 4
    assert all("Reshape" in str(name) for name, _ in unknown), unknown


def test_sums_of_either_form_are_equal() -> None:
    generator = torch.Generator().manual_seed(3)
    value = torch.randn(2, 20, HEADS, 4, generator=generator)
    rows = torch.randint(0, 20 * HEADS, (2, 5, HEADS, 6), generator=generator, dtype=torch.int32)
    mix = torch.rand(2, 5, HEADS, 6, generator=generator)

    class Fixed(nn.Module):
        def forward(self, *_: Any) -> Any:
            return rows, mix

    sampler = CellSampler(Fixed())
    results = []
    for fuses in (False, True):
        sampler.fuses = fuses
        results.append(sampler(value, torch.zeros(1), torch.zeros(1), []))
    assert results[0].shape == (2, 5, HEADS * 4)
    assert (results[0] - results[1]).abs().max() <= 1e-6
    flat = value.reshape(2, -1, 4)
    expected = (flat[torch.arange(2)[:, None, None, None], rows.long()] * mix[..., None]).sum(3).reshape(2, 5, -1)
    assert (results[0] - expected).abs().max() <= 1e-6


class _Flat(nn.Module):
    """Rows that are regrouped across images: their number is not the batch."""

    def forward(self, images: Any) -> tuple[Any, Any]:
        grouped = images.reshape(-1, 3, 4)  # two rows of each image
        return grouped * torch.arange(grouped.shape[0]).reshape(-1, 1, 1), images.reshape(-1, 4, 6) + 1.0


def test_an_axis_that_is_not_the_batch_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "flat.onnx"
    torch.onnx.export(
        DeployedModel(_Flat()),
        (torch.zeros(1, 2, 12),),
        path,
        dynamo=False,
        opset_version=17,
        input_names=["images"],
        output_names=["grouped", "rows"],
        dynamic_axes={name: {0: "batch"} for name in ("images", "grouped", "rows")},
    )
    model = simplify(path.read_bytes())
    targets = [
        node.inputs[1].const_value.numpy()[0]
        for node in model.graph
        if node.op_type == "Reshape" and node.inputs[1] is not None and node.inputs[1].const_value is not None
    ]
    assert {-1, 0} == {min(size, 0) for size in targets}, "the second one keeps the batch, the first does not"
    ir.save(model, path)
    images = np.random.default_rng(0).random((3, 2, 12), np.float32)
    runtime = open_runtime(path)
    found = runtime.run({"images": images})
    runtime.close()
    expected = images.reshape(-1, 3, 4) * np.arange(6, dtype=np.float32)[:, None, None]
    assert np.allclose(found["grouped"], expected)
    assert np.allclose(found["rows"], images.reshape(-1, 4, 6) + 1.0)


def test_a_fixed_batch_is_left_as_it_is(small_onnx: Path) -> None:
    model = ir.load(small_onnx)
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    unify_batch_axis(model)
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before
