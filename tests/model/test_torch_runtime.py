"""A checkpoint behind the runtimes' protocol."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rtdetr_deploy.errors import ArtifactError, OptionError  # noqa: E402
from rtdetr_deploy.runtimes.eager import TorchRuntime, open_checkpoint  # noqa: E402


@pytest.fixture(scope="module")
def runtime(r18_checkpoint: Path) -> TorchRuntime:
    return open_checkpoint(r18_checkpoint, (64, 96), layers=1)


WRONG_FEEDS: dict[str, tuple[dict[str, Any], str]] = {
    "another name": ({"image": np.zeros((1, 3, 64, 96), np.float32)}, "takes one input called images, got image"),
    "nothing": ({}, "takes one input called images, got none"),
    "one more": ({"images": np.zeros((1, 3, 64, 96), np.float32), "sizes": np.zeros(2)}, "got images, sizes"),
    "another type": ({"images": np.zeros((1, 3, 64, 96))}, "takes float32 images batchx3x64x96, got float64 1x3x64x96"),
    "another shape": ({"images": np.zeros((1, 3, 64, 64), np.float32)}, "got float32 1x3x64x64"),
    "no batch": ({"images": np.zeros((3, 64, 96), np.float32)}, "got float32 3x64x96"),
    "no image": ({"images": np.zeros((0, 3, 64, 96), np.float32)}, "got float32 0x3x64x96"),
}


@pytest.mark.parametrize("case", WRONG_FEEDS)
def test_other_inputs_than_named_are_refused(case: str, runtime: TorchRuntime) -> None:
    feed, message = WRONG_FEEDS[case]
    with pytest.raises(ArtifactError, match=message):
        runtime.run(feed)


def test_threads_get_the_same_outputs_as_one(runtime: TorchRuntime) -> None:
    feed = {"images": np.random.default_rng(0).random((1, 3, 64, 96), np.float32)}
    expected = runtime.run(feed)
    found: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda: found.append(runtime.run(feed))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.array_equal(outputs["boxes"], expected["boxes"]) for outputs in found)


def test_a_model_in_training_mode_is_refused_and_left_as_it_is(r18_checkpoint: Path) -> None:
    from rtdetr_deploy.model import load_checkpoint

    model = load_checkpoint(r18_checkpoint, layers=1).model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    runtime = TorchRuntime(model, ("a", "b", "c"), 64, 96)
    with pytest.raises(ArtifactError, match=r"is in training mode; call its eval\(\) first"):
        runtime.run({"images": np.zeros((1, 3, 64, 96), np.float32)})
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("size", [(32, 64), (100, 96), (64, 99968)])
def test_sizes_that_no_model_takes_are_refused(size: tuple[int, int], r18_checkpoint: Path) -> None:
    with pytest.raises(OptionError, match="both sides must be multiples of 32 from 64 to 8192"):
        open_checkpoint(r18_checkpoint, size)
