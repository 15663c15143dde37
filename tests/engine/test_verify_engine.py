"""Verifying engines over strict doubles: wrong engines are caught, refused ones kept for diagnosis or accepted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

import fake_tensorrt
from conftest import slow_except
from engine_world import make_engine
from fake_tensorrt import BuilderFlag, ProfilingVerbosity
from onnx_files import write_released_style
from rtdetr_deploy import ArtifactError, ExportError, OptionError, OutputError, Predictor, open_runtime
from rtdetr_deploy.artifacts.metadata import METADATA_KEY, ArtifactInfo
from rtdetr_deploy.runtimes.trt.layer_precision import count_precisions
from rtdetr_deploy.runtimes.trt.runtime import TensorRtRuntime
from rtdetr_deploy.runtimes.trt.sidecar import sidecar_path
from rtdetr_export import EngineOptions, ExportOptions, Step, build_engine, export, export_onnx
from rtdetr_export.cli import main
from rtdetr_export.precision.int8 import Scheme
from rtdetr_export.precision.sensitivity import QuantizationPlan, TradeOff
from rtdetr_export.verify.agreement import Agreement
from rtdetr_export.verify.engine import EngineReport
from rtdetr_export.verify.reference import open_reference
from rtdetr_export.verify.synthetic_images import structured_image
from test_build_engine import refused

pytest_plugins = ("engine_world",)

KEPT = ("refused", "log", "layers.json")

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


def test_an_engine_that_samples_nearest_is_caught(
    world: World, small_onnx: Path, small_options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtdetr_export.pipeline.decide_sampler", lambda *_: "discrete")  # refused for this model
    world.instead = export_onnx(small_options("nearest.onnx", sampler="discrete", verify=False)).path.read_bytes()
    refused(small_onnx, tmp_path, r"boxes and scores, batch 1: only 0\.\d+ of .*try `sampler=\"gather\"`", *KEPT)


def test_an_fp32_engine_called_fp16_is_caught(world: World, half_onnx: Path, tmp_path: Path) -> None:
    world.claims = "Float"
    refused(half_onnx, tmp_path, r"\d+% of the graph's layers are fp16, and the engine's layers are \d+ fp32", *KEPT)


@pytest.fixture
def quantized(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Options for an INT8 export of all but the decoder's layers; which of them would bear it is tested elsewhere."""
    folder = tmp_path / "calibration"
    folder.mkdir()
    Image.fromarray(structured_image(128, 160, 0)).save(folder / "0.png")
    nothing = np.empty(0, np.float32)

    def choose(model: Any, scheme: Scheme, *_: object) -> QuantizationPlan:
        blocks = tuple(dict.fromkeys(node.block for node in scheme.nodes if not node.block.startswith("decoder")))
        return QuantizationPlan((TradeOff(blocks, 0.7, Agreement((), 0, (), 0, nothing, nothing)),), len(blocks))

    monkeypatch.setattr("rtdetr_export.precision.reduce.choose_blocks", choose)
    return {"precision": "int8", "calibration": folder, "verify": False, "layers": 1}


@pytest.mark.parametrize("rest", slow_except(["fp32", "fp16"], "fp16"))
def test_engines_of_int8_files_have_the_share_of_the_graph(
    rest: str, world: World, small_options: Any, quantized: dict[str, Any], tmp_path: Path
) -> None:
    quantized |= {"target": "tensorrt", "non_int8_precision": rest}
    onnx = export_onnx(small_options(f"engine-int8-{rest}.onnx", **quantized)).path
    result = build_engine(onnx, tmp_path / "good" / "int8.engine")
    assert result.info.precision == "int8"
    assert isinstance(result.report, EngineReport)
    assert result.report.engine_layers["int8"] > result.report.engine_layers[rest] > 0
    world.claims = {"fp32": "Float", "fp16": "Half"}[rest]
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    refused(onnx, wrong, rf"\d+% of the graph's layers are int8, and the engine's layers are \d+ {rest}", *KEPT)


