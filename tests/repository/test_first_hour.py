"""What a newcomer meets: install commands of one CUDA, and symptoms that are looked up by the words of messages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["README.md", "docs/tensorrt.md"])
def test_torch_of_another_cuda_is_not_installed_beside_packages_for_cuda_12(name: str) -> None:
    """PyPI's torch wants cuda-bindings 13 from 2.11 on; export, train and bench bring torch unless it is there."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    commands = [(number, line) for number, line in enumerate(lines) if re.search(r"tensorrt-cu12,(export|train)", line)]
    assert commands
    for number, line in commands:
        before = lines[number - 1] + line.partition("tensorrt-cu12")[0]
        assert "pip install torch --index-url https://download.pytorch.org/whl/cpu" in before, f"{name}:{number + 1}"


@pytest.mark.parametrize(
    ("words", "module"),
    [
        ("can't have a second slot", "runtimes/trt/runtime.py"),
        ("without CUDA graphs, a little slower", "runtimes/trt/batch_context.py"),
        ("failed its verification and was accepted as it is", "runtimes/trt/sidecar.py"),
        ("reads the CPU's memory", "images/gpu_array.py"),
        ("lies in another CUDA context than the GPU's primary one", "runtimes/trt/receive.py"),
    ],
)
def test_messages_about_gpus_are_found_in_the_document_by_their_words(words: str, module: str) -> None:
    symptoms = re.findall(
        r"^\*\*(.+?)\*\*", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert any(words in symptom for symptom in symptoms)
    assert words in (ROOT / "rtdetr_deploy" / module).read_text(encoding="utf-8")
