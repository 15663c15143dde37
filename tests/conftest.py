"""What several test files share: seeded checkpoints, exported files, and the reference data beside the checkout."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from filelock import FileLock
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rtdetr_deploy.model.variants import Variant
    from rtdetr_export import ExportOptions
    from rtdetr_train.options import TrainOptions

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


def slow_except(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Return `values` as parameters of a test, all but the `quick` ones for `make test-all` alone."""
    everything = list(values)
    assert all(value in everything for value in quick)
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in everything]


def shared_folder(name: str) -> Path:
    """Return `../shared/NAME`; skip the test where the checkout stands alone."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"reference data ../shared/{name} is not beside this checkout")
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread_per_worker() -> Iterator[None]:
    """Give ONNX Runtime one thread where tests run side by side: two workers on two cores lose half of their time else.

    `OMP_NUM_THREADS=1` does the same for torch. Without pytest-xdist, sessions have their usual threads.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ or find_spec("onnxruntime") is None:
        yield
        return
    import onnxruntime

    class SessionOptions(onnxruntime.SessionOptions):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.intra_op_num_threads = 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "SessionOptions", SessionOptions)
        yield


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder that all workers of one test run share."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def make_once(path: Path, make: Callable[[Path], object]) -> Path:
    """Return `path` in a folder of its own; the first worker that asks makes it, the others wait for it."""
    path.parent.mkdir(exist_ok=True)
    with FileLock(path.parent.with_suffix(".lock")):
        if not path.exists():
            partial = path.parent.with_name(f"{path.parent.name}-partial{path.suffix}")
            make(partial)
            partial.replace(path)
    return path


def small_variant() -> Variant:
    """Return an R18 with one block per stage of the backbone and a narrow encoder, which loads as variant "custom".

    Its exports take two thirds of an R18's time and half of the space, with every kind of node that an R18's has.
    """
    from rtdetr_deploy.model import VARIANTS
    from rtdetr_deploy.model.variants import ResNetVdConfig

    backbone = ResNetVdConfig(blocks=(1, 1, 1, 1), bottleneck=False)
    return replace(VARIANTS["r18"], backbone=backbone, width=64, feedforward=128)


def _write_checkpoint(variant: Variant, path: Path) -> Path:
    """Write seeded weights for three classes, in the released layout, with class names, unless they are there."""
    import torch

    from rtdetr_deploy.model import RTDETR
    from rtdetr_deploy.model.random_weights import fill_randomly

    def write(partial: Path) -> None:
        model = RTDETR(replace(variant, classes=3), variant.max_layers)
        fill_randomly(model, seed=7)
        torch.save({"ema": {"module": model.state_dict()}, "class_names": ["red", "white", "platelet"]}, partial)

    return make_once(path, write)


@pytest.fixture(scope="session")
def r18_checkpoint(run_folder: Path) -> Path:
    """A seeded R18 for three classes, in the released layout, with class names."""
    pytest.importorskip("torch")
    from rtdetr_deploy.model import VARIANTS

    return _write_checkpoint(VARIANTS["r18"], run_folder / "r18" / "cells.pth")


@pytest.fixture(scope="session")
def small_checkpoint(run_folder: Path) -> Path:
    """The same of `small_variant`."""
    pytest.importorskip("torch")
    return _write_checkpoint(small_variant(), run_folder / "small" / "cells.pth")


@pytest.fixture(scope="session")
def small_options(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that makes options for a small export: 128x160, anything else as given."""
    from rtdetr_export import ExportOptions

    folder = tmp_path_factory.mktemp("exports")

    def make(name: str, **changes: Any) -> ExportOptions:
        return ExportOptions(
            **{"weights": small_checkpoint, "output": folder / name, "size": (128, 160), "layers": 2, **changes}
        )

    return make


@pytest.fixture(scope="session")
def small_export(small_options: Any, run_folder: Path) -> Any:
    """Return a function that gives the path of a small export with these options, made once in a test run.

    The file belongs to all tests: copy it before you change it.
    """
    from rtdetr_export import export_onnx

    def find(name: str = "model.onnx", **changes: Any) -> Path:
        digest = hashlib.sha256(repr((name, sorted(changes.items()))).encode()).hexdigest()[:16]
        path = run_folder / digest / name
        return make_once(path, lambda partial: export_onnx(small_options(name, **changes, output=partial)))

    return find


@pytest.fixture(scope="session")
def small_onnx(small_export: Any) -> Path:
    """The small model: batch 1, float input."""
    path: Path = small_export("small.onnx")
    return path


@pytest.fixture(scope="session")
def dynamic_onnx(small_export: Any) -> Path:
    """The small model with a dynamic batch and uint8 input."""
    path: Path = small_export("dynamic.onnx", batch="dynamic", raw_input=True)
    return path


@pytest.fixture(scope="session")
def small_xml(small_options: Any) -> Path:
    """The small model as OpenVINO's files, with a dynamic batch and, as they have by default, uint8 input."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    from rtdetr_export import export_onnx

    return export_onnx(small_options("small.xml", batch=None)).path


@pytest.fixture(scope="session")
def half_onnx(small_export: Any) -> Path:
    """The small model in FP16, with a dynamic batch."""
    path: Path = small_export("half.onnx", precision="fp16", batch="dynamic")
    return path


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
