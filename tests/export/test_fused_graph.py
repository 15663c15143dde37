"""Graphs as engines fuse them: the sampler's operators, int32 indices, one batch axis."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
reference = pytest.importorskip("onnx.reference")
torch = pytest.importorskip("torch")

import onnx_ir as ir  # noqa: E402
from torch import nn  # noqa: E402

from rtdetr_deploy.model.layers.deformable_attention import CellSampler  # noqa: E402
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


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_fp32_engines_multiply_no_row_by_a_matrix(target: str, small_export: Any) -> None:
    """On a GPU the sum over samples belongs to the gather's kernel; on a CPU a product is faster."""
    name = f"fp32-{target}.onnx"
    model = _open(small_export(name, target=target, raw_input=False, verify=False))
    products = [node.name for node in model.graph if node.op_type == "MatMul" and "/sampler/" in str(node.name)]
    assert len(products) == (0 if target == "tensorrt" else 2)


def test_cpus_get_a_form_of_their_own_and_tensorrt_keeps_its_graph(small_export: Any) -> None:
    cpu, engine = (
        _open(small_export(f"form-{target}.onnx", target=target, raw_input=False, verify=False))
        for target in ("cpu", "tensorrt")
    )
    names = [{str(node.name) for node in model.graph} for model in (cpu, engine)]
    for part, count in {"/decoder/input_proj.": (0, 3), "/value_proj/": (0, 4), "/decoder/values/": (3, 0)}.items():
        matched = tuple(sum(part in name and name.endswith(("Conv", "MatMul", "Add")) for name in own) for own in names)
        assert matched == count, part
    shuffled = [
        sum(node.op_type == "Transpose" and "/cells/" in str(node.name) for node in m.graph) for m in (cpu, engine)
    ]
    assert shuffled == [0, 2]
    joined = [
        sum(node.op_type == "Concat" and "/encoder/" in str(node.name) for node in m.graph) for m in (cpu, engine)
    ]
    assert joined == [2, 4]


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
    # Only the tables that rows are gathered from have another axis: rows of all images, one after the other. Decoder
    # layers share one.
    assert len(unknown) == 3
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
    """Rows that are regrouped across images, and counted: their number is not the batch."""

    def forward(self, images: Any) -> tuple[Any, Any]:
        grouped = images.reshape(-1, 3, 4)  # two rows of each image
        numbers = torch.arange(grouped.shape[0])
        return grouped * numbers.reshape(-1, 1, 1) + numbers.shape[0], images.reshape(-1, 4, 6) + 1.0


class _Doubled(nn.Module):
    """As many numbers as two batches have rows, and how many that is."""

    def forward(self, images: Any) -> tuple[Any, Any]:
        numbers = torch.arange(2 * images.shape[0])
        return numbers * torch.arange(numbers.shape[0]), images + 1.0


def _dynamic(model: nn.Module, path: Path) -> ir.Model:
    """Trace a model of images (B, 2, 12) with two outputs, simplify it, and save it."""
    torch.onnx.export(
        DeployedModel(model),
        (torch.zeros(1, 2, 12),),
        path,
        dynamo=False,
        opset_version=17,
        input_names=["images"],
        output_names=["first", "second"],
        dynamic_axes={name: {0: "batch"} for name in ("images", "first", "second")},
    )
    simplified = simplify(path.read_bytes())
    ir.save(simplified, path)
    return simplified


def _run(path: Path, images: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"images": images}))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_axis_that_is_not_the_batch_is_left_alone(tmp_path: Path) -> None:
    model = _dynamic(_Flat(), tmp_path / "flat.onnx")
    targets = [
        node.inputs[1].const_value.numpy()[0]
        for node in model.graph
        if node.op_type == "Reshape" and node.inputs[1] is not None and node.inputs[1].const_value is not None
    ]
    assert {-1, 0} == {min(size, 0) for size in targets}, "the second one keeps the batch, the first does not"
    images = np.random.default_rng(0).random((3, 2, 12), np.float32)
    first, second = _run(tmp_path / "flat.onnx", images)
    assert np.allclose(first, images.reshape(-1, 3, 4) * np.arange(6, dtype=np.float32)[:, None, None] + 6)
    assert np.allclose(second, images.reshape(-1, 4, 6) + 1.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_range_beyond_the_batch_is_not_taken_for_it(tmp_path: Path) -> None:
    _dynamic(_Doubled(), tmp_path / "doubled.onnx")
    first, _ = _run(tmp_path / "doubled.onnx", np.zeros((3, 2, 12), np.float32))
    assert first.tolist() == [n * n for n in range(6)]


@pytest.mark.parametrize("middle", ["INT64", "BOOL", "FLOAT16", "INT8"])
def test_casts_that_change_values_stay(middle: str) -> None:
    nodes = [
        onnx.helper.make_node("Cast", ["images"], ["there"], to=getattr(onnx.TensorProto, middle)),
        onnx.helper.make_node("Cast", ["there"], ["back"], to=onnx.TensorProto.INT32),
        onnx.helper.make_node("Mul", ["back", "two"], ["result"]),
        onnx.helper.make_node("Add", ["images", "zeros"], ["longer"]),
        onnx.helper.make_node("Mul", ["longer", "two"], ["shaped"]),
    ]
    constants = [
        onnx.numpy_helper.from_array(np.array(2, np.int32), "two"),
        onnx.numpy_helper.from_array(np.zeros((1, 1), np.int32), "zeros"),
    ]
    kind = onnx.TensorProto.INT32
    info = onnx.helper.make_tensor_value_info
    outputs = [info("result", kind, [3]), info("shaped", kind, [1, 3])]
    graph = onnx.helper.make_graph(nodes, "casts", [info("images", kind, [3])], outputs, constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    expected = reference.ReferenceEvaluator(model).run(None, {"images": np.array([0, 5, 2049], np.int32)})
    changed = simplify(model.SerializeToString())
    found = reference.ReferenceEvaluator(ir.serde.serialize_model(changed)).run(
        None, {"images": np.array([0, 5, 2049], np.int32)}
    )
    assert [array.tolist() for array in found] == [array.tolist() for array in expected]
    assert sum(node.op_type == "Cast" for node in changed.graph) == (0 if middle == "INT64" else 2)


def test_a_fixed_batch_is_left_as_it_is(small_onnx: Path) -> None:
    model = ir.load(small_onnx)
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    unify_batch_axis(model)
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before
