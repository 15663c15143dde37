"""What the checks compute without a GPU: forms of the sampler, files run by torch, instructions in listings."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")
pytest.importorskip("onnx")

import onnx
import torch
from onnx import TensorProto, helper

from fake_driver import COMPILER, compile_for_cpu
from gpu_check import sampler_forms as forms
from gpu_check.checks.double import CAPABILITIES
from gpu_check.checks.parts import make_model
from gpu_check.checks.placement import FP32, write_files
from gpu_check.sass import count_double, count_instructions
from gpu_check.stub.detector import SOURCE
from gpu_check.stub.tensorrt import SPIN
from gpu_check.torch_graph import OPERATORS, TorchGraph
from rtdetr_bench.studies import placements
from rtdetr_bench.studies.placements import EXPORTED, PIXELS, PLACEMENTS, write_placements
from rtdetr_deploy import ArtifactError, MissingPackageError, Predictor, open_runtime
from rtdetr_deploy.model.layers.deformable_attention import GridSampler
from rtdetr_deploy.runtimes.trt.compile_kernel import compile_kernel
from rtdetr_deploy.runtimes.trt.cuda import Gpu
from rtdetr_deploy.runtimes.trt.cuda_resize import KERNEL, NAME
from rtdetr_export import ExportOptions, export_onnx
from rtdetr_export.graph import POSTPROCESS
from rtdetr_export.pipeline import TracedCheckpoint, trace_checkpoint

LEVELS = ((12, 16), (6, 8), (3, 4))


@pytest.fixture(scope="module")
def sampling() -> forms.Sampling:
    return forms.make_sampling(2, "cpu", LEVELS, queries=10)


@pytest.mark.parametrize("name", forms.FORMS)
def test_every_form_samples_what_float64_does(name: str, sampling: forms.Sampling) -> None:
    expected = forms.reference(sampling)
    found = forms.FORMS[name](sampling)
    assert found.shape == expected.shape == (2, 10, 8, 32)
    assert found.dtype == torch.float16
    assert float((found.double() - expected).abs().max() / expected.abs().max()) < 4e-3


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler, which stands in for the GPU's")
def test_the_fused_kernel_samples_what_float64_does(sampling: forms.Sampling) -> None:
    expected = forms.reference(sampling)
    result = torch.full(expected.shape, float("nan"), dtype=torch.float32)
    count = result.numel()
    pointers = [part.data_ptr() for part in (sampling.value, sampling.rows, sampling.weights, result)]
    values = (*pointers, count // forms.DIM, sampling.count)
    arguments = [kind(value) for kind, value in zip(forms.FUSED_TYPES, values, strict=True)]
    library = compile_for_cpu(forms.FUSED, "gather_sum")
    library.launch(-(-count // forms.FUSED_BLOCK), 1, forms.FUSED_BLOCK, 1, *arguments)
    assert float((result.double() - expected).abs().max() / expected.abs().max()) < 1e-5
    assert ctypes.sizeof(ctypes.c_void_p) == 8


def test_the_cells_are_those_that_grid_sample_reads(sampling: forms.Sampling) -> None:
    """In double precision the definition and torch's agree, also for locations outside the map."""
    value, locations, attention = (part.double() for part in (sampling.value, sampling.locations, sampling.attention))
    tokens, weights = forms.bilinear_cells(locations, attention, LEVELS)
    image = torch.arange(2)[:, None, None, None]
    head = torch.arange(8)[None, None, :, None]
    found = (value[image, tokens, head] * weights.unsqueeze(-1)).sum(3)
    expected = GridSampler(forms.POINTS)(value, locations, attention, LEVELS).reshape(found.shape)
    assert float((found - expected).abs().max()) < 1e-12
    assert float((locations < 0).double().mean()) > 0.01


def test_gathering_in_fp32_changes_no_bit(sampling: forms.Sampling) -> None:
    assert torch.equal(forms.gather_fp32(sampling), forms.gather_matmul(sampling))


def test_traffic_is_what_the_review_counted() -> None:
    """Megabytes per decoder layer and image at 640x640: 72.8 with casts, 22.6 in FP16, 7.8 fused, to a few percent."""
    full = forms.make_sampling(1, "cpu")
    assert forms.traffic("gather in FP32 with casts", full) / 1e6 == pytest.approx(72.8, rel=0.03)
    assert forms.traffic("gather in FP16, matrix product", full) / 1e6 == pytest.approx(22.6, rel=0.03)
    assert forms.traffic(forms.FUSED_FORM, full) / 1e6 == pytest.approx(7.8, rel=0.08)
    assert {forms.traffic(name, full) for name in forms.FORMS} != {0}


