"""Which nodes stay in FP32 where a CPU computes a file in BF16; the runtime keeps them so, see `ArtifactInfo`."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from rtdetr_deploy.errors import ExportError
from rtdetr_export.graph import DeployedModel
from rtdetr_export.module_map import ModuleMap
from rtdetr_export.precision.placement import modules_of


def find_fp32_nodes(graph: ir.Model, deployed: DeployedModel, modules: ModuleMap) -> tuple[str, ...]:
    """Return what `ArtifactInfo.fp32_nodes` holds. Raises `ExportError` for a scope that matches nothing."""
    module_of = modules_of(graph, modules)
    operators = {str(node.name): node.op_type for node in graph.graph}
    kept: set[str] = set()
    for scope in deployed.bf16_scopes:
        nodes = {name for name, module in module_of.items() if scope.covers(module, operators[name])}
        if not nodes:
            raise ExportError(f"no node is in the scope {scope.name!r} ({scope.module}), which BF16 leaves in FP32")
        kept |= nodes
    return shorten(kept, operators.keys() - kept)


def shorten(kept: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    """Return `kept` as few names: "/a/b/" for all that begins so, where none of `others` does."""
    taken = {start for name in others for start in _starts(name)}
    short = {next((start for start in _starts(name) if start not in taken), name) for name in kept}
    return tuple(sorted(short))


def _starts(name: str) -> list[str]:
    """Return the starts of a name that end in "/", the shortest first; not "/" itself."""
    parts = name.split("/")
    return ["/".join(parts[:count]) + "/" for count in range(2, len(parts))]
