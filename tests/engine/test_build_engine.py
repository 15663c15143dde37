"""Building and verifying engines over strict doubles: what is asked of TensorRT, and that wrong engines are caught."""

from __future__ import annotations

import json
import sys
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import fake_tensorrt
from conftest import shared_folder, slow_except
from fake_tensorrt import BuilderFlag, HardwareCompatibilityLevel, MemoryPoolType, ParserError, ProfilingVerbosity
from rtdetr_deploy import ExportError, MissingPackageError, OptionError, Predictor
from rtdetr_deploy.runtimes.trt.layer_precision import count_precisions
from rtdetr_deploy.runtimes.trt.sidecar import sidecar_path
from rtdetr_export import EngineOptions, ExportOptions, Step, build_engine, export, export_onnx
from rtdetr_export.cli import main
from rtdetr_export.precision.int8 import QuantizableNode
from rtdetr_export.precision.sensitivity import QuantizationPlan, TradeOff
from rtdetr_export.verify.agreement import Agreement
from rtdetr_export.verify.engine import EngineReport
from rtdetr_export.verify.synthetic_images import structured_image

pytest_plugins = ("engine_world",)


World = fake_tensorrt.World


def test_a_built_engine_is_verified_and_detects(
    world: World, half_onnx: Path, tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    steps: list[Step] = []
    target = tmp_path / "cells.engine"
    result = build_engine(half_onnx, target, EngineOptions(opt_batch=2, max_batch=3), progress=steps.append)
    assert result.engine_info is not None
    assert result.engine_info.profile == (1, 2, 3)
    assert result.info.precision == "fp16"
    report = result.report
    assert isinstance(report, EngineReport)
    assert report.passed
    assert {batch: found.match_rate() for batch, found in report.agreements.items()} == {1: 1.0, 2: 1.0, 3: 1.0}
    assert {found.match_rate() for found in report.replays.values()} == {1.0}
    assert report.rows is not None
    assert report.rows.match_rate() == 1.0
    assert report.engine_layers["fp16"] > report.engine_layers["fp32"]
    details = [step.detail for step in steps if step.name == "build the engine" and step.detail]
    assert details == [f"Building Engine {done} of 2" for done in range(3)]
    (config,) = world.builds
    assert BuilderFlag.TF32 not in config.flags
    assert config.profiling_verbosity == ProfilingVerbosity.DETAILED
    (shapes,) = config.profiles[0].shapes.values()
    assert shapes == tuple((batch, 3, 128, 160) for batch in (1, 2, 3))
    with Predictor(target, 0.0) as predictor, Predictor(half_onnx, 0.0) as reference:
        assert predictor.info == reference.info
        one, other = predictor.detect(picture), reference.detect(picture)
        assert np.abs(one.boxes - other.boxes).max() < 0.01


def test_options_reach_the_builder(world: World, small_onnx: Path, tmp_path: Path) -> None:
    world.cuda.capability = (8, 6)
    cache = tmp_path / "timing.cache"
    options: dict[str, Any] = {
        "workspace": 0.5,
        "timing_cache": cache,
        "version_compatible": True,
        "hardware_compatible": True,
    }
    for expected in (b"+", b"++"):
        result = build_engine(small_onnx, tmp_path / "a.plan", EngineOptions(**options))
        assert cache.read_bytes() == expected
    cache.write_bytes(b"other machine")
    build_engine(small_onnx, tmp_path / "a.plan", EngineOptions(**options))
    assert cache.read_bytes() == b"+"
    config = world.builds[0]
    assert config.pools == {MemoryPoolType.WORKSPACE: 2**29}
    assert BuilderFlag.VERSION_COMPATIBLE in config.flags
    assert config.hardware_compatibility_level == HardwareCompatibilityLevel.AMPERE_PLUS
    assert config.profiles == []
    stored = json.loads(sidecar_path(result.path).read_text())
    assert (stored["profile"], stored["version_compatible"], stored["hardware_compatible"]) == ([1, 1, 1], True, True)


def _refused(world: World, onnx: Path, folder: Path, message: str) -> None:
    target = folder / "wrong.engine"
    with pytest.raises(ExportError, match=message):
        build_engine(onnx, target, EngineOptions(opt_batch=1, max_batch=2) if onnx.name == "half.onnx" else None)
    assert [path.name for path in folder.iterdir()] == []


def test_an_engine_that_samples_nearest_is_caught(
    world: World, small_onnx: Path, small_options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtdetr_export.pipeline.decide_sampler", lambda *_: "discrete")  # refused for this model
    world.instead = export_onnx(small_options("nearest.onnx", sampler="discrete", verify=False)).path.read_bytes()
    _refused(world, small_onnx, tmp_path, r"boxes and scores, batch 1: only 0\.\d+ of .*try `sampler=\"gather\"`")


def test_an_fp32_engine_called_fp16_is_caught(world: World, half_onnx: Path, tmp_path: Path) -> None:
    world.claims = "Float"
    _refused(world, half_onnx, tmp_path, r"\d+% of the graph's layers are fp16, and the engine's layers are \d+ fp32")


@pytest.mark.parametrize("rest", slow_except(["fp32", "fp16"], "fp16"))
def test_engines_of_int8_files_have_the_share_of_the_graph(
    rest: str, world: World, small_options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All layers but the decoder's are quantized; which ones would bear it is tested elsewhere."""
    Image.fromarray(structured_image(128, 160, 0)).save(tmp_path / "0.png")
    nothing = np.empty(0, np.float32)

    def choose(model: Any, nodes: list[QuantizableNode], *_: object) -> QuantizationPlan:
        blocks = tuple(dict.fromkeys(node.block for node in nodes if not node.block.startswith("decoder")))
        return QuantizationPlan((TradeOff(blocks, 0.7, Agreement((), 0, (), 0, nothing, nothing)),), 1)

    monkeypatch.setattr("rtdetr_export.precision.reduce.choose_blocks", choose)
    options = {"precision": "int8", "non_int8_precision": rest, "calibration": tmp_path, "verify": False, "layers": 1}
    onnx = export_onnx(small_options(f"engine-int8-{rest}.onnx", **options)).path
    (tmp_path / "0.png").unlink()
    result = build_engine(onnx, tmp_path / "good" / "int8.engine")
    assert result.info.precision == "int8"
    assert isinstance(result.report, EngineReport)
    assert result.report.engine_layers["int8"] > result.report.engine_layers[rest] > 0
    world.claims = {"fp32": "Float", "fp16": "Half"}[rest]
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    _refused(world, onnx, wrong, rf"\d+% of the graph's layers are int8, and the engine's layers are \d+ {rest}")


def test_rows_that_differ_are_caught(world: World, half_onnx: Path, tmp_path: Path) -> None:
    world.row_noise = 0.02
    _refused(world, half_onnx, tmp_path, r"equal images in one batch give other detections")


def test_an_engine_that_hides_its_layers_is_caught(world: World, half_onnx: Path, tmp_path: Path) -> None:
    world.claims = "?"
    _refused(world, half_onnx, tmp_path, "the inspector names no precision")


def test_nodes_that_the_parser_refuses_are_named(world: World, small_onnx: Path, tmp_path: Path) -> None:
    world.parser_errors = [ParserError("/a", "Resize", "not supported"), ParserError("/b", "TopK", "K is too large")]
    _refused(world, small_onnx, tmp_path, "can't parse small.onnx: Resize /a: not supported; TopK /b: K is too large")


def test_graphs_that_break_a_rule_are_refused_before_the_build(world: World, small_onnx: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(str(small_onnx))
    for node in model.graph.node:
        if node.op_type == "TopK":
            node.attribute.append(onnx.helper.make_attribute("sorted", 0))
            del node.attribute[:-1]
    broken = tmp_path.parent / "broken-topk.onnx"
    onnx.save(model, broken)
    _refused(world, broken, tmp_path, "TensorRT can't take broken-topk.onnx: error: .* unsorted results")
    assert world.builds == []


def test_files_of_others_are_refused(world: World, small_onnx: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(str(small_onnx))
    del model.metadata_props[:]
    other = tmp_path.parent / "other.onnx"
    onnx.save(model, other)
    _refused(world, other, tmp_path, "was not written by rtdetr-export")


def test_a_graph_that_replays_stale_outputs_is_caught(world: World, half_onnx: Path, tmp_path: Path) -> None:
    world.cuda.empties = True
    _refused(world, half_onnx, tmp_path, r"wrong: batch 1: a call replayed from its CUDA graph gives other detections")


def test_ctrl_c_ends_the_build(world: World, small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rtdetr_export.trt import build as to_tensorrt

    real, calls = futures.wait, []

    def interrupted(waited: Any, timeout: float | None = None) -> Any:
        calls.append(timeout)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(waited, timeout)

    monkeypatch.setattr(to_tensorrt, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_engine(small_onnx, tmp_path / "x.engine")
    assert calls == [0.2, None]
    assert list(tmp_path.iterdir()) == []


def test_hardware_compatible_engines_are_not_for_a_t4(world: World, small_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"for GPUs from Ampere on; this is Tesla T4 \(7.5\)"):
        build_engine(small_onnx, tmp_path / "x.engine", EngineOptions(hardware_compatible=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opt_batch": 9}, "`opt_batch` is 9, expected 1 to `max_batch`, 8"),
        ({"opt_batch": 4, "max_batch": 3}, "`opt_batch` is 4, expected 1 to `max_batch`, 3"),
        ({"opt_batch": 0}, "`opt_batch` is 0, expected a whole number from 1 up"),
        ({"max_batch": 1.5}, "`max_batch` is 1.5, expected a whole number from 1 up"),
        ({"workspace": 0.0}, "`workspace` is 0.0, expected GiB above 0"),
    ],
)
def test_values_outside_their_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        EngineOptions(**changes)


def test_one_call_does_what_the_command_does(
    world: World, small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--weights", str(small_checkpoint), "--layers", "1", "--size", "64x96", "--precision", "fp16"]
    command += ["--batch", "dynamic", "--max-batch", "2", "--output", str(tmp_path / "command.engine")]
    assert main(command) == 0
    assert "batch 1 to 2, fp16, for TensorRT 10.13.3.9 on Tesla T4" in capsys.readouterr().out
    options = ExportOptions(
        small_checkpoint, tmp_path / "call.engine", layers=1, size=(64, 96), precision="fp16", batch=None,
        engine=EngineOptions(max_batch=2),
    )  # fmt: skip
    steps: list[Step] = []
    result = export(options, steps.append)
    assert {path.name for path in tmp_path.glob("command*")} == {
        "command.engine", "command.engine.json", "command.engine.onnx",
    }  # fmt: skip
    for suffix in ("", ".json", ".onnx"):
        one, other = (tmp_path / f"{name}.engine{suffix}" for name in ("command", "call"))
        assert one.read_bytes() == other.read_bytes()
    assert result.engine_info is not None
    assert result.engine_info.profile == (1, 1, 2)
    assert result.onnx is not None
    assert result.onnx.path == tmp_path / "call.engine.onnx"
    assert all(report is not None and report.passed for report in (result.report, result.onnx.report))
    ended = [step.name for step in steps if step.seconds is not None]
    assert ended.index("verify against torch") < ended.index("build the engine")
    assert ended[-1] == "write call.engine"


def test_the_command_builds_from_a_file(
    world: World, small_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--weights", str(small_onnx), "--output", str(tmp_path / "small.engine")]) == 0
    assert "128x160, batch 1, fp32" in capsys.readouterr().out
    wrong = ["--weights", str(small_onnx), "--output", str(tmp_path / "x.engine")]
    assert main([*wrong, "--precision", "fp16"]) == 2
    assert "--precision is decided in small.onnx already" in capsys.readouterr().err
    assert main([*wrong, "--max-batch", "4"]) == 2
    assert "--max-batch: small.onnx takes batch 1 alone; export it with --batch dynamic" in capsys.readouterr().err
    assert main([*wrong, "--workspace", "0"]) == 2
    assert "expected GiB above 0" in capsys.readouterr().err
    assert main(["--weights", str(small_onnx), "--output", str(tmp_path / "x.onnx"), "--max-batch", "2"]) == 2
    assert "--max-batch is for engines; add --output NAME.engine" in capsys.readouterr().err


def test_an_engine_of_an_onnx_file_needs_no_torch(
    world: World, small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("torch", "rtdetr_export.pipeline"):
        monkeypatch.setitem(sys.modules, module, None)
    result = export(ExportOptions(small_onnx, tmp_path / "small.engine"))
    assert (result.path, result.onnx) == (tmp_path / "small.engine", None)
    assert result.report is not None
    assert result.report.passed


def test_what_an_engine_would_ignore_is_refused(world: World, r18_checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.engine"
    with pytest.raises(OptionError, match="`layers` is decided in small.onnx already; export it again"):
        ExportOptions(Path("small.onnx"), target, layers=2)
    with pytest.raises(
        OptionError, match='`max_batch`: the model takes batch 1 alone; export it with `batch="dynamic"`'
    ):
        ExportOptions(r18_checkpoint, target, engine=EngineOptions(max_batch=2))
    with pytest.raises(OptionError, match='`workspace` is for engines; add `output="NAME.engine"`'):
        ExportOptions(r18_checkpoint, engine=EngineOptions(workspace=1.0))
    with pytest.raises(OptionError, match="`output` is .*x.engine, an engine; rtdetr_export.export builds those too"):
        export_onnx(ExportOptions(r18_checkpoint, target))
    with pytest.raises(OptionError, match="`output` is x.onnx, expected a name that ends in .engine or .plan"):
        build_engine(tmp_path / "small.onnx", Path("x.onnx"))
    with pytest.raises(ExportError, match="none.onnx does not exist"):
        export(ExportOptions(tmp_path / "none.onnx", target))
    assert list(tmp_path.iterdir()) == []


def test_a_profile_that_tensorrt_refuses_is_named(
    world: World, dynamic_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_tensorrt.IBuilderConfig, "add_optimization_profile", lambda *_: -1)
    with pytest.raises(ExportError, match=r"refuses an optimization profile with batches \(1, 1, 8\)"):
        build_engine(dynamic_onnx, tmp_path / "x.engine")


def test_the_rest_of_int8_is_fp16_in_engines_and_fp32_in_onnx_files(tmp_path: Path) -> None:
    given: dict[str, Any] = {"precision": "int8", "calibration": tmp_path}
    engine = ExportOptions(Path("r50.pth"), tmp_path / "r50.engine", **given)
    assert engine.non_int8_precision == "fp16"
    assert engine.for_onnx().non_int8_precision == "fp16"
    assert engine.for_onnx().output == tmp_path / "r50.engine.onnx"
    assert ExportOptions(Path("r50.pth"), tmp_path / "r50.onnx", **given).non_int8_precision == "fp32"
    other = ExportOptions(Path("r50.pth"), tmp_path / "r50.PLAN", **given, non_int8_precision="fp32")
    assert other.for_onnx().non_int8_precision == "fp32"


def test_building_without_tensorrt_says_what_to_install(small_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingPackageError, match=r"building engines needs tensorrt, .*: pip install .*'tensorrt>="):
        build_engine(small_onnx, tmp_path / "x.engine")


def test_precisions_are_counted_by_what_layers_read() -> None:
    def layer(name: str, *types: str) -> dict[str, Any]:
        return {"Name": name, "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": kind} for kind in types]}

    layers = [
        layer("a", "Half NHWC8"),
        layer("b", "Channel major FP16 format where channel % 8 == 0"),
        layer("c", "Int8 NC/32HW32"),
        layer("d", "Row major linear FP32"),
        {"Name": "shuffle", "LayerType": "Shuffle", "Inputs": [{"Format/Datatype": "Half"}]},
        "a name only",
    ]
    assert count_precisions(layers) == {"fp16": 2, "int8": 1, "fp32": 1}
    split = {"LayerType": "gemm", "Inputs": [{"Datatype": "Half", "Format": "NHWC8"}]}  # from TensorRT 11 on
    hidden = {"LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "N/A due to dynamic shapes"}]}
    reformat = {"LayerType": "Reformat", "Name": "copy for conv1", "Inputs": [{"Format/Datatype": "Float"}]}
    assert count_precisions([split, hidden, reformat]) == {"fp16": 1}
    assert count_precisions([{**hidden, "Weights": {"Type": "Half", "Count": 9}}]) == {"fp16": 1}
    assert count_precisions([{**hidden, "TacticName": "sm75_xmma_fprop_i8i8_i8i32"}]) == {"int8": 1}
    assert count_precisions([{"LayerType": "gemm", "Inputs": None}]) == {}


def test_a_good_report_has_no_problems(world: World, half_onnx: Path, tmp_path: Path) -> None:
    options = EngineOptions(opt_batch=1, max_batch=2)
    report = build_engine(half_onnx, tmp_path / "a.engine", options).report
    assert isinstance(report, EngineReport)
    assert report.problems() == []
    assert "layers of the engine: " in str(report)


@pytest.mark.parametrize("version", ["10.13.3.9", "10.16.1.11", "11.4.0.106"])
def test_the_builders_double_has_only_what_the_bindings_have(version: str) -> None:
    api = json.loads((shared_folder("tensorrt") / f"api_{version}.json").read_text())
    methods = {
        "Builder": (
            "create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network",
        ),
        "OnnxParser": ("parse_from_file", "get_error"),
        "ParserError": ("node_name", "node_operator", "desc"),
        "INetworkDefinition": ("get_input",),
        "IOptimizationProfile": ("set_shape",),
        "IBuilderConfig": (
            "set_flag", "clear_flag", "set_memory_pool_limit", "add_optimization_profile", "create_timing_cache",
            "set_timing_cache",
        ),
        "ITimingCache": ("serialize",),
        "EngineInspector": ("get_engine_information",),
        "IProgressMonitor": ("phase_start", "step_complete", "phase_finish"),
        "ICudaEngine": ("create_engine_inspector",),
    }  # fmt: skip
    for name, members in methods.items():
        assert set(members) <= set(api["classes"][name]["methods"]), name
    assert {"profiling_verbosity", "hardware_compatibility_level", "progress_monitor"} <= set(
        api["classes"]["IBuilderConfig"]["props"]
    )
    assert {"num_errors"} <= set(api["classes"]["OnnxParser"]["props"])
    for name in ("BuilderFlag", "MemoryPoolType", "HardwareCompatibilityLevel", "ProfilingVerbosity"):
        assert {member.name for member in getattr(fake_tensorrt, name)} <= set(api["enums"][name])
    assert "STRONGLY_TYPED" in api["enums"]["NetworkDefinitionCreationFlag"]
    assert "JSON" in api["enums"]["LayerInformationFormat"]
