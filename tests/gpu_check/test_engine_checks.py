"""The checks of TensorRT over its double: every kind of engine is built, and planted defects are found."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import fake_tensorrt
from conftest import slow_except
from engine_world import make_engine
from gpu_check.check import CheckFailedError, Situation, SkippedError
from gpu_check.checks import engine
from gpu_check.checks.engine import BUILDS, FP16, Build, check_build, check_engine
from gpu_check.options import CheckOptions
from gpu_check.table import CHECKS
from rtdetr_deploy import ExportError
from rtdetr_deploy.runtimes.trt.cuda import Cuda
from rtdetr_deploy.runtimes.trt.runtime import TensorRtRuntime
from rtdetr_train.data.smears import write_smears

pytest_plugins = ("engine_world",)

SMALL: dict[str, Any] = {"size": (64, 96), "layers": 1}
BY_NAME = {build.name: build for build in BUILDS}


def small(build: Build) -> Build:
    return replace(build, export={**build.export, **SMALL})


@pytest.fixture
def situation(
    world: fake_tensorrt.World, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Situation:
    world.profile = (1, 1, 1)
    monkeypatch.setattr(engine, "KEPT", tmp_path / "build" / "gpu-check")
    monkeypatch.setattr(engine, "FP16", small(FP16))
    monkeypatch.setattr(engine, "PICTURES", 2)
    cuda = Cuda(world.cuda)
    return Situation(cuda, cuda.gpu(), CheckOptions(weights=small_checkpoint, images=tmp_path / "none"))


@pytest.fixture
def built(
    dynamic_onnx: Path,
    situation: Situation,
    world: fake_tensorrt.World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Let the checks find an engine that was built already, for batches of up to 4."""
    world.profile = (1, 1, 4)
    path = make_engine(dynamic_onnx, tmp_path)
    path.with_name(f"{path.name}.onnx").write_bytes(dynamic_onnx.read_bytes())
    monkeypatch.setattr(engine, "build_engine_of", lambda *_: (path, {}))


def test_every_kind_of_engine_has_a_check_of_its_own() -> None:
    kinds = {tuple(sorted({**build.export, **build.engine}.items())) for build in (FP16, *BUILDS)}
    assert len(kinds) == len(BUILDS) + 1
    assert {f"engine-{name}" for name in BY_NAME} <= CHECKS.keys()
    assert {build.export.get("precision", "fp32") for build in BUILDS} == {"fp32", "fp16", "int8"}


def test_the_second_of_two_engines_errs_in_its_own_words_and_all_is_kept(
    situation: Situation, world: fake_tensorrt.World
) -> None:
    figures = check_engine(situation)
    assert all("is not within the profile" in text for text in figures["said of the second"])
    assert len(figures["said of the second"]) == 2
    assert figures["kept"] == "build/gpu-check/fp16.engine"
    kept = {path.name for path in engine.KEPT.iterdir()}
    suffixes = ("", ".onnx", ".json", ".log", ".layers.json")
    assert kept == {*(f"fp16.engine{suffix}" for suffix in suffixes), "timing.cache", "pictures"}
    assert "on 2 images" in figures["verified"]


def test_errors_that_go_elsewhere_are_found(situation: Situation, built: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a logger per runtime: what the second one says goes to the first one's list."""
    monkeypatch.setattr(fake_tensorrt.World, "say", lambda *_: None)
    with pytest.raises(CheckFailedError, match="TensorRT's error did not reach the logger: .* refused images"):
        check_engine(situation)


def test_errors_in_other_words_are_found(situation: Situation, built: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtdetr_deploy.runtimes.trt.calls.last_message", lambda _: "an old warning")
    with pytest.raises(CheckFailedError, match="the error holds other words than TensorRT's"):
        check_engine(situation)


def test_a_broken_engine_that_is_opened_is_found(
    situation: Situation, built: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = fake_tensorrt.Runtime.deserialize_cuda_engine
    good: list[bytes] = []

    def lenient(self: Any, content: bytes) -> Any:
        good.append(content if content.startswith(fake_tensorrt.MAGIC) else good[0])
        return opened(self, good[-1])

    monkeypatch.setattr(fake_tensorrt.Runtime, "deserialize_cuda_engine", lenient)
    with pytest.raises(CheckFailedError, match="an engine without its first bytes was opened"):
        check_engine(situation)


@pytest.mark.parametrize("name", slow_except(list(BY_NAME), "dynamic"))
def test_engines_of_all_kinds_are_built_and_compared(
    name: str, situation: Situation, world: fake_tensorrt.World
) -> None:
    world.cuda.capability = (8, 6)
    situation = replace(situation, gpu=situation.cuda.gpu())
    figures = check_build(situation, small(BY_NAME[name]))
    assert figures["worst_score"] <= (1 if name == "int8" else 0.01)
    assert f"batch {8 if name == 'dynamic' else 1}:" in figures["verified"]


def test_batches_that_differ_from_single_pictures_are_found(
    situation: Situation, built: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TensorRtRuntime.run

    def blurred(self: TensorRtRuntime, feed: Any) -> Any:
        found = run(self, feed)
        if len(found["scores"]) == 3:
            found["scores"] = np.full_like(found["scores"], 0.5)
        return found

    monkeypatch.setattr(TensorRtRuntime, "run", blurred)
    with pytest.raises(CheckFailedError, match="scores of a batch of 3 are off those of single pictures by"):
        check_build(situation, small(BY_NAME["dynamic"]))


def test_what_an_engine_needs_and_is_not_here_skips_its_check(
    situation: Situation, world: fake_tensorrt.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SkippedError, match="Tesla T4 is older than Ampere"):
        check_build(situation, BY_NAME["hardware"])
    absent = replace(situation, options=CheckOptions(weights=Path("none.pth")))
    with pytest.raises(SkippedError, match=r"none.pth is not here; name it by an option"):
        check_build(absent, FP16)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SkippedError, match="TensorRT is not installed"):
        check_build(situation, FP16)


def test_a_failed_build_is_told_and_the_lean_runtime_is_something_missing(
    situation: Situation, world: fake_tensorrt.World, small_onnx: Path
) -> None:
    given = replace(situation, options=replace(situation.options, weights=small_onnx))
    build = Build("any", "an engine of a file", {}, {"version_compatible": True})
    world.build_error = "Could not find any implementation for node"
    with pytest.raises(ExportError, match="Could not find any implementation for node.*for diagnosis see"):
        check_build(given, build)
    world.build_error = "Unable to load library: libnvinfer_lean.so.10"
    with pytest.raises(SkippedError, match="pip install tensorrt-lean=="):
        check_build(given, build)


def test_engines_are_judged_on_the_given_images(situation: Situation, tmp_path: Path) -> None:
    write_smears(tmp_path / "none", 1)
    assert engine.find_pictures(situation) == tmp_path / "none"


def test_an_engine_that_runs_any_batch_is_not_expected(
    situation: Situation, built: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BatchContext", lambda *_: None)
    with pytest.raises(CheckFailedError, match="TensorRT takes more images than the engine was built for"):
        check_engine(situation)
