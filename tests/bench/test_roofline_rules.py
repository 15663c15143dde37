"""Which operations are one kernel, and how many FLOPs and bytes it has: graphs whose numbers are counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from graphs import graph, graph_of_opset, half
from rtdetr_bench.roofline.everywhere import in_fp16
from rtdetr_bench.roofline.fusion import VIEWS, Kernel, fuse
from rtdetr_bench.roofline.graph import item_bytes, read_graph
from rtdetr_bench.roofline.shapes import SMALL
from rtdetr_deploy.errors import ArtifactError, OptionError

CONV = "c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b)"
MAP = 16 * 8 * 8 * 2
"""Bytes of a map (1, 16, 8, 8) in FP16."""
WEIGHTS = (16 * 16 * 9 + 16) * 2


def _kernels(model: onnx.ModelProto, batch: int | None = None) -> list[Kernel]:
    return list(fuse(read_graph(model, batch)))


def _operators(model: onnx.ModelProto) -> list[list[str]]:
    return [[operation.operator for operation in kernel.operations] for kernel in _kernels(model)]


def _conv(nodes: str, outputs: str = "float16[1,16,8,8] y", inputs: str = "float16[1,16,8,8] x") -> onnx.ModelProto:
    return graph(inputs, outputs, f"{CONV} {nodes}", w=half(16, 16, 3, 3), b=half(16))


def test_bias_activation_and_residual_run_at_the_end_of_a_convolution() -> None:
    (kernel,) = _kernels(_conv("s = Sigmoid(c) m = Mul(c, s) y = Add(m, x)"))
    assert [operation.operator for operation in kernel.operations] == ["Conv", "Sigmoid", "Mul", "Add"]
    assert kernel.flops == {"fp16": 2 * 16 * 8 * 8 * 16 * 9}
    assert (kernel.read, kernel.written) == (MAP + WEIGHTS, MAP)


def test_what_two_readers_need_is_written_too() -> None:
    first, second = _kernels(_conv("r = Relu(c) y = MaxPool<kernel_shape=[1,1]>(r) z = Relu(r)", "float16[1,16,8,8] y"))
    assert first.written == MAP
    assert (second.read, second.written) == (MAP, MAP)


def test_a_cast_behind_a_convolution_starts_a_chain_that_reads_what_was_written() -> None:
    first, second = _kernels(_conv("f = Cast<to=1>(c) y = Mul(f, f)", "float[1,16,8,8] y"))
    assert [operation.operator for operation in second.operations] == ["Cast", "Mul"]
    assert first.written == second.read == MAP
    assert second.written == 2 * MAP


def test_fp32_runs_on_the_cuda_cores_and_moves_twice_the_bytes() -> None:
    model = graph(
        "float[1,16,8,8] x",
        "float[1,16,8,8] y",
        CONV.replace("c =", "y ="),
        w=half(16, 16, 3, 3).astype("f4"),
        b=half(16).astype("f4"),
    )
    (kernel,) = _kernels(model)
    assert set(kernel.flops) == {"fp32"}
    assert (kernel.read, kernel.written) == (2 * (MAP + WEIGHTS), 2 * MAP)
    (cast, fast) = fuse(in_fp16(read_graph(model)))
    assert (cast.read, cast.written) == (2 * MAP, MAP)
    assert (fast.read, fast.written, set(fast.flops)) == (MAP + WEIGHTS, MAP, {"fp16"})


def test_fp16_everywhere_has_no_casts_between_floats_and_keeps_those_to_indices() -> None:
    model = graph(
        "float16[4,8] x", "int32[4,8] y", "f = Cast<to=1>(x) h = Cast<to=10>(f) s = Add(h, x) y = Cast<to=6>(s)"
    )
    assert _operators(model) == [["Cast", "Cast", "Add", "Cast"]]
    (kernel,) = fuse(in_fp16(read_graph(model)))
    assert [operation.operator for operation in kernel.operations] == ["Add", "Cast"]


def test_depthwise_convolutions_do_not_run_on_tensor_cores() -> None:
    nodes = "y = Conv<kernel_shape=[3,3], pads=[1,1,1,1], group=16>(x, w)"
    (kernel,) = _kernels(graph("float16[1,16,8,8] x", "float16[1,16,8,8] y", nodes, w=half(16, 1, 3, 3)))
    assert kernel.flops == {"fp16_vector": 2 * 16 * 8 * 8 * 9}


def test_other_matrix_operations_count_their_products() -> None:
    gemm = graph("float16[8,4] x", "float16[4,16] y", "y = Gemm<transA=1>(x, w)", w=half(8, 16))
    assert _kernels(gemm)[0].flops == {"fp16": 2 * 4 * 16 * 8}
    matmul = graph("float16[2,4,8] x", "float16[2,4,16] y", "y = MatMul(x, w)", w=half(8, 16))
    assert _kernels(matmul)[0].flops == {"fp16": 2 * 2 * 4 * 16 * 8}
    up = graph(
        "float16[1,16,4,4] x",
        "float16[1,8,8,8] y",
        "y = ConvTranspose<kernel_shape=[2,2], strides=[2,2]>(x, w)",
        w=half(16, 8, 2, 2),
    )
    assert _kernels(up)[0].flops == {"fp16": 2 * (8 * 8 * 8) * 16}


NORM = (
    "m = ReduceMean<axes=[-1]>(a) d = Sub(a, m) q = Pow(d, two) v = ReduceMean<axes=[-1]>(q) e = Add(v, tiny) "
    "s = Sqrt(e) n = Div(d, s) g = Mul(n, scale) y = Add(g, bias)"
)


def test_a_layer_norm_is_one_kernel_with_the_addition_before_it_however_it_is_written() -> None:
    inputs, outputs = "float16[4,256] x, float16[4,256] z", "float16[4,256] y"
    constants = {"scale": half(256), "bias": half(256)}
    one = graph(inputs, outputs, "a = Add(x, z) y = LayerNormalization(a, scale, bias)", **constants)
    two = graph_of_opset(16, inputs, outputs, f"a = Add(x, z) {NORM}", two=half(1), tiny=half(1), **constants)
    (short,), (long,) = _kernels(one), _kernels(two)
    assert (short.read, short.written) == (2 * 2048 + 2 * 512, 2048)
    assert (long.read - 4, long.written) == (short.read, short.written)


def test_a_chain_that_one_other_reads_is_computed_inside_of_it() -> None:
    chains = "p = Mul(z, z) q = Relu(x) y = Add(q, p)"
    (kernel,) = _kernels(graph("float16[4,8] x, float16[4,8] z", "float16[4,8] y", chains))
    assert {operation.operator for operation in kernel.operations} == {"Mul", "Relu", "Add"}
    assert (kernel.read, kernel.written) == (2 * 64, 64)
    kept = graph("float16[4,8] x, float16[4,8] z", "float16[4,8] y, float16[4,8] p", chains)
    assert [(kernel.read, kernel.written) for kernel in _kernels(kept)] == [(64, 64), (128, 64)]


def test_views_cost_nothing_and_their_readers_read_the_part_that_they_need() -> None:
    nodes = "r = Reshape(x, shape) a, b = Split<axis=1, num_outputs=2>(r) y = Relu(a)"
    (kernel,) = _kernels(graph("float16[8,16] x", "float16[8,4,2] y", nodes, shape=np.array([8, 8, 2])))
    assert (kernel.read, kernel.written) == (128, 128)
    both = "r = Reshape(x, shape) a, b = Split<axis=1, num_outputs=2>(r) p = Relu(a) y = Add(p, b)"
    (kernel,) = _kernels(graph("float16[8,16] x", "float16[8,4,2] y", both, shape=np.array([8, 8, 2])))
    assert kernel.read == 256  # both halves, once


def test_a_transpose_is_free_for_products_fused_in_chains_and_a_copy_alone() -> None:
    inputs, weights = "float16[1,8,4] x", {"w": half(8, 8)}
    free = graph(inputs, "float16[1,4,8] y", "t = Transpose<perm=[0,2,1]>(x) y = MatMul(t, w)", **weights)
    assert _operators(free) == [["MatMul"]]
    fused = graph(inputs, "float16[1,4,8] y", "t = Transpose<perm=[0,2,1]>(x) y = Relu(t)")
    assert _operators(fused) == [["Transpose", "Relu"]]
    both = "t = Transpose<perm=[0,2,1]>(x) y = MatMul(t, w) z = Concat<axis=1>(t, x2)"
    alone = graph(f"{inputs}, float16[1,4,8] x2", "float16[1,4,8] y, float16[1,8,8] z", both, **weights)
    copied = _kernels(alone)[0]
    assert [operation.operator for operation in copied.operations] == ["Transpose"]
    assert (copied.read, copied.written) == (64, 64)


ATTENTION = (
    "t = Transpose<perm=[0,2,1]>(k) s = MatMul(q, t) {before} p = Softmax<axis=-1>({scores}) {after} "
    "y = MatMul({weights}, v)"
)
QKV = "float16[8,300,32] q, float16[8,300,32] k, float16[8,300,32] v"


def test_attention_is_one_kernel_that_never_writes_the_scores() -> None:
    nodes = ATTENTION.format(before="", scores="s", after="", weights="p")
    (kernel,) = _kernels(graph(QKV, "float16[8,300,32] y", nodes))
    size = 8 * 300 * 32 * 2
    assert (kernel.read, kernel.written) == (3 * size, size)
    assert kernel.flops == {"fp16": 2 * 2 * 8 * 300 * 300 * 32, "fp32": 16 * 8 * 300 * 300}


def test_casts_around_the_softmax_keep_attention_in_three_kernels() -> None:
    nodes = ATTENTION.format(before="f = Cast<to=1>(s)", scores="f", after="h = Cast<to=10>(p)", weights="h")
    first, softmax, last = _kernels(graph(QKV, "float16[8,300,32] y", nodes))
    scores = 8 * 300 * 300 * 2
    assert first.written == softmax.read == softmax.written == scores
    assert last.read == scores + 8 * 300 * 32 * 2


def test_scores_that_somebody_else_reads_are_written() -> None:
    nodes = ATTENTION.format(before="", scores="s", after="", weights="p")
    assert len(_kernels(graph(QKV, "float16[8,300,32] y, float16[8,300,300] p", nodes))) == 3


def test_concatenations_are_written_in_place() -> None:
    nodes = "a = Relu(x) b = MaxPool<kernel_shape=[1,1]>(x) j = Concat<axis=1>(a, b) y = MaxPool<kernel_shape=[1,1]>(j)"
    kernels = _kernels(graph("float16[1,16,8,8] x", "float16[1,32,8,8] y", nodes))
    assert [(kernel.read, kernel.written) for kernel in kernels] == [(MAP, MAP), (MAP, MAP), (2 * MAP, 2 * MAP)]
    given = graph("float16[1,16,8,8] x", "float16[1,32,8,8] y", "a = Relu(x) y = Concat<axis=1>(a, x)")
    assert [(kernel.read, kernel.written) for kernel in _kernels(given)] == [(MAP, MAP), (2 * MAP, 2 * MAP)]


def test_gathers_read_the_rows_that_are_asked_for_in_whole_sectors() -> None:
    rows = graph("float16[8400,32] x, int32[100] i", "float16[100,32] y", "y = Gather(x, i)")
    (kernel,) = _kernels(rows)
    assert (kernel.read, kernel.written) == (100 * 64 + 400, 100 * 64)
    short = graph("float16[8400,4] x, int32[100] i", "float16[100,4] y", "y = Gather(x, i)")
    assert _kernels(short)[0].read == 100 * 32 + 400  # 8 bytes of 32 that are moved
    nd = graph("float16[2,50,32] x, int64[100,2] i", "float16[100,32] y", "y = GatherND(x, i)")
    assert _kernels(nd)[0].read == 100 * 64 + 1600
    elements = graph("float16[50,1] x, int64[100,1] i", "float16[100,1] y", "y = GatherElements<axis=0>(x, i)")
    assert _kernels(elements)[0].read == 100 * 32 + 800
    (chain,) = _operators(graph("float16[9,8] x", "float16[2,8] y", "g = Gather(x, i) y = Relu(g)", i=np.array([1, 3])))
    assert chain == ["Gather", "Relu"]  # constant indices: a strided read


@pytest.mark.parametrize(("mode", "sectors"), [("bilinear", 2), ("nearest", 1)])
def test_grid_sampling_reads_a_sector_per_row_of_neighbours(mode: str, sectors: int) -> None:
    nodes = f'y = GridSample<mode="{mode}">(x, g)'
    model = graph_of_opset(16, "float16[8,32,80,80] x, float16[8,300,4,2] g", "float16[8,32,300,4] y", nodes)
    (kernel,) = _kernels(model)
    samples = 8 * 32 * 300 * 4
    assert (kernel.read, kernel.written) == (samples * sectors * 32 + 8 * 300 * 4 * 2 * 2, samples * 2)


def test_int8_pairs_fold_into_their_neighbours() -> None:
    nodes = (
        "xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear(w, s, z) "
        "c = Conv<kernel_shape=[1,1]>(xd, wd) r = Relu(c) yq = QuantizeLinear(r, s, z) yd = DequantizeLinear(yq, s, z) "
        "y = MaxPool<kernel_shape=[1,1]>(yd)"
    )
    constants: dict[str, NDArray[Any]] = {
        "w": np.ones((128, 64, 1, 1), np.int8),
        "s": np.array(0.1, np.float32),
        "z": np.array(0, np.int8),
    }
    first, second, third = _kernels(graph("float[1,64,8,8] x", "float[1,128,8,8] y", nodes, **constants))
    assert first.written == 64 * 64
    assert second.flops == {"int8": 2 * 128 * 64 * 64}
    assert second.read == 64 * 64 + 128 * 64 + 5  # and the scale and zero point of what it writes
    assert second.written == third.read == 128 * 64


@pytest.mark.parametrize(("kind", "unit"), [("f2", "fp16"), ("f4", "fp32")])
def test_int8_weights_alone_save_bytes_and_not_arithmetic(kind: str, unit: str) -> None:
    name = {"f2": "float16", "f4": "float"}[kind]
    constants: dict[str, NDArray[Any]] = {"w": np.ones((128, 64), np.int8), "s": np.array(0.1, kind)}
    nodes = "d = DequantizeLinear(w, s) y = MatMul(x, d)"
    (kernel,) = _kernels(graph(f"{name}[4,128] x", f"{name}[4,64] y", nodes, **constants))
    assert kernel.flops == {unit: 2 * 4 * 128 * 64}
    assert kernel.read == 128 * 64 + 4 * 128 * int(kind[1])


def test_weights_in_a_file_of_their_own_are_not_read() -> None:
    model = graph("float16[4,8] x", "float16[4,8] y", "y = Mul(x, w)", w=half(8))
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "none.bin")
    model.graph.initializer[0].ClearField("raw_data")
    (kernel,) = _kernels(model)
    assert kernel.read == 64 + 16


def test_a_batch_that_the_graph_computes_with_is_followed() -> None:
    constants = {"zero": np.array([0]), "rest": np.array([8]), "w": half(8, 16)}
    nodes = "n = Shape(x) f = Gather(n, zero) r = Concat<axis=0>(f, rest) v = Reshape(x, r) y = MatMul(v, w)"
    model = graph("float16[N,2,4] x", "float16[N,16] y", nodes, **constants)
    assert _operators(model) == [["MatMul"]]
    assert [_kernels(model, batch)[0].flops["fp16"] for batch in (None, 1, 4)] == [256, 256, 1024]


def test_a_model_whose_work_can_not_be_known_is_refused() -> None:
    fixed = graph("float16[2,4] x", "float16[2,4] y", "y = Relu(x)")
    with pytest.raises(
        OptionError, match="`batch` is 4, but the model takes 2; leave it out, or export with a dynamic"
    ):
        read_graph(fixed, 4)
    with pytest.raises(ArtifactError, match="input x leaves its size open; export the model for a fixed input size"):
        read_graph(graph("float16[N,3,H,W] x", "float16[N,3,H,W] y", "y = Relu(x)"))
    unknown = graph("float16[2,4] x, int64[2] s", "float16[A,B] y", "r = Reshape(x, s) y = Relu(r)")
    with pytest.raises(ArtifactError, match=r"the shape of r can't be known \(Reshape"):
        read_graph(unknown)
    loop = graph(
        "float16[2,4] x, bool c",
        "float16[2,4] y",
        "y = If(c) <then_branch = a () => (float16[2,4] u) { u = Relu(x) }, "
        "else_branch = b () => (float16[2,4] v) { v = Neg(x) }>",
    )
    with pytest.raises(ArtifactError, match="If holds a graph of its own; expected a model without loops"):
        read_graph(loop)


@pytest.mark.parametrize("declared", ["float", "seq(float[2,4])", "float[]"])
def test_an_input_without_a_batch_axis_is_refused(declared: str) -> None:
    model = graph("float[2,4] x", "float[2,4] y", "y = Relu(x)")
    value = graph(f"{declared.replace('[]', '')} x", "float y", "y = Identity(x)").graph.input[0]
    if declared == "float[]":
        value.type.tensor_type.ClearField("shape")
    model.graph.input[0].CopyFrom(value)
    with pytest.raises(ArtifactError, match="input x has no batch axis; expected a tensor whose first axis counts"):
        read_graph(model)


@pytest.mark.parametrize("node", ["Reshape(a, seven)", "Gather(a, seven)"])
def test_a_constant_that_can_not_be_evaluated_is_left_to_run(node: str) -> None:
    nodes = f"k = {node} y = Relu(x)"
    assert _operators(graph("float[2,4] x", "float[2,4] y", nodes, a=half(3), seven=np.array([7]))) == [["Relu"]]
    unheard = graph("float[2,4] x", "float[2,4] y", "k = Unheard(a) y = Relu(x)", a=half(3))
    with pytest.raises(ArtifactError, match=r"^the shape of k can't be known \(Unheard\)"):
        read_graph(unheard)


@pytest.mark.parametrize(
    ("nodes", "operators", "shape"),
    [
        ("n = Shape(a) t = Tile(x, n) y = Relu(t)", [["Tile", "Relu"]], (4, 6)),
        ("y = Relu(x) n = Shape(y) z = Tile(x, n)", [["Relu"], ["Tile"]], (4, 4)),
        ("f = Shape<end=-1>(a) l = Shape<start=1>(a) n = Concat<axis=0>(l, f) y = Tile(x, n)", [["Tile"]], (6, 4)),
    ],
)
def test_shapes_of_constants_and_outputs_are_followed(
    nodes: str, operators: list[list[str]], shape: tuple[int, ...]
) -> None:
    outputs = "float16[A,B] y" + ", float16[C,D] z" * ("z = " in nodes)
    model = graph("float16[2,2] x", outputs, nodes, a=half(2, 3))
    assert sorted(_operators(model)) == sorted(operators)
    assert read_graph(model).operations[-1].outputs[0].shape == shape


def test_a_weight_that_is_missing_is_named() -> None:
    model = graph("float16[2,4] x", "float16[2,4] y", "k = Identity(w) m = MatMul(x, k) y = Relu(m)", w=half(4, 4))
    model.graph.node[0].name = "first"
    del model.graph.initializer[:]
    with pytest.raises(ArtifactError, match=r"^the weight w is missing from the file \(Identity first reads it\)"):
        read_graph(model)


def test_large_weights_are_not_looked_into_and_constants_alone_cost_nothing() -> None:
    weights = half(64, SMALL)
    nodes = "t = Transpose<perm=[1,0]>(w) k = Add(a, a) m = MatMul(x, t) y = Add(m, k)"
    (kernel,) = _kernels(graph(f"float16[2,{SMALL}] x", "float16[2,64] y", nodes, w=weights, a=half(64)))
    assert [operation.operator for operation in kernel.operations] == ["MatMul", "Add"]
    assert kernel.read == 2 * SMALL * 2 + weights.nbytes + 128


@pytest.mark.parametrize(
    ("kind", "count"), [("float16", 2), ("bfloat16", 2), ("int64", 8), ("bool", 1), ("float8e4m3fn", 1), ("int4", 1)]
)
def test_bytes_of_an_element(kind: str, count: int) -> None:
    assert item_bytes(kind) == count


@pytest.mark.parametrize("name", ["small_onnx", "dynamic_onnx", "half_onnx"])
def test_kernels_of_an_export_hold_every_operation_once_and_can_run_in_their_order(
    name: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(name)
    graph = read_graph(onnx.load(path))
    kernels = fuse(graph)
    placed = [operation.name for kernel in kernels for operation in kernel.operations]
    assert len(placed) == len(set(placed))
    free = {"Concat", "Transpose", *VIEWS}
    assert {o.name for o in graph.operations if o.operator not in free} <= set(placed)
    done = set(graph.inputs)
    waiting = [operation for operation in graph.operations if operation.name not in set(placed)]
    for kernel in kernels:
        done |= {value.name for operation in kernel.operations for value in operation.outputs}
        for operation in waiting:  # views and concatenations: in the order of the graph, as soon as they can be
            if {value.name for value in operation.data} <= done:
                done |= {value.name for value in operation.outputs}
        missing = {v.name for o in kernel.operations for v in o.data} - done
        assert not missing, kernel.operations[0].name