def test_int8_engines_are_judged_against_fp32(
    world: World, small_checkpoint: Path, quantized: dict[str, Any], tmp_path: Path
) -> None:
    """Kernels that lose nothing are far from ONNX Runtime's emulation of INT8, and were refused for it."""
    options = ExportOptions(small_checkpoint, tmp_path / "fp32.onnx", layers=1, size=(128, 160), raw_input=True)
    fp32 = export(options).path
    world.instead, world.claims = fp32.read_bytes(), "Int8"
    target = tmp_path / "cells.engine"
    result = export(replace(options, output=target, target=None, **quantized))
    assert result.report is not None
    assert str(result.report).startswith("TensorRT 10.13.3.9 (Tesla T4) against FP32 (cells-fp32.onnx) on 1 image:")
    assert "extra (at least 90.0% must be, at most 10.0% extra; 3 of each are allowed)" in str(result.report)
    int8 = tmp_path / "cells.engine.onnx"
    build_engine(int8, tmp_path / "again.engine", EngineOptions(reference=fp32))
    with pytest.raises(
        OptionError, match="`reference` cells.pth has layers 3, and the engine 1; give the same model's"
    ):
        build_engine(int8, tmp_path / "x.engine", EngineOptions(reference=small_checkpoint))
    _store_match_rate(int8, 1.0)
    message = r"of those of ONNX Runtime, \d+ extra \(at least 98.0% must be, at most 2.0% extra; 3 of each"
    with pytest.raises(ExportError, match=message):
        build_engine(int8, tmp_path / "wrong.engine")
    _store_match_rate(int8, 0.9)
    build_engine(int8, tmp_path / "right.engine")


def _store_match_rate(path: Path, rate: float) -> None:
    """Let the INT8 file at `path` say that it keeps this share of FP32's detections."""
    info = open_runtime(path).info
    assert isinstance(info, ArtifactInfo)
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {METADATA_KEY: replace(info, match_rate=rate).to_json()})
    onnx.save(model, str(path))


def test_a_checkpoint_is_a_reference_too(world: World, small_checkpoint: Path, tmp_path: Path) -> None:
    onnx = export(ExportOptions(small_checkpoint, tmp_path / "a.onnx", size=(64, 96))).path
    result = build_engine(onnx, tmp_path / "a.engine", EngineOptions(reference=small_checkpoint))
    assert str(result.report).startswith("TensorRT 10.13.3.9 (Tesla T4) against FP32 (cells.pth) on 4 images:")


def test_a_reference_must_be_the_same_model_in_fp32(
    world: World, small_onnx: Path, half_onnx: Path, small_export: Any, small_checkpoint: Path, tmp_path: Path
) -> None:
    third_party = tmp_path / "third-party.onnx"
    write_released_style(third_party)
    for reference, message in (
        (half_onnx, "`reference` half.onnx is fp16, expected fp32"),
        (small_export("wide.onnx", size=(128, 192)), r"wide.onnx has size \(128, 192\), and the engine \(128, 160\)"),
        (third_party, "`reference` third-party.onnx was not written by rtdetr-export, and is not a checkpoint"),
    ):
        with pytest.raises(OptionError, match=message):
            build_engine(small_onnx, tmp_path / "x.engine", EngineOptions(reference=reference))
    with pytest.raises(ExportError, match="none.onnx does not exist"):
        export(ExportOptions(small_onnx, tmp_path / "x.engine", engine=EngineOptions(reference=tmp_path / "none.onnx")))
    with pytest.raises(OptionError, match="`reference` is for engines of .onnx files; leave it out"):
        ExportOptions(small_checkpoint, tmp_path / "x.engine", engine=EngineOptions(reference=small_onnx))


@pytest.mark.parametrize(
    ("precision", "match_rate", "bar"),
    [("fp32", None, 0.98), ("fp16", 0.99, 0.98), ("int8", 0.975, 0.93), ("int8", None, 0.78)],
)
def test_the_bar_of_an_int8_file_is_scaled_by_its_own_agreement(
    precision: str, match_rate: float | None, bar: float, small_onnx: Path
) -> None:
    info = open_runtime(small_onnx).info
    assert isinstance(info, ArtifactInfo)
    reference = open_reference(None, small_onnx, replace(info, precision=precision, match_rate=match_rate))
    assert reference.limits.min_match_rate == pytest.approx(bar)
    assert reference.limits.max_spurious == pytest.approx(1.0 - bar)
    reference.runtime.close()


def test_files_of_lower_precision_store_how_much_of_fp32_they_keep(half_onnx: Path, small_onnx: Path) -> None:
    rates = [info.match_rate for path in (half_onnx, small_onnx) if (info := open_runtime(path).info) is not None]
    assert rates[0] is not None
    assert rates[0] > 0.98
    assert rates[1] is None


def test_rows_that_differ_are_caught(world: World, half_onnx: Path, tmp_path: Path) -> None:
    world.row_noise = 0.02
    refused(half_onnx, tmp_path, r"equal images in one batch give other detections", *KEPT)


def test_an_engine_that_hides_its_layers_is_caught(world: World, half_onnx: Path, tmp_path: Path) -> None:
    world.claims = "?"
    refused(half_onnx, tmp_path, "the inspector names no precision", *KEPT)


def test_a_graph_that_replays_stale_outputs_is_caught(world: World, half_onnx: Path, tmp_path: Path) -> None:
    world.cuda.empties = True
    refused(half_onnx, tmp_path, "written: batch 1: a call replayed from its CUDA graph gives other detections", *KEPT)


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


