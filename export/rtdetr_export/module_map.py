"""Which module computes a node: from the names that torch's exporter gives to nodes, back to modules.

A node is called by the modules whose calls it lies in and by its operator:

    node     /model/decoder/query_pos_head_1/layers.0/MatMul
    module   model.decoder.query_pos_head.layers.0

Containers that are never called (`ModuleList`) have no part in a node's name, a numbered module is shown with the name
before the number, nesting is by call (a head that the decoder hands to its query selection is shown inside of that),
and further calls of a module get `_1`, `_2`. So the modules are recorded while they are called for the trace.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from rtdetr_deploy.errors import ExportError

_FURTHER_CALL = re.compile(r"_\d+$")


@dataclass(frozen=True)
class ModuleMap:
    """`modules`: the path of each module by the path of calls that it was called in ("" is the whole)."""

    modules: Mapping[str, str]

    def module_of(self, node: str) -> str | None:
        """Return the innermost module that computes `node`; None for a node that no module's call made.

        Such nodes come from the simplification of graphs, which names what it adds by itself.
        """
        if not node.startswith("/"):
            return None
        calls = ""
        for part in node.split("/")[1:-1]:
            step = next((f"{calls}/{name}" for name in _spellings(part) if f"{calls}/{name}" in self.modules), None)
            if step is None:
                return None
            calls = step
        return self.modules[calls]

    def require(self, nodes: Iterable[str]) -> None:
        """Raise `ExportError` unless every node that a module's call made has its module."""
        for node in nodes:
            if node.startswith("/") and self.module_of(node) is None:
                raise ExportError(
                    f"torch's exporter called a node {node}, which belongs to no module that was called; this version "
                    "of torch names nodes in another way: please report it"
                )


def _spellings(part: str) -> tuple[str, ...]:
    return part, _FURTHER_CALL.sub("", part)


@contextmanager
def record_modules(model: nn.Module) -> Iterator[dict[str, str]]:
    """Yield a dictionary that calls of `model` fill: path of calls -> path of the module.

    Raises `ExportError` when two modules are called in the same path, since their nodes can't be told apart then.
    """
    found: dict[str, str] = {}
    calls: list[str] = []
    paths = {module: path for path, module in model.named_modules()}

    def enter(module: nn.Module, _: Any) -> None:
        path = paths[module]
        calls.append(f"{calls[-1]}/{_last_name(path)}" if calls else "")
        if found.setdefault(calls[-1], path) != path:
            raise ExportError(f"modules {found[calls[-1]]} and {path} are both called {calls[-1]} in the graph")

    def leave(*_: Any) -> None:
        calls.pop()

    hooks = [module.register_forward_pre_hook(enter) for module in paths]
    hooks += [module.register_forward_hook(leave, always_call=True) for module in paths]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _last_name(path: str) -> str:
    """Return the last part of a path, numbers with the name before them: `decoder.layers.0` -> `layers.0`."""
    parts = path.split(".")
    first = max((index for index, part in enumerate(parts) if not part.isdigit()), default=0)
    return ".".join(parts[first:])
