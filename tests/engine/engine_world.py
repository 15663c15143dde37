"""Doubles of TensorRT and CUDA in place of the real modules."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import fake_tensorrt
from fake_cuda import FakeCuda
from fake_driver import FakeDriver, FakeNvrtc


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