def test_a_refused_engine_is_kept_with_what_explains_it(world: World, half_onnx: Path, tmp_path: Path) -> None:
    world.row_noise = 0.02
    error = refused(half_onnx, tmp_path, "equal images in one batch give other detections", *KEPT)
    target = tmp_path / "wrong.engine"
    files = [target.with_name(f"{target.name}.{suffix}") for suffix in KEPT]
    assert error.endswith(f"; `accept=True` writes it all the same; for diagnosis see {', '.join(map(str, files))}")
    assert files[0].read_bytes().startswith(fake_tensorrt.MAGIC)
    log = files[1].read_text()
    assert re.match(r"rtdetr-deploy \S+, TensorRT 10.13.3.9\nGPU 0: Tesla T4, compute capability 7.5, 16384 MiB\n", log)
    for part in ("half.onnx: SHA-256 ", "max_batch=2", "trtexec --onnx=", "[INFO] Detected 1", "equal images in"):
        assert part in log, part
    assert json.loads(files[2].read_text())["Layers"][0]["LayerType"] == "CaskConvolution"
    world.build_error = "no kernel"
    refused(half_onnx, tmp_path, "no kernel", "log")  # what is kept belongs to one build
    world.row_noise, world.build_error = 0.0, ""
    build_engine(half_onnx, target, EngineOptions(max_batch=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wrong.engine", "wrong.engine.json"]
    build_engine(half_onnx, target, EngineOptions(max_batch=2, keep_log=True))
    assert files[1].exists()
    assert files[2].exists()
    assert not files[0].exists()


def test_an_engine_that_cannot_run_is_kept_too(
    world: World, small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_tensorrt.EngineInspector, "get_engine_information", lambda *_: "nothing")
    with pytest.raises(ArtifactError, match=r"inspector gives no layers .*x.engine.refused, .*x.engine.log$"):
        build_engine(small_onnx, tmp_path / "x.engine", EngineOptions(accept=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.engine.log", "x.engine.refused"]


def test_what_cannot_be_kept_hides_no_error(
    world: World, half_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise OutputError("no space")

    monkeypatch.setattr("rtdetr_export.trt.diagnosis.write_bytes", refuse)
    world.row_noise = 0.02
    assert "for diagnosis" not in refused(half_onnx, tmp_path, "equal images in one batch")


def test_a_wrong_engine_can_be_accepted_and_says_so(
    world: World, half_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], picture: NDArray[np.uint8]
) -> None:
    world.row_noise = 0.02
    target = tmp_path / "a.engine"
    command = ["--weights", str(half_onnx), "--output", str(target), "--max-batch", "2"]
    assert main(command) == 2
    assert "; --accept writes it all the same; for diagnosis see" in capsys.readouterr().err
    assert main([*command, "--accept"]) == 0
    assert re.search(r"\naccepted in spite of: .*equal images in one batch", capsys.readouterr().out)
    stored = json.loads(sidecar_path(target).read_text())
    assert stored["accepted"] is True
    assert "\n  wrong: equal images in one batch give other detections" in stored["report"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.engine", "a.engine.json", "a.engine.log", "a.engine.layers.json",
    }  # fmt: skip
    with pytest.warns(UserWarning, match="a.engine failed its verification and was accepted"):
        predictor = Predictor(target, 0.0)
    assert len(predictor.detect(picture)) == 300
    predictor.close()
    world.row_noise = 0.0
    assert build_engine(half_onnx, target, EngineOptions(accept=True)).engine_info.accepted is False  # type: ignore[union-attr]


def test_plain_calls_replay_nothing(world: World, dynamic_onnx: Path, tmp_path: Path) -> None:
    runtime = open_runtime(make_engine(dynamic_onnx, tmp_path))
    assert isinstance(runtime, TensorRtRuntime)
    feed = {"images": np.random.default_rng(0).integers(0, 256, (2, 128, 160, 3), np.uint8)}
    with runtime.plain():
        plain = [runtime.run(feed) for _ in range(3)]
    assert world.cuda.launches == 0
    replayed = runtime.run(feed)
    assert world.cuda.launches == 1
    with runtime.plain():
        plain.append(runtime.run(feed))
    assert world.cuda.launches == 1
    assert all(np.array_equal(replayed[name], one[name]) for one in plain for name in replayed)
    runtime.close()


def test_a_good_report_has_no_problems(world: World, half_onnx: Path, tmp_path: Path) -> None:
    options = EngineOptions(opt_batch=1, max_batch=2)
    report = build_engine(half_onnx, tmp_path / "a.engine", options).report
    assert isinstance(report, EngineReport)
    assert report.problems() == []
    assert "layers of the engine: " in str(report)
