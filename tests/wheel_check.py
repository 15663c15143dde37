"""Checks the built wheel in an environment that has neither torch nor the exporter's packages (`make wheel-check`).

With `--make-model FILE` it writes the model for that check; this part runs in the development environment.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np


def make_model(path: Path) -> None:
    """Export a small R18 with seeded weights."""
    import torch

    from rtdetr_deploy.model import RTDETR, VARIANTS
    from rtdetr_deploy.model.random_weights import fill_randomly
    from rtdetr_export import ExportOptions, export_onnx

    model = RTDETR(VARIANTS["r18"], 1)
    fill_randomly(model)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "r18.pth")
        torch.save(model.state_dict(), weights)
        export_onnx(ExportOptions(weights=weights, output=path, size=(64, 96)))


def check(model: Path) -> None:
    """Predict with the installed wheel."""
    for package in ("torch", "onnx", "onnxscript"):
        assert importlib.util.find_spec(package) is None, f"{package} is installed here"
    import rtdetr_deploy

    assert "site-packages" in str(rtdetr_deploy.__file__), "this is not the installed wheel"
    assert Path(rtdetr_deploy.__file__).with_name("py.typed").exists()
    found = rtdetr_deploy.Predictor(model, threshold=0.0).detect(np.zeros((40, 60, 3), np.uint8))
    assert len(found) == 300
    check_formats(Path("deepstream"), model)
    commands = Path(sys.executable).parent
    subprocess.run([commands / "rtdetr-bench", "--engine", model, "--runs", "2"], check=True, stdout=subprocess.DEVNULL)
    for name in ("r18.pth", "a.json"):  # what is missing is said of files first
        Path(name).touch()
    for package, command in (
        ("onnxscript", ["rtdetr-export", "--weights", "r18.pth"]),
        ("scipy", ["rtdetr-train", "--annotations", "a.json", "--images", ".", "--output", "run"]),
    ):
        refused = subprocess.run([commands / command[0], *command[1:]], capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        assert f"'{package}>=" in refused.stderr
        assert "pip install 'rtdetr" not in refused.stderr
    print(f"the wheel of rtdetr-deploy {rtdetr_deploy.__version__} imports and predicts without torch")


def check_formats(folder: Path, model: Path) -> None:
    """Write a model's folder for DeepStream, whose files lie in the wheel; it needs no package of the exporter."""
    from rtdetr_export import ExportOptions, export

    result = export(ExportOptions(model, folder, format="deepstream"))
    assert result.package is not None
    assert {file.name for file in result.package.files} >= {"parse_rtdetr.cpp", "Makefile", "config_infer.txt"}


if __name__ == "__main__":
    if sys.argv[1] == "--make-model":
        make_model(Path(sys.argv[2]))
    else:
        check(Path(sys.argv[1]))
