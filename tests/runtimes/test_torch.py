"""What is torch's alone: the model's mode, sizes of checkpoints, devices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rtdetr_deploy.errors import ArtifactError, DeviceError, OptionError  # noqa: E402
from rtdetr_deploy.runtimes import RuntimeOptions, open_runtime  # noqa: E402
from rtdetr_deploy.runtimes.eager import TorchRuntime, open_checkpoint  # noqa: E402


def test_a_model_in_training_mode_is_refused_and_left_as_it_is(r18_checkpoint: Path) -> None:
    from rtdetr_deploy.model import load_checkpoint

    model = load_checkpoint(r18_checkpoint, layers=1).model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    runtime = TorchRuntime(model, ("a", "b", "c"), 64, 96)
    with pytest.raises(ArtifactError, match=r"the torch model is in training mode; call its eval\(\) first"):
        runtime.run({"images": np.zeros((1, 3, 64, 96), np.float32)})
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("size", [(32, 64), (100, 96), (64, 99968)])
def test_sizes_that_no_model_takes_are_refused(size: tuple[int, int], r18_checkpoint: Path) -> None:
    with pytest.raises(OptionError, match="`size` is .*, expected multiples of 32 from 64 to 8192"):
        open_checkpoint(r18_checkpoint, size)


def test_arguments_of_load_checkpoint_and_its_digest_arrive(r18_checkpoint: Path) -> None:
    import hashlib

    runtime = open_checkpoint(r18_checkpoint, (64, 96), layers=1)
    assert runtime.info is not None
    assert (runtime.info.layers, runtime.info.height, runtime.info.width) == (1, 64, 96)
    assert runtime.info.source_digest == hashlib.sha256(r18_checkpoint.read_bytes()).hexdigest()
    assert runtime.metadata == {}


@pytest.mark.parametrize(("device", "found"), [("cuda", 0), ("cuda:2", 2)])
def test_gpus_that_are_not_there_are_never_replaced(
    device: str, found: int, r18_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    with pytest.raises(DeviceError, match=f"torch can't use {device}: it finds {found} NVIDIA GPUs"):
        open_runtime(r18_checkpoint, "torch", RuntimeOptions(device=device))
