"""The shape of the repository and of the installed packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import ROOT


def test_top_level_is_what_was_asked_for() -> None:
    for name in ("rtdetr_deploy", "export", "benchmarks", "tests", "pyproject.toml", "README.md"):
        assert (ROOT / name).exists()


def test_folders_of_packages_are_no_packages() -> None:
    for folder in ("export", "benchmarks", "training", "tests"):
        assert not (ROOT / folder / "__init__.py").exists()


def test_a_users_own_export_module_is_not_shadowed(tmp_path: Path) -> None:
    for name in ("export", "training"):
        (tmp_path / f"{name}.py").write_text("mine = True\n")
    code = "import rtdetr_export, rtdetr_bench, rtdetr_train, export, training; print(export.mine and training.mine)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


def test_deploy_never_imports_the_other_packages() -> None:
    for file in (ROOT / "rtdetr_deploy").rglob("*.py"):
        text = file.read_text()
        for other in ("rtdetr_export", "rtdetr_bench", "rtdetr_train"):
            assert f"import {other}" not in text, file
            assert f"from {other}" not in text, file


def test_torch_stays_inside_the_model_package() -> None:
    for file in (ROOT / "rtdetr_deploy").rglob("*.py"):
        if "model" not in file.relative_to(ROOT).parts:
            assert "import torch" not in file.read_text(), file
