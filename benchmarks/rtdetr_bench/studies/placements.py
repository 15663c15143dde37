"""Ways to place FP16 that are compared: what rtdetr-export does, and with less of the model in FP32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx_ir

from rtdetr_deploy import __version__
from rtdetr_deploy.artifacts.metadata import METADATA_KEY, ArtifactInfo
from rtdetr_export import ExportOptions
from rtdetr_export.graph import POSTPROCESS
from rtdetr_export.pipeline import trace_checkpoint
from rtdetr_export.precision.fp16 import to_fp16
from rtdetr_export.precision.placement import Placement
from rtdetr_export.simplify import serialize

PIXELS = "first convolution"
"""The FP32 scope of the convolution that reads pixels."""
EXPORTED = "FP16 by rtdetr-export"
PLACEMENTS: dict[str, Callable[[Placement], Placement]] = {
    EXPORTED: lambda placement: placement,
    "the same, first convolution in FP16 too": lambda placement: placement.without(PIXELS),
    "FP16 everywhere": lambda placement: placement.only(POSTPROCESS.name),
}
"""What becomes of the placement that is exported. Everywhere is the model: postprocessing stays in FP32."""


def write_placements(weights: Path, path: Path, *, each_scope: bool = False) -> Iterator[str]:
    """Write a checkpoint with each placement to `path`, one after another, and yield its name once it is there.

    With `each_scope` the placements without one of the other FP32 scopes follow.
    """
    traced = trace_checkpoint(ExportOptions(weights, precision="fp16"))  # the graph that FP16 files have
    placements = {name: change(traced.placement) for name, change in PLACEMENTS.items()}
    if each_scope:
        scopes = dict.fromkeys(scope.name for scope in traced.placement.kept.values())
        others = (name for name in scopes if name not in (PIXELS, POSTPROCESS.name))
        placements |= {f"the same, {name} in FP16 too": traced.placement.without(name) for name in others}
    for name, placement in placements.items():
        graph = traced.graph.clone()
        to_fp16(graph, keep=placement.kept)
        save(graph, traced.info, path)
        yield name


def save(graph: onnx_ir.Model, info: ArtifactInfo, path: Path) -> Path:
    """Write a graph with what is known of it."""
    path.write_bytes(serialize(graph, {METADATA_KEY: info.to_json()}, __version__))
    return path