LISTING = """
	code for sm_75
		Function : resize_frame
	.headerflags	@"EF_CUDA_TEXMODE_UNIFIED EF_CUDA_64BIT_ADDRESS EF_CUDA_SM75"
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;   /* 0x00000a00ff017624 */
        /*0010*/                   I2F.F64 R4, R2 ;                          /* 0x0000000200047312 */
        /*0020*/              @!P0 DADD R4, R4, 0.5 ;                        /* 0x3fe0000004048429 */
        /*0030*/                   MUFU.RCP64H R7, R5 ;                      /* 0x0000000500077308 */
        /*0040*/                   DFMA R8, R4, R6, R8 ;                     /* 0x000000060408722b */
        /*0050*/             @UP0 DSETP.GT.AND P1, PT, |R8|, RZ, PT ;        /* 0x000000ff0800722a */
        /*0060*/                   F2F.F32.F64 R8, R8 ;                      /* 0x0000000800087310 */
        /*0070*/                   FADD R8, R8, -0.5 ;                       /* 0xbf00000008087421 */
        /*0080*/                   DEPBAR.LE SB0, 0x1 ;                      /* 0x000080400000791a */
        /*0090*/                   MUFU.RCP R9, R8 ;                         /* 0x0000000800097308 */
        /*00a0*/                   EXIT ;                                    /* 0x000000000000794d */
"""


def test_double_precision_is_counted_in_a_listing() -> None:
    assert sum(count_instructions(LISTING).values()) == 11
    assert count_double(LISTING) == 6  # not DEPBAR, FADD or MUFU.RCP
    assert count_instructions("") == {}


@pytest.mark.parametrize("capability", [*CAPABILITIES, "8.6", "12.0"])
def test_nvidias_compiler_takes_every_kernel(capability: str) -> None:
    kernels = {"detect": SOURCE, "spin": SPIN, "gather_sum": forms.FUSED, NAME: KERNEL}
    for name, source in kernels.items():
        try:
            code = compile_kernel(source, name, Gpu(0, "GPU", capability, 0))
        except MissingPackageError as error:
            pytest.skip(str(error))
        assert code.startswith(b"\x7fELF")
        assert name.encode() in code


def _feed(path: Path, batch: int) -> dict[str, NDArray[Any]]:
    (spec,) = open_runtime(path).inputs
    shape = (batch, *(int(size or 0) for size in spec.shape[1:]))
    rng = np.random.default_rng(0)
    if spec.dtype == np.uint8:
        return {spec.name: rng.integers(0, 256, shape, np.uint8)}
    return {spec.name: rng.random(shape, np.float32)}


