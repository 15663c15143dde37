"""Applications must not pay for what they don't use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
    assert not loaded & {"numpy", "cv2"}
    assert "rtdetr_deploy" in loaded


def test_every_public_name_is_there() -> None:
    code = "import rtdetr_deploy as r; print(*[name for name in r.__all__ if not hasattr(r, name)], r.__version__)"
    assert len(_run(code).split()) == 1
    assert "Predictor" in _run("import rtdetr_deploy; print(dir(rtdetr_deploy))")


@pytest.mark.parametrize("package", ["rtdetr_deploy", "rtdetr_export", "rtdetr_train", "rtdetr_bench"])
def test_the_command_s_module_loads_little_before_it_can_be_interrupted(package: str) -> None:
    loaded = set(_run(f"import sys, {package}.cli; print(*sys.modules)").split())
    assert not loaded & {"numpy", "cv2", "tqdm"}
