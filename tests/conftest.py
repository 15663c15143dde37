"""What several test files share: seeded checkpoints, exported files, and the reference data beside the checkout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rtdetr_export import ExportOptions

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


def shared_folder(name: str) -> Path:
    """Return `../shared/NAME`; skip the test where the checkout stands alone."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"reference data ../shared/{name} is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def r18_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded R18 for three classes, in the released layout, with class names."""
    torch = pytest.importorskip("torch")
    from dataclasses import replace

    from rtdetr_deploy.model import RTDETR, VARIANTS
    from rtdetr_deploy.model.random_weights import fill_randomly

    model = RTDETR(replace(VARIANTS["r18"], classes=3))
    fill_randomly(model, seed=7)
    path = tmp_path_factory.mktemp("weights") / "cells.pth"
    torch.save({"ema": {"module": model.state_dict()}, "class_names": ["red", "white", "platelet"]}, path)
    return path


@pytest.fixture(scope="session")
def small_options(r18_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that makes options for a small export: 128x160, anything else as given."""
    from rtdetr_export import ExportOptions

    folder = tmp_path_factory.mktemp("exports")

    def make(name: str, **changes: Any) -> ExportOptions:
        return ExportOptions(
            **{"weights": r18_checkpoint, "output": folder / name, "size": (128, 160), "layers": 2, **changes}
        )

    return make


@pytest.fixture(scope="session")
def small_onnx(small_options: Any) -> Path:
    """The small model: batch 1, float input."""
    from rtdetr_export import export_onnx

    return export_onnx(small_options("small.onnx")).path


@pytest.fixture(scope="session")
def dynamic_onnx(small_options: Any) -> Path:
    """The small model with a dynamic batch and uint8 input."""
    from rtdetr_export import export_onnx

    return export_onnx(small_options("dynamic.onnx", batch="dynamic", raw_input=True)).path


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    """A BGR picture of 90 x 120 pixels with structure."""
    y, x = np.mgrid[0:90, 0:120]
    image = np.stack([2 * y, 255 - x, (x + y) % 200], axis=-1).astype(np.uint8)
    image[20:60, 30:80] = (20, 200, 240)
    return image