@pytest.mark.parametrize(("name", "batch"), [("small", 1), ("dynamic", 3)])
def test_torch_runs_files_as_onnx_runtime_does(name: str, batch: int, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(f"{name}_onnx")
    feed = _feed(path, batch)
    expected, found = open_runtime(path).run(feed), TorchGraph(path, "cpu").run(feed)
    assert set(found) == set(expected)
    assert {name: (value.shape, value.dtype) for name, value in found.items()} == {
        name: (value.shape, value.dtype) for name, value in expected.items()
    }
    assert np.abs(np.sort(found["scores"]) - np.sort(expected["scores"])).max() < 1e-4
    assert (
        np.abs(found["boxes"] - expected["boxes"]).max(axis=-1) < 1e-3
    ).mean() > 0.98  # equal scores may change places


def test_torch_runs_fp16_files_in_fp16(half_onnx: Path, picture: NDArray[np.uint8]) -> None:
    with Predictor(TorchGraph(half_onnx, "cpu"), 0.0) as half, Predictor(half_onnx, 0.0) as reference:
        found, expected = half.detect(picture), reference.detect(picture)
        assert half.class_names == reference.class_names
        assert "torch" in half.runtime
    assert np.abs(found.scores - expected.scores).max() < 0.02
    assert not np.array_equal(found.scores, expected.scores)  # FP16 is emulated otherwise by ONNX Runtime


def _write(path: Path, *nodes: Any, **constants: NDArray[Any]) -> Path:
    shape: list[str | int | None] = [1, 3, 8, 8]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    values = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "graph", [x], [y], values)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def _ints(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize(
    ("operator", "attributes", "constants"),
    [
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 0, 0]}, {}),
        ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 0}, {}),
        ("Slice", {}, {"a": _ints(7), "b": _ints(-9), "c": _ints(3), "d": _ints(-2)}),
        ("Slice", {}, {"a": _ints(1, -3), "b": _ints(3, 99), "c": _ints(1, -1), "d": _ints(1, 2)}),
        ("Gather", {"axis": -1}, {"a": np.array([[0, -1], [3, 3]], np.int64)}),
        ("Unsqueeze", {}, {"a": _ints(-1, 0)}),
        ("Squeeze", {}, {"a": _ints(0)}),
        ("Clip", {}, {"a": np.array(0.25, np.float32), "b": np.array(0.5, np.float32)}),
        ("ReduceSum", {"keepdims": 0}, {"a": _ints(1, 3)}),
        ("ReduceMean", {"axes": [2], "keepdims": 1}, {}),
        ("Expand", {}, {"a": _ints(2, 3, 8, 8)}),
        ("Reshape", {}, {"a": _ints(0, -1)}),
        ("Conv", {"pads": [0, 1, 2, 1], "strides": [2, 2]}, {"a": np.ones((4, 3, 3, 3), np.float32)}),
        ("Softmax", {"axis": 1}, {}),
        ("Transpose", {"perm": [0, 2, 3, 1]}, {}),
        ("Pow", {}, {"a": np.array(2, np.float32)}),
    ],
)
def test_operators_are_onnxs(operator: str, attributes: Any, constants: Any, tmp_path: Path) -> None:
    node = helper.make_node(operator, ["x", *constants], ["y"], **attributes)
    path = _write(tmp_path / "one.onnx", node, **constants)
    feed = {"x": np.random.default_rng(0).random((1, 3, 8, 8), np.float32)}
    expected, found = open_runtime(path).run(feed)["y"], TorchGraph(path, "cpu").run(feed)["y"]
    assert found.shape == expected.shape
    assert np.allclose(found, expected, atol=1e-6)


def test_what_torch_cannot_run_is_named(tmp_path: Path) -> None:
    unknown = _write(tmp_path / "a.onnx", helper.make_node("Tan", ["x"], ["y"]))
    with pytest.raises(ArtifactError, match="operators that are not known here: Tan"):
        TorchGraph(unknown, "cpu")
    linear = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear")
    path = _write(tmp_path / "b.onnx", linear, scales=np.array([1, 1, 2, 2], np.float32))
    with pytest.raises(ArtifactError, match="Resize by .* is not known here"):
        TorchGraph(path, "cpu").run({"x": np.zeros((1, 3, 8, 8), np.float32)})
    assert len(OPERATORS) > 40


@pytest.mark.slow
def test_every_placement_can_be_run_by_torch(small_checkpoint: Path, tmp_path: Path) -> None:
    names = []
    for name, path in write_files(small_checkpoint, tmp_path):
        names.append(name)
        assert TorchGraph(path, "cpu").file == path.name
    assert names[: len(PLACEMENTS) + 1] == [FP32, *PLACEMENTS]
    others = names[len(PLACEMENTS) + 1 :]
    assert len(others) > 2
    assert len(set(names)) == len(names)
    assert not any(PIXELS in name or POSTPROCESS.name in name for name in others)


def test_what_is_called_exported_is_the_graph_of_an_fp16_export(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nodes(path: Path) -> list[tuple[str, str]]:
        return sorted((node.op_type, node.name) for node in onnx.load(str(path)).graph.node)

    def trace(options: ExportOptions) -> TracedCheckpoint:
        return trace_checkpoint(replace(options, size=(64, 96), layers=1))

    monkeypatch.setattr(placements, "trace_checkpoint", trace)
    options = ExportOptions(
        small_checkpoint, tmp_path / "a.onnx", precision="fp16", verify=False, size=(64, 96), layers=1
    )
    exported = nodes(export_onnx(options).path)
    written = write_placements(small_checkpoint, tmp_path / "placed.onnx")
    assert next(written) == EXPORTED
    assert nodes(tmp_path / "placed.onnx") == exported
    assert list(written) == list(PLACEMENTS)[1:]
    assert nodes(tmp_path / "placed.onnx") != exported


@pytest.mark.slow
def test_the_parts_of_a_model_fit_together_in_fp16() -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        model = make_model("r18", "cpu")
        maps = model.encoder(model.backbone(torch.rand(1, 3, 64, 64).half()))
        boxes = model.decoder(maps).boxes[-1]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert torch.isfinite(boxes).all()
