"""What a model's family says about the nodes of its graph: which stay in FP32, and to which block each belongs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from rtdetr_deploy.errors import ExportError
from rtdetr_deploy.model.fp32_scope import Fp32Scope, match_module
from rtdetr_export.graph import MODEL, DeployedModel
from rtdetr_export.module_map import ModuleMap


@dataclass(frozen=True)
class Placement:
    """By name of a node: the scope that `kept` it in FP32, and its block, a path in the model (`encoder.pan_blocks.0`).

    Nodes that are in neither dictionary stay in FP32 for no reason of the family's, and belong to no block.
    `unquantized` are the names of those that stay out of INT8.
    """

    kept: Mapping[str, Fp32Scope] = field(default_factory=dict)
    blocks: Mapping[str, str] = field(default_factory=dict)
    unquantized: frozenset[str] = frozenset()

    def only(self, *scopes: str) -> Placement:
        """Return the placement with no other scopes than those called so."""
        return replace(self, kept={node: scope for node, scope in self.kept.items() if scope.name in scopes})

    def without(self, *scopes: str) -> Placement:
        """Return the placement without the scopes called so."""
        return replace(self, kept={node: scope for node, scope in self.kept.items() if scope.name not in scopes})


def place(graph: ir.Model, deployed: DeployedModel, modules: ModuleMap) -> Placement:
    """Return what the family of `deployed` says about the nodes of `graph`, which was traced from it.

    Raises `ExportError` for a scope, block or part that matches nothing, and for a node whose module is not known.
    """
    modules.require(str(node.name) for node in graph.graph)
    module_of = modules_of(graph, modules)
    operators = {str(node.name): node.op_type for node in graph.graph}
    kept: dict[str, Fp32Scope] = {}
    for scope in deployed.fp32_scopes:
        nodes = [name for name, module in module_of.items() if scope.covers(module, operators[name])]
        if not nodes:
            raise ExportError(f"no node is in the FP32 scope {scope.name!r} ({scope.module})")
        kept |= {name: scope for name in nodes if name not in kept}
    globs = deployed.quantization_blocks
    blocks = {name: block for name, module in module_of.items() if (block := _block_of(module, globs)) is not None}
    for glob in globs:
        if not any(match_module(glob, f"{MODEL}.{block}") for block in blocks.values()):
            raise ExportError(f"no node is in a quantization block {glob}")
    return Placement(kept, blocks, _unquantized(module_of, deployed.unquantized))


def _unquantized(module_of: Mapping[str, str], globs: Sequence[str]) -> frozenset[str]:
    names: set[str] = set()
    for glob in globs:
        found = {name for name, module in module_of.items() if match_module(glob, module) is not None}
        if not found:
            raise ExportError(f"no node is in {glob}, which stays out of INT8")
        names |= found
    return frozenset(names)


def modules_of(graph: ir.Model, modules: ModuleMap) -> dict[str, str]:
    """Return the path of the module that computes each node, by name of the node; what has none is left out."""
    named = {str(node.name): _module_of(node, modules) for node in graph.graph}
    return {name: module for name, module in named.items() if module is not None}


def _module_of(node: ir.Node, modules: ModuleMap) -> str | None:
    """Return the module that computes `node`. What the simplification put in for others keeps the names of values."""
    names = (node.name, *(value.name for value in node.outputs))
    found = (modules.module_of(str(name)) for name in names)
    return next((module for module in found if module is not None), None)


def _block_of(module: str, globs: Sequence[str]) -> str | None:
    paths = (match_module(glob, module) for glob in globs)
    block = next((path for path in paths if path is not None), None)
    return None if block is None else block.removeprefix(f"{MODEL}.")
