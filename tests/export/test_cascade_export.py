"""Exports with a cascade, and of inputs with fewer tokens than queries: verified, described, run, and refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from rtdetr_deploy import ArtifactInfo, ExportError, OptionError, Predictor, open_runtime  # noqa: E402
from rtdetr_deploy.artifacts.input_size import count_tokens  # noqa: E402
from rtdetr_deploy.model import RTDETR  # noqa: E402
from rtdetr_deploy.model import query_selection as selection_module  # noqa: E402
from rtdetr_deploy.model.random_weights import fill_randomly  # noqa: E402
from rtdetr_deploy.model.variants import find_variant  # noqa: E402
from rtdetr_export import ExportOptions, export_onnx  # noqa: E402
from rtdetr_export.cli import main  # noqa: E402
from rtdetr_export.trt.lint import lint_file  # noqa: E402
from rtdetr_export.verify.reference import open_reference  # noqa: E402

TOKENS = 64 + 16 + 4
"""Of an input of 64x64 pixels."""


def _info(path: Path) -> ArtifactInfo:
    with Predictor(path, 0.0) as predictor:
        assert isinstance(predictor.info, ArtifactInfo)
        return predictor.info


def test_a_file_holds_the_cascade_and_returns_what_is_left(small_export: Any, picture: NDArray[np.uint8]) -> None:
    path = small_export("cut.onnx", cascade="1:50", batch="dynamic")  # text as on the command line; verified
    info = _info(path)
    assert (info.cascade, info.queries, info.output_queries, info.max_detections) == ((1, 50), 300, 50, 150)
    assert info.verified
    with Predictor(path, 0.0) as predictor:
        one, other = predictor.detect_batch([picture, picture[::-1].copy()])
        alone = predictor.detect(picture)
    assert (len(one), len(other)) == (150, 150)
    assert np.allclose(one.scores, alone.scores, atol=1e-5)


def test_raw_outputs_have_a_row_per_query_that_is_left(small_export: Any) -> None:
    path = small_export("raw.onnx", cascade=(1, 50), raw_output=True)
    runtime = open_runtime(path)
    try:
        found = runtime.run({"images": np.full((1, 3, 128, 160), 0.5, np.float32)})
    finally:
        runtime.close()
    assert {name: array.shape for name, array in found.items()} == {"logits": (1, 50, 3), "boxes": (1, 50, 4)}


def test_later_layers_work_on_fewer_queries(small_export: Any, small_onnx: Path) -> None:
    def rows_of_layer(path: Path, layer: int) -> set[int]:
        graph = onnx.shape_inference.infer_shapes(onnx.load(str(path)), data_prop=True).graph
        shapes = {
            value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in graph.value_info
        }
        prefix = f"/model/decoder/layers.{layer}/linear"
        names = [name for node in graph.node if node.name.startswith(prefix) for name in node.output]
        return {shapes[name][1] for name in names if name in shapes}

    cut = small_export("cut-for-shapes.onnx", cascade=(1, 50))
    assert (rows_of_layer(small_onnx, 0), rows_of_layer(small_onnx, 1)) == ({300}, {300})
    assert (rows_of_layer(cut, 0), rows_of_layer(cut, 1)) == ({300}, {50})


def test_fp16_chooses_in_fp32(small_export: Any) -> None:
    model = onnx.load(str(small_export("cut-half.onnx", cascade=(1, 50), precision="fp16")))
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    chosen = [node for node in inferred.node if node.name.startswith("/model/decoder/cascade/")]
    choice = [node for node in chosen if node.op_type in ("ReduceMax", "TopK")]
    assert len(choice) == 2
    assert {types[node.input[0]] for node in choice} == {onnx.TensorProto.FLOAT}
    boxes = [node for node in inferred.node if node.name.startswith("/model/decoder/Gather")]
    assert len(boxes) == 2
    assert {types[node.output[0]] for node in boxes} == {onnx.TensorProto.FLOAT}  # FP16 would move boxes


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_cascade_for_tensorrt_is_what_its_parser_takes(small_export: Any, precision: str) -> None:
    path = small_export(
        f"cut-{precision}.onnx", cascade=(1, 50), target="tensorrt", batch="dynamic", precision=precision,
        verify=precision == "fp32",  # among random scores FP16 lets another query go on
    )  # fmt: skip
    assert [finding for finding in lint_file(path) if finding.severity == "error"] == []


@pytest.mark.slow
def test_discrete_sampling_and_int8_go_with_a_cascade(tmp_path: Path, squares: tuple[Path, Path]) -> None:
    model = RTDETR(find_variant("r18-dsp"))
    fill_randomly(model, seed=7)
    weights = tmp_path / "r18.pth"
    torch.save({"model": model.state_dict()}, weights)
    size = (64, 96)
    discrete = export_onnx(ExportOptions(weights, variant="r18-dsp", cascade=(2, 40), size=size))
    assert discrete.info.cascade == (2, 40)
    assert discrete.path.name == "r18-l3-64x96-fp32-c2x40-discrete.onnx"
    quantized = export_onnx(
        ExportOptions(weights, cascade=(1, 40), size=size, precision="int8", calibration=squares[1], verify=False)
    )
    with Predictor(quantized.path, 0.0) as predictor:
        assert len(predictor.detect(np.full((50, 70, 3), 128, np.uint8))) == 300


class _Worst(selection_module.QueryCut):
    def forward(self, logits: Any) -> Any:
        return super().forward(-logits)


class _OneClass(selection_module.QueryCut):
    """By the first class instead of the best."""

    def forward(self, logits: Any) -> Any:
        return super().forward(logits[..., :1])


class _Unsorted(selection_module.QueryCut):
    """The first queries that the encoder selected, whatever the layer says."""

    def forward(self, logits: Any) -> Any:
        return torch.arange(self.keep, dtype=torch.int32).expand(logits.shape[0], -1)


@pytest.mark.parametrize("wrong", [_Worst, _OneClass, _Unsorted])
def test_a_wrong_choice_is_refused(
    wrong: type[selection_module.QueryCut], small_options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtdetr_deploy.model.rtdetr.QueryCut", wrong)
    options = small_options(f"{wrong.__name__}.onnx", cascade=(1, 50))
    with pytest.raises(ExportError, match="disagrees with the torch model and was not written"):
        export_onnx(options)


def test_a_file_name_tells_the_cascade(small_checkpoint: Path, tmp_path: Path) -> None:
    weights = tmp_path / "cells.pth"
    shutil.copy(small_checkpoint, weights)
    options = ExportOptions(weights, cascade=(2, 100), size=(64, 96), queries=120, verify=False)
    assert export_onnx(options).path.name == "cells-l3-64x96-fp32-q120-c2x100-unverified.onnx"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cascade": "2"}, "cascade '2' is not understood; write a single K:N"),
        ({"cascade": (1, 2, 3)}, r"`cascade` is \(1, 2, 3\), expected \(K, N\)"),
        (
            {"cascade": (2, 100), "layers": 2},
            "after decoder layer 2, which no other follows: of 2 layers choose 1 to 1",
        ),
        ({"cascade": (1, 100), "layers": 1}, "and only 1 runs; leave it out"),
        ({"cascade": (1, 101), "queries": 100}, "`cascade` lets 101 of 100 queries go on: choose 1 to 100"),
        (
            {"cascade": (1, 100), "weights": Path("m.onnx"), "output": Path("m.engine")},
            "`cascade` is decided in m.onnx",
        ),
    ],
)
def test_what_no_model_can_do_is_said_before_it_is_loaded(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ExportOptions(**{"weights": Path("r50.pth"), **changes})


def test_what_this_model_can_not_do_is_said_before_it_is_traced(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rtdetr_export.pipeline.trace", lambda *_: pytest.fail("it was traced"))
    for typed, message in (
        ("--cascade 3:100", "--cascade leaves queries out after decoder layer 3, which no other follows: of 3 layers"),
        ("--cascade 1:301", "--cascade lets 301 of 300 queries go on: choose 1 to 300"),
        ("--cascade 1:100 --size 64", "--cascade lets 100 of 84 queries go on: choose 1 to 84"),
        ("--cascade 1:100,2:50", "cascade '1:100,2:50' is not understood; write a single K:N"),
    ):
        with pytest.raises(SystemExit) if "," in typed else _nothing():
            assert main(["--weights", str(small_checkpoint), *typed.split()]) == 2
        assert message in capsys.readouterr().err


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def test_a_reference_has_the_same_cascade(small_export: Any, small_onnx: Path) -> None:
    info = _info(small_export("cut.onnx", cascade="1:50", batch="dynamic"))
    with pytest.raises(OptionError, match=r"small.onnx has cascade None, and the engine \(1, 50\); give the same"):
        open_reference(small_onnx, small_onnx, info)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "fp16"},
        {"precision": "fp16", "batch": None, "size": (64, 96)},
        {"target": "tensorrt"},
        {"raw_output": True},
        {"cascade": (1, 60)},
        {"size": (96, 64), "max_detections": 1000},
    ],
)
def test_an_input_of_few_tokens_selects_them_all(
    changes: dict[str, Any], small_export: Any, picture: NDArray[np.uint8]
) -> None:
    path = small_export("few.onnx", **{"size": (64, 64), "layers": None, **changes})
    info = _info(path)
    tokens = count_tokens(*info.size)
    left = 60 if "cascade" in changes else tokens
    assert (info.queries, info.output_queries, info.verified) == (tokens, left, True)
    assert info.max_detections == min(changes.get("max_detections", 300), 3 * left)
    with Predictor(path, 0.0) as predictor:
        assert len(predictor.detect(picture)) == info.max_detections
    assert [finding for finding in lint_file(path) if finding.severity == "error"] == []


def test_queries_that_the_input_does_not_have_are_told_once(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path / "few.onnx"), "--no-verify"]
    assert main(["--weights", str(small_checkpoint), "--size", "64", "--cascade", "2:30", *output]) == 0
    text = capsys.readouterr().out
    assert (
        f"3 decoder layers, {TOKENS} queries (as many as the input has tokens), 30 queries after layer 2, 64x64" in text
    )
    assert text.count(" queries") == 2
    assert main(["--weights", str(small_checkpoint), "--size", "128x160", *output]) == 0
    assert " queries" not in capsys.readouterr().out


def test_a_checkpoint_runs_on_few_tokens(small_checkpoint: Path, picture: NDArray[np.uint8]) -> None:
    with Predictor(small_checkpoint, 0.0, runtime="torch", size=(64, 64)) as predictor:
        assert isinstance(predictor.info, ArtifactInfo)
        assert (predictor.info.queries, predictor.info.max_detections) == (TOKENS, 3 * TOKENS)
        assert len(predictor.detect(picture)) == 3 * TOKENS
