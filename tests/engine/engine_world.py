"""Doubles of TensorRT and CUDA in place of the real modules."""

from __future__ import annotations

import gc
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import fake_tensorrt
from fake_cuda import FakeCuda
from fake_driver import FakeDriver, FakeNvrtc
from rtdetr_deploy import open_runtime
from rtdetr_deploy.runtimes.trt.sidecar import EngineInfo, sidecar_path


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def world(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_tensorrt.World]:
    """Put the doubles where `import tensorrt` and `from cuda.bindings import runtime` find them."""
    gc.freeze()  # the collection below then looks at what the test made, and not at all of torch and onnx
    world = fake_tensorrt.World(cuda)
    monkeypatch.setattr(fake_tensorrt, "WORLD", world, raising=False)
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = cuda  # type: ignore[attr-defined]
    bindings.driver = FakeDriver(cuda)  # type: ignore[attr-defined]
    bindings.nvrtc = FakeNvrtc()  # type: ignore[attr-defined]
    package = ModuleType("cuda")
    package.bindings = bindings  # type: ignore[attr-defined]
    for name, module in (("tensorrt", fake_tensorrt), ("cuda", package), ("cuda.bindings", bindings)):
        monkeypatch.setitem(sys.modules, name, module)
    yield world
    gc.collect()
    gc.unfreeze()
    assert cuda.alive == 0, "not everything was given back"
    assert cuda.faults == []
    assert cuda.capturing == {}, "a capture was not ended"
    assert cuda.thread.contexts in ([], [cuda.thread.selected]), "another context was left current"
    assert (world.engines_alive, world.contexts_alive) == (0, 0)


def make_engine(onnx: Path, folder: Path, **changes: Any) -> Path:
    """Write an engine for the double, with its sidecar."""
    info = open_runtime(onnx).info
    assert info is not None
    path = folder / f"{onnx.stem}.engine"
    path.write_bytes(fake_tensorrt.MAGIC + onnx.read_bytes())
    facts = EngineInfo(
        info=info,
        tensorrt=fake_tensorrt.__version__,
        gpu="Tesla T4",
        capability="7.5",
        profile=(1, 1, 4),
        onnx_digest="",
        engine_digest=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    sidecar_path(path).write_text(replace(facts, **changes).to_json())
    return path


@pytest.fixture
def engine(dynamic_onnx: Path, tmp_path: Path) -> Path:
    """An engine of batches 1 to 4, for the double."""
    return make_engine(dynamic_onnx, tmp_path)
