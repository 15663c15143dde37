"""What several test files share: seeded checkpoints, exported files, and the reference data beside the checkout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rtdetr_export import ExportOptions
    from rtdetr_train.options import TrainOptions

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


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A COCO json and its folder: five pictures with coloured squares, the last one empty; category ids 3 and 7."""
    import json

    from PIL import Image

    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, 6):
        pixels = np.full((90, 120, 3), 200, np.uint8)
        for index in range(number % 5):
            x, y = rng.integers(0, 90), rng.integers(0, 60)
            pixels[y : y + 25, x : x + 25] = (220, 40, 40) if index % 2 else (40, 40, 220)
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": 7 if index % 2 else 3,
                "bbox": [int(x), int(y), 25, 25], "area": 625, "iscrowd": 0,
            })  # fmt: skip
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 120, "height": 90})
    path = folder / "squares.json"
    categories = [{"id": 7, "name": "red"}, {"id": 3, "name": "blue"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path, folder


@pytest.fixture
def train_options(squares: tuple[Path, Path], tmp_path: Path) -> TrainOptions:
    """Two short epochs of three steps on the squares, evaluated after the second."""
    from rtdetr_train.options import TrainOptions

    return TrainOptions(
        annotations=squares[0], images=squares[1], val_annotations=squares[0], output=tmp_path / "run", layers=1,
        queries=20, size=(96, 96), multiscale_steps=1, epochs=2, batch=2, warmup=2, workers=0, evaluate_every=2,
    )  # fmt: skip


@pytest.fixture
def tiny_options(train_options: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> TrainOptions:
    """As `train_options`, of a variant that is written in a third of the time; no checkpoint of it can be opened."""
    pytest.importorskip("torch")
    from dataclasses import replace

    from rtdetr_deploy.model import VARIANTS
    from rtdetr_deploy.model.variants import ResNetVdConfig

    r18 = VARIANTS["r18"]
    assert isinstance(r18.backbone, ResNetVdConfig)
    tiny = replace(r18, name="tiny", width=64, feedforward=64, backbone=replace(r18.backbone, blocks=(1, 1, 1, 1)))
    monkeypatch.setitem(VARIANTS, "tiny", tiny)
    return replace(train_options, variant="tiny")
