"""Building engines over strict doubles: what is asked of TensorRT, and what is refused before it is asked."""

from __future__ import annotations

import json
import os
import sys
import threading
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fake_tensorrt
from conftest import shared_folder
from fake_tensorrt import (
    BuilderFlag,
    HardwareCompatibilityLevel,
    MemoryPoolType,
    ParserError,
    TilingOptimizationLevel,
)
from rtdetr_deploy import ExportError, MissingPackageError, OptionError, OutputError
from rtdetr_deploy.runtimes.trt.sidecar import sidecar_path
from rtdetr_export import EngineOptions, ExportOptions, Step, build_engine, export, export_onnx
from rtdetr_export.cli import main
from rtdetr_export.trt.build import info_of, write_engine
from rtdetr_export.trt.builder import build
from rtdetr_export.trt.diagnosis import Diagnosis
from rtdetr_export.trt.lint import load_model

pytest_plugins = ("engine_world",)


World = fake_tensorrt.World


def refused(onnx: Path, folder: Path, message: str, *kept: str) -> str:
    """Build an engine that must be refused, and return the error; files called wrong.engine.KEPT are left alone."""
    target = folder / "wrong.engine"
    with pytest.raises(ExportError, match=message) as caught:
        build_engine(onnx, target, EngineOptions(opt_batch=1, max_batch=2) if onnx.name == "half.onnx" else None)
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{target.name}.{suffix}" for suffix in kept)
    return str(caught.value)


