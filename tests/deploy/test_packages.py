"""What to install where an optional package is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rtdetr_deploy import packages
from rtdetr_deploy.errors import MissingPackageError
from rtdetr_deploy.packages import install_command, needed_for, require


def test_a_missing_package_is_named_with_a_command_that_needs_no_index_entry_of_this_project(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match="running .onnx files needs onnxruntime") as caught:
        require("onnxruntime", "running .onnx files", "cpu")
    assert "pip install 'onnxruntime>=1.17'" in str(caught.value)


@pytest.mark.parametrize("extra", ["cpu", "gpu", "export", "train", "bench", "tensorrt", "tensorrt-cu12"])
def test_no_install_command_names_this_project(extra: str) -> None:
    command = install_command(extra)
    assert command.startswith("pip install '")
    assert "rtdetr" not in command
    assert "'." not in command


def test_only_what_is_missing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "requires", lambda _: ["pytest>=8; extra == 'x'", "no-such-package>=2; extra == 'x'"])
    assert install_command("x") == "pip install 'no-such-package>=2'"


def test_a_package_that_can_not_be_loaded_is_not_called_missing() -> None:
    message = r"exporting needs torch, which can't be imported \(no libcudart\)"
    with pytest.raises(MissingPackageError, match=message), needed_for("exporting", "export"):
        raise ImportError("no libcudart", name="torch")


def test_a_source_tree_that_is_not_installed_names_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "DISTRIBUTION", "no-such-project")
    assert install_command("cpu") == "pip install '.[cpu]' in the folder of the project"


def test_no_message_tells_to_install_this_project_from_an_index() -> None:
    root = Path(__file__).resolve().parents[2]
    hits = [
        f"{path.relative_to(root)}:{number}"
        for folder in ("rtdetr_deploy", "export", "training", "benchmarks")
        for path in (root / folder).rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if "rtdetr-deploy[" in line
    ]
    assert hits == []
