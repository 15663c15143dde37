"""Applications must not pay for what they don't use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Block())
"""


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_predicting_works_where_torch_and_the_exporter_cannot_be_imported(small_onnx: Path) -> None:
    blocked = {"torch", "onnx", "onnxscript", "onnx_ir", "safetensors", "rtdetr_export"}
    code = f"""
import numpy, rtdetr_deploy
found = rtdetr_deploy.Predictor({str(small_onnx)!r}, 0.0).detect(numpy.zeros((40, 60, 3), numpy.uint8))
print(len(found))
"""
    assert _run(BLOCK.format(blocked=blocked) + code).split() == ["300"]


def test_importing_loads_no_heavy_package() -> None:
    code = "import sys, rtdetr_deploy; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = set(_run(code).split())
    assert not loaded & {"torch", "onnxruntime", "onnx", "PIL", "tqdm", "supervision", "matplotlib", "scipy"}
    assert {"numpy", "rtdetr_deploy"} <= loaded
