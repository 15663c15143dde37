"""Arrays that lie on the GPU already: torch tensors as frames and as inputs, and outputs that stay there."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpu_check.check import Figures, Situation, SkippedError, demand
from gpu_check.checks.runtime import SIZE, demand_equal, no_warnings, only_slot, random_images, reference_of
from gpu_check.stub.tensorrt import open_stub, tensorrt_stub
from rtdetr_deploy import Predictor
from rtdetr_deploy.packages import needed_for

ROUNDS = 100


def require_torch() -> Any:
    """Return torch, which must see a GPU. Raises `SkippedError` or `MissingPackageError`."""
    with needed_for("this check", "export"):
        import torch
    if not torch.cuda.is_available():
        raise SkippedError(f"torch {torch.__version__} sees no GPU")
    return torch


def check_arrays(situation: Situation) -> Figures:
    """Compare tensors on the GPU with host arrays: inputs, frames, outputs that stay there, frames written late.

    All but the frames written late in each slot.
    """
    torch = require_torch()
    device = torch.device("cuda", situation.gpu.number)
    with tensorrt_stub(situation.gpu), no_warnings(), torch.cuda.device(device):
        runtime = open_stub(situation.gpu, *SIZE)
        with Predictor(runtime, 0.0, resizer="cuda") as predictor:
            for slot in range(runtime.slots):
                with only_slot(runtime, slot):
                    _compare_inputs(torch, device, predictor)
                    _compare_frames(torch, device, predictor)
            late = _compare_late_writes(torch, device, predictor)
    return {"late_writes": late, "torch": torch.__version__}


def _compare_inputs(torch: Any, device: Any, predictor: Predictor) -> None:
    """Check a whole input on the GPU, with outputs on the host and left on the GPU."""
    reference = reference_of(raw=True)
    for batch in (1, 3, 8, 3, 1):
        images = random_images(np.random.default_rng(batch), batch, True)
        expected = {name: value for name, value in reference.run({"images": images}).items() if name != "pixels"}
        tensor = torch.from_numpy(images).to(device)
        demand_equal(predictor.infer(tensor), expected, f"a tensor on the GPU, batch {batch}")
        left = predictor.infer(tensor, on_device=True)
        for name, value in expected.items():
            on_gpu = torch.as_tensor(left[name], device=device)
            demand(np.array_equal(on_gpu.cpu().numpy(), value), f"outputs on the GPU, batch {batch}: {name} differs")


def _compare_frames(torch: Any, device: Any, predictor: Predictor) -> None:
    """Check frames on the GPU: contiguous, reversed views, channels first, and their colour order."""
    pixels = np.random.default_rng(5).integers(0, 256, (90, 130, 3), np.uint8)
    frame = torch.from_numpy(pixels).to(device)
    planes = frame.permute(2, 0, 1).contiguous().permute(1, 2, 0)  # the same numbers, laid out in planes
    for what, tensor in (("a frame", frame), ("a frame in planes", planes), ("a part of a frame", frame[7:, ::2])):
        found, expected = predictor.detect(tensor), predictor.detect(tensor.cpu().numpy())
        demand(
            np.array_equal(found.scores, expected.scores), f"{what} on the GPU is detected otherwise than on the host"
        )


def _compare_late_writes(torch: Any, device: Any, predictor: Predictor) -> int:
    """Write frames by slow work on a stream of the caller's, and detect without waiting for it."""
    stream, slow = torch.cuda.Stream(device), torch.randn(2048, 2048, device=device)
    for number in range(ROUNDS):
        pixels = np.full((64, 96, 3), number, np.uint8)
        with torch.cuda.stream(stream):
            frame = torch.zeros((64, 96, 3), dtype=torch.uint8, device=device)
            slow @ slow
            frame += number
            found = predictor.detect(frame)
        expected = predictor.detect(pixels)
        demand(np.array_equal(found.scores, expected.scores), f"call {number} read a frame before it was written")
    return ROUNDS
