"""The shape of the repository and of the installed packages: which module may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from conftest import ROOT

PACKAGES = {
    "rtdetr_deploy": ROOT / "rtdetr_deploy",
    "rtdetr_export": ROOT / "export" / "rtdetr_export",
    "rtdetr_bench": ROOT / "benchmarks" / "rtdetr_bench",
    "rtdetr_train": ROOT / "training" / "rtdetr_train",
}
ALLOWED = {
    "rtdetr_deploy": set(),
    "rtdetr_export": {"rtdetr_deploy"},
    "rtdetr_train": {"rtdetr_deploy"},
    "rtdetr_bench": {"rtdetr_deploy", "rtdetr_export", "rtdetr_train"},
}
"""Arrows between the packages; every other one is a mistake."""
WITH_TORCH = ("rtdetr_deploy.model", "rtdetr_deploy.runtimes.eager")
ROOT_FILES = {
    "__init__", "boxes", "detections", "drawing", "errors", "files", "fonts", "options", "packages", "postprocess",
    "predictor", "signature", "stream", "words",
}  # fmt: skip
"""What may lie at the root of `rtdetr_deploy`: nothing of one engine, one command or evaluation alone."""


def _modules() -> dict[str, Path]:
    """Return every module of the four packages by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for file in folder.rglob("*.py"):
            parts = file.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = file
    return found


MODULES = _modules()


@cache
def _imports(module: str, *, top_only: bool) -> frozenset[str]:
    """Return what a module imports; with `top_only`, what it imports when it is itself imported."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    nodes = _top_level(tree.body) if top_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def _top_level(body: list[ast.stmt]) -> Iterator[ast.AST]:
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        for inner in ("body", "orelse", "handlers", "finalbody"):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield from _top_level(getattr(node, inner, []))


def test_top_level_is_what_was_asked_for() -> None:
    for name in ("rtdetr_deploy", "export", "benchmarks", "tests", "pyproject.toml", "README.md"):
        assert (ROOT / name).exists()


def test_folders_of_packages_are_not_packages() -> None:
    for folder in ("export", "benchmarks", "training", "tests"):
        assert not (ROOT / folder / "__init__.py").exists()


def test_a_users_own_export_module_is_not_shadowed(tmp_path: Path) -> None:
    for name in ("export", "training"):
        (tmp_path / f"{name}.py").write_text("mine = True\n")
    code = "import rtdetr_export, rtdetr_bench, rtdetr_train, export, training; print(export.mine and training.mine)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_the_architecture_allows(package: str) -> None:
    for module in MODULES:
        if module.partition(".")[0] == package:
            others = {name.partition(".")[0] for name in _imports(module, top_only=False)} & PACKAGES.keys()
            assert others <= ALLOWED[package] | {package}, module


def test_torch_stays_inside_the_model_and_its_runtime() -> None:
    for module in MODULES:
        inside = any(module == name or module.startswith(name + ".") for name in WITH_TORCH)
        if module.startswith("rtdetr_deploy") and not inside:
            imported = {name.partition(".")[0] for name in _imports(module, top_only=False)}
            assert "torch" not in imported, module


def test_options_of_libraries_know_nothing_of_command_lines() -> None:
    for module in MODULES:
        if module.endswith("options") and module.split(".")[1] != "cli":
            imported = _imports(module, top_only=False)
            assert not any(name.startswith("rtdetr_deploy.cli") for name in imported), module


def test_nothing_of_one_engine_or_command_lies_at_the_root() -> None:
    assert {file.stem for file in PACKAGES["rtdetr_deploy"].glob("*.py")} == ROOT_FILES


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module: _imports(module, top_only=True) & MODULES.keys() for module in MODULES}
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in finished:
            for other in sorted(graph[module] - {module}):
                visit(other, (*path, module))
            finished.add(module)

    for module in MODULES:
        visit(module, ())