def test_options_reach_the_builder(world: World, small_onnx: Path, tmp_path: Path) -> None:
    world.cuda.capability = (8, 6)
    cache = tmp_path / "timing.cache"
    options: dict[str, Any] = {
        "workspace": 0.5,
        "timing_cache": cache,
        "version_compatible": True,
        "hardware_compatible": True,
        "optimization_level": 0,
        "max_aux_streams": 0,
        "tiling_level": "moderate",
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
    assert (config.builder_optimization_level, config.max_aux_streams) == (0, 0)
    assert config.tiling_optimization_level == TilingOptimizationLevel.MODERATE
    assert config.profiles == []
    build_engine(small_onnx, tmp_path / "b.plan", EngineOptions(hardware_compatible="same-compute-capability"))
    assert world.builds[-1].hardware_compatibility_level == HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    stored = json.loads(sidecar_path(result.path).read_text())
    assert (stored["profile"], stored["version_compatible"], stored["hardware_compatible"]) == (
        [1, 1, 1], True, "ampere+",
    )  # fmt: skip


def test_what_is_not_chosen_is_left_to_tensorrt(world: World, small_onnx: Path, tmp_path: Path) -> None:
    build_engine(small_onnx, tmp_path / "a.plan")
    (config,) = world.builds
    untouched = fake_tensorrt.IBuilderConfig()
    names = ("builder_optimization_level", "max_aux_streams", "tiling_optimization_level", "pools")
    for name in (*names, "hardware_compatibility_level"):
        assert getattr(config, name) == getattr(untouched, name), name


@pytest.mark.parametrize(("device", "number"), [(None, 0), ("cuda", 0), ("cuda:1", 1)])
def test_an_engine_is_built_and_verified_on_the_gpu_that_was_asked_for(
    device: str | None, number: int, world: World, small_onnx: Path, tmp_path: Path
) -> None:
    world.cuda.gpus = 2
    used = set()
    execute = fake_tensorrt.IExecutionContext.execute_async_v3

    def spied(self: Any, stream_handle: int) -> bool:
        used.add(world.cuda.current)
        return execute(self, stream_handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_tensorrt.IExecutionContext, "execute_async_v3", spied)
        build_engine(small_onnx, tmp_path / "a.engine", EngineOptions(device=device, keep_log=True))
    assert world.builds[0].built_on == number
    assert used == {number}
    assert world.cuda.current == 0
    assert f"\nGPU {number}: Tesla T4" in (tmp_path / "a.engine.log").read_text()


def test_the_callers_current_gpu_is_the_one_that_is_built_for(world: World, small_onnx: Path, tmp_path: Path) -> None:
    world.cuda.gpus = 2
    world.cuda.current = 1
    build_engine(small_onnx, tmp_path / "a.engine")
    assert world.builds[0].built_on == 1
    assert world.cuda.current == 1


def test_a_gpu_that_is_not_there_is_told(
    world: World, small_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--weights", str(small_onnx), "--output", str(tmp_path / "x.engine"), "--device"]
    assert main([*command, "cuda:1"]) == 2
    assert "GPU 1 can't be used: CUDA finds 1 GPU, counted from 0" in capsys.readouterr().err
    assert main([*command, "cpu"]) == 2
    assert "--device cpu is not for engines: they are built on NVIDIA GPUs" in capsys.readouterr().err
    assert main([*command, "gpu0"]) == 2
    assert "--device is 'gpu0', but TensorRT runs on" in capsys.readouterr().err


def test_a_failed_build_keeps_its_log(world: World, small_onnx: Path, tmp_path: Path) -> None:
    world.build_error = "Could not find any implementation for node {ForeignNode[...]}"
    error = refused(small_onnx, tmp_path, r"can't build small.onnx: Could not find any implementation for node", "log")
    assert error.endswith(f"; for diagnosis see {tmp_path / 'wrong.engine.log'}")
    log = (tmp_path / "wrong.engine.log").read_text()
    assert "[INFO] Detected 1 inputs" in log
    assert "[ERROR] Could not find any implementation" in log
    assert "\ntrtexec --onnx=" in log


def build_alone(onnx: Path, options: EngineOptions) -> bytes:
    """Return the engine that TensorRT makes of a file, not verified."""
    info = info_of(load_model(onnx), onnx.name)
    return build(onnx, options, info, lambda *_: None, threading.Event())


CAN_BUILD = "can't build dynamic.onnx"
CAN_PARSE = "can't parse dynamic.onnx"


@pytest.mark.parametrize(
    ("where", "call", "failure"),
    [
        ("Builder", "create_network", CAN_PARSE),
        ("OnnxParser", "__init__", CAN_PARSE),
        ("OnnxParser", "parse_from_file", CAN_PARSE),
        ("Builder", "create_builder_config", CAN_BUILD),
        ("IBuilderConfig", "clear_flag", CAN_BUILD),
        ("IBuilderConfig", "set_memory_pool_limit", CAN_BUILD),
        ("Builder", "create_optimization_profile", CAN_BUILD),
        ("IOptimizationProfile", "set_shape", CAN_BUILD),
        ("IBuilderConfig", "add_optimization_profile", CAN_BUILD),
        ("IProgressMonitor", "__init__", CAN_BUILD),
        ("IBuilderConfig", "create_timing_cache", CAN_BUILD),
        ("IBuilderConfig", "set_timing_cache", CAN_BUILD),
        ("Builder", "build_serialized_network", CAN_BUILD),
    ],
)
def test_what_the_bindings_raise_is_told(
    where: str,
    call: str,
    failure: str,
    world: World,
    dynamic_onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        world.say(fake_tensorrt.ILogger.ERROR, "[checkMacros.cpp::catchCudaError::212] out of memory")
        raise RuntimeError("std::exception")

    monkeypatch.setattr(getattr(fake_tensorrt, where), call, fail)
    options = EngineOptions(workspace=1.0, timing_cache=tmp_path / "t.cache")
    with pytest.raises(ExportError, match=rf"TensorRT 10.13.3.9 {failure}: .*out of memory$"):
        build_alone(dynamic_onnx, options)


@pytest.mark.parametrize("kind", [RuntimeError, TypeError, ValueError, IndexError, MemoryError])
def test_what_the_bindings_raise_keeps_a_log(
    kind: type[Exception], world: World, small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        world.say(fake_tensorrt.ILogger.ERROR, "[checkMacros.cpp::catchCudaError::212] out of memory")
        raise kind("std::exception")

    monkeypatch.setattr(fake_tensorrt.Builder, "create_builder_config", fail)
    error = refused(small_onnx, tmp_path, "can't build small.onnx: .*out of memory", "log")
    assert error.endswith("; for diagnosis see " + str(tmp_path / "wrong.engine.log"))
    assert "[ERROR] [checkMacros.cpp" in (tmp_path / "wrong.engine.log").read_text()


@pytest.mark.parametrize("call", ["create_network", "create_builder_config", "create_optimization_profile"])
def test_a_factory_that_gives_nothing_is_told(
    call: str, world: World, dynamic_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_tensorrt.Builder, call, lambda *_: None)
    with pytest.raises(ExportError, match="dynamic.onnx: TensorRT returned nothing"):
        build_alone(dynamic_onnx, EngineOptions())


def test_a_setting_that_the_bindings_refuse_is_told(
    world: World, small_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, value: Any) -> None:
        if value == fake_tensorrt.ProfilingVerbosity.DETAILED:
            raise TypeError("(): incompatible function arguments")

    monkeypatch.setattr(fake_tensorrt.IBuilderConfig, "profiling_verbosity", property(None, refuse), raising=False)
    with pytest.raises(ExportError, match=r"can't build small.onnx: \(\): incompatible function arguments"):
        build_alone(small_onnx, EngineOptions())


def test_a_timing_cache_that_cannot_be_read_is_said_before_the_export(
    world: World, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtdetr_export.targets.require", lambda *_: pytest.fail("work was begun"))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for cache, kind, message in (
        (tmp_path, OptionError, f"{tmp_path} is a folder; name the file in it"),
        (pipe, OptionError, "pipe is a pipe or a device, expected a regular file"),
        (Path(__file__, "t.cache"), OutputError, "can't write .*t.cache: .*[Nn]ot a (folder|directory)"),
    ):
        options = ExportOptions(small_checkpoint, tmp_path / "x.engine", engine=EngineOptions(timing_cache=cache))
        with pytest.raises(kind, match=message):
            export(options)


def test_a_timing_cache_that_breaks_later_is_an_error_or_a_warning(
    world: World, small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EngineOptions(timing_cache=tmp_path / "t.cache")
    with monkeypatch.context() as patch:
        patch.setattr(fake_tensorrt.ITimingCache, "serialize", lambda _: None)
        with pytest.warns(UserWarning, match="the timing cache was not written: TensorRT returned nothing"):
            assert build_alone(small_onnx, options)
    (tmp_path / "t.cache").write_bytes(b"here")
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.name == "t.cache":
            raise OSError(5, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OptionError, match=r"can't read .*t.cache: Input/output error"):
        build_alone(small_onnx, options)


def test_an_engine_that_cannot_be_put_in_its_place_leaves_the_old_one_whole(
    world: World, small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "x.engine"
    built = build_engine(small_onnx, target).engine_info
    assert built is not None
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    rename = os.replace

    def fail(source: Path, destination: Path) -> None:
        if Path(destination).name == target.name:
            raise OSError(1, "Operation not permitted")
        rename(source, destination)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match=r"can't write .*x.engine: Operation not permitted"):
        write_engine(target, b"another", replace(built, engine_digest="another"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


THIRD_PARTY = {"x.engine.log": "&&&& RUNNING TensorRT.trtexec", "x.engine.layers.json": '{"Layers": [{"Name": "a"}]}'}


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    for name, text in THIRD_PARTY.items():
        (tmp_path / name).write_text(text)
    diagnosis = Diagnosis(tmp_path / "x.engine", "rtdetr-deploy 0.2.0, TensorRT 10.13.3.9\nGPU 0")
    diagnosis.layers = [{"Name": "a"}]
    for _ in range(2):
        kept = diagnosis.keep(refused=b"engine")
        assert [path.name for path in kept] == ["x.engine.refused", "x.engine.build.log", "x.engine.build.layers.json"]
        assert {path.name for path in tmp_path.iterdir()} == {path.name for path in kept} | THIRD_PARTY.keys()
    diagnosis.clear()
    assert {path.name for path in tmp_path.iterdir()} == THIRD_PARTY.keys()
    assert {name: (tmp_path / name).read_text() for name in THIRD_PARTY} == THIRD_PARTY


@pytest.mark.parametrize("suffix", ["json", "onnx", "log", "refused", "layers.json", "build.log"])
def test_what_lies_beside_an_engine_is_not_overwritten(suffix: str, small_checkpoint: Path, tmp_path: Path) -> None:
    taken = tmp_path / f"x.engine.{suffix}"
    taken.write_text("cell\n")
    options = ExportOptions(small_checkpoint, tmp_path / "x.engine", class_names=taken)
    with pytest.raises(OutputError, match=rf"would overwrite the input .*x\.engine\.{suffix}; choose another file"):
        export(options)
    assert taken.read_text() == "cell\n"


def test_a_missing_lean_runtime_is_named(world: World, small_onnx: Path, tmp_path: Path) -> None:
    world.build_error = "Unable to load library: libnvinfer_lean.so.10"
    with pytest.raises(ExportError, match=r"pip install tensorrt-lean==10.13.3.9 .*tensorrt-lean-cu12==10.13.3.9"):
        build_engine(small_onnx, tmp_path / "x.engine", EngineOptions(version_compatible=True))


def test_what_an_older_tensorrt_lacks_is_told_before_the_build(
    world: World, small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(fake_tensorrt, "TilingOptimizationLevel")
    monkeypatch.setattr(fake_tensorrt, "HardwareCompatibilityLevel", SimpleNamespace(NONE=0, AMPERE_PLUS=1))
    for options, name in (
        (EngineOptions(tiling_level="fast"), 'tiling_level="fast"'),
        (EngineOptions(hardware_compatible="same-compute-capability"), 'hardware_compatible="same-compute-capability"'),
    ):
        with pytest.raises(OptionError, match=f"`{name}` is not known to TensorRT 10.13.3.9; update it"):
            build_engine(small_onnx, tmp_path / "x.engine", options)
    assert world.builds == []


def test_nodes_that_the_parser_refuses_are_named(world: World, small_onnx: Path, tmp_path: Path) -> None:
    world.parser_errors = [ParserError("/a", "Resize", "not supported"), ParserError("/b", "TopK", "K is too large")]
    refused(small_onnx, tmp_path, "can't parse small.onnx: Resize /a: not supported; TopK /b: K is too large", "log")


def test_graphs_that_break_a_rule_are_refused_before_the_build(world: World, small_onnx: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(str(small_onnx))
    for node in model.graph.node:
        if node.op_type == "TopK":
            node.attribute.append(onnx.helper.make_attribute("sorted", 0))
            del node.attribute[:-1]
    broken = tmp_path.parent / "broken-topk.onnx"
    onnx.save(model, broken)
    refused(broken, tmp_path, "TensorRT can't take broken-topk.onnx: error: .* unsorted results")
    assert world.builds == []


def test_files_of_others_are_refused(world: World, small_onnx: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(str(small_onnx))
    del model.metadata_props[:]
    other = tmp_path.parent / "other.onnx"
    onnx.save(model, other)
    refused(other, tmp_path, "was not written by rtdetr-export")


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


def test_compatible_engines_need_a_gpu_that_can_build_them(
    world: World, small_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--weights", str(small_onnx), "--output", str(tmp_path / "x.engine")]
    assert main([*command, "--hardware-compatible"]) == 2
    expected = "--hardware-compatible ampere+ is for GPUs from Ampere on; this is Tesla T4 (7.5)"
    assert expected in capsys.readouterr().err
    assert main([*command, "--hardware-compatible", "same-compute-capability"]) == 0
    world.cuda.capability = (7, 0)
    with pytest.raises(OptionError, match=r'capability"` is for GPUs from Turing on; this is Tesla T4 \(7.0\)'):
        build_engine(small_onnx, tmp_path / "x.engine", EngineOptions(hardware_compatible="same-compute-capability"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opt_batch": 9}, "`opt_batch` is 9, expected 1 to `max_batch`, 8"),
        ({"opt_batch": 4, "max_batch": 3}, "`opt_batch` is 4, expected 1 to `max_batch`, 3"),
        ({"opt_batch": 0}, "`opt_batch` is 0, expected a whole number from 1 up"),
        ({"max_batch": 1.5}, "`max_batch` is 1.5, expected a whole number from 1 up"),
        ({"workspace": 0.0}, "`workspace` is 0.0, expected GiB above 0"),
        ({"optimization_level": 6}, "`optimization_level` is 6, expected a whole number from 0 to 5"),
        ({"optimization_level": True}, "`optimization_level` is True, expected a whole number from 0 to 5"),
        ({"max_aux_streams": -1}, "`max_aux_streams` is -1, expected a whole number from 0 up"),
        ({"tiling_level": "best"}, "`tiling_level` is 'best', expected none, fast, moderate or full"),
        ({"hardware_compatible": "turing"}, r"`hardware_compatible` is 'turing', expected none, ampere\+ or same-comp"),
        ({"device": "cpu"}, '`device="cpu"` is not for engines: they are built on NVIDIA GPUs; leave it out'),
        ({"device": 1}, "`device` is '1', but TensorRT runs on cuda or cuda:1"),
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
    printed = capsys.readouterr().out
    assert "batch 1 to 2, fp16, for TensorRT 10.13.3.9 on Tesla T4" in printed
    assert f"the same with NVIDIA's tool: trtexec --onnx={tmp_path}/command.engine.onnx --saveEngine=" in printed
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


def test_what_an_engine_would_ignore_isrefused(world: World, r18_checkpoint: Path, tmp_path: Path) -> None:
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
    with pytest.raises(
        MissingPackageError, match=r"building engines needs tensorrt, .*: pip install .*'tensorrt(-cu12)?[<>]"
    ):
        build_engine(small_onnx, tmp_path / "x.engine")


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
    assert {
        "profiling_verbosity", "hardware_compatibility_level", "progress_monitor", "builder_optimization_level",
        "max_aux_streams", "tiling_optimization_level",
    } <= set(api["classes"]["IBuilderConfig"]["props"])  # fmt: skip
    assert {"num_errors"} <= set(api["classes"]["OnnxParser"]["props"])
    enums = ("BuilderFlag", "MemoryPoolType", "HardwareCompatibilityLevel", "TilingOptimizationLevel")
    for name in (*enums, "ProfilingVerbosity"):
        assert {member.name for member in getattr(fake_tensorrt, name)} <= set(api["enums"][name])
    assert "STRONGLY_TYPED" in api["enums"]["NetworkDefinitionCreationFlag"]
    assert "JSON" in api["enums"]["LayerInformationFormat"]
