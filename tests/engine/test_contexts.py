"""How many batch sizes are kept ready, and which one goes."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

import fake_tensorrt
from engine_world import make_engine
from rtdetr_deploy import open_runtime

pytest_plugins = ("engine_world",)


def _feed(batch: int) -> dict[str, np.ndarray]:
    return {"images": np.zeros((batch, 128, 160, 3), np.uint8)}


def test_the_context_that_was_not_used_for_longest_goes(
    world: fake_tensorrt.World, dynamic_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtdetr_deploy.runtimes.trt.contexts.MAX_CONTEXTS", 2)
    runtime = open_runtime(make_engine(dynamic_onnx, tmp_path))
    for batch in (1, 2, 1, 3):  # 2 goes, though 1 is older
        runtime.run(_feed(batch))
    assert (world.contexts_alive, world.cuda.launches) == (2, 1)
    runtime.run(_feed(1))
    assert world.cuda.launches == 2
    runtime.run(_feed(2))
    assert (world.contexts_alive, world.cuda.launches) == (2, 2)
    runtime.close()


def test_a_batch_size_without_a_graph_is_warned_of_once(
    world: fake_tensorrt.World, dynamic_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when its context has gone meanwhile, and is made anew."""
    monkeypatch.setattr("rtdetr_deploy.runtimes.trt.contexts.MAX_CONTEXTS", 2)
    world.cuda.records = False
    runtime = open_runtime(make_engine(dynamic_onnx, tmp_path))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for batch in (1, 1, 2, 3, 1, 1):
            runtime.run(_feed(batch))
    (warning,) = told
    assert "runs 1 image at once without CUDA graphs" in str(warning.message)
    runtime.close()


@pytest.mark.parametrize(("memory", "kept"), [(15_600_000_000, 4), (3_900_000_000, 3), (10**9, 2)])
def test_small_gpus_keep_fewer(
    memory: int, kept: int, world: fake_tensorrt.World, dynamic_onnx: Path, tmp_path: Path
) -> None:
    world.cuda.memory = memory
    runtime = open_runtime(make_engine(dynamic_onnx, tmp_path))
    for batch in (1, 2, 3, 4):
        runtime.run(_feed(batch))
    assert world.contexts_alive == kept
    runtime.close()
