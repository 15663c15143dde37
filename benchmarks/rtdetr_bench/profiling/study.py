"""A model's time by part and by operator, and how far it is above the machine's floor (`rtdetr-bench profile`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from rtdetr_bench.options import ProfileOptions
from rtdetr_bench.profiling.nodes import NodeTime, Profile, profile
from rtdetr_bench.profiling.peak import BF16, FP32, INT8, measure_peaks
from rtdetr_bench.roofline.fusion import fuse
from rtdetr_bench.roofline.graph import read_graph
from rtdetr_bench.roofline.model_parts import OTHER, part_of
from rtdetr_bench.roofline.work import MATRIX
from rtdetr_deploy.errors import ArtifactError
from rtdetr_deploy.words import printable

Work = Mapping[str, Mapping[str, float]]
"""FLOPs of convolutions and matrix products by part, then by precision."""


@dataclass(frozen=True)
class Share:
    """Nodes of one kind together: how many, their milliseconds and the floor of these (None: not known)."""

    name: str
    nodes: int
    ms: float
    floor: float | None = None


@dataclass(frozen=True)
class ModelProfile:
    """A file's profile in one runtime; `peaks` are GFLOP/s by precision, `longest` the nodes that were asked for.

    `gflops` and `floor` (milliseconds) are None for a file that is not ONNX.
    """

    name: str
    profile: Profile
    peaks: Mapping[str, float]
    gflops: float | None
    floor: float | None
    parts: tuple[Share, ...]
    operators: tuple[Share, ...]
    longest: tuple[NodeTime, ...] = ()

    @property
    def reached(self) -> float | None:
        """Share of the machine's peak that whole calls reach, 0 to 1."""
        return None if self.floor is None else self.floor / self.profile.call

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain numbers and text, times in milliseconds."""
        return {
            "name": self.name,
            "runtime": self.profile.runtime,
            "call_ms": round(self.profile.call, 3),
            "nodes_ms": round(sum(node.ms for node in self.profile.nodes), 3),
            "gflops": _rounded(self.gflops),
            "floor_ms": _rounded(self.floor),
            "reached": _rounded(self.reached),
            "peaks": {name: round(rate, 1) for name, rate in self.peaks.items()},
            "parts": [_share(share) for share in self.parts],
            "operators": [_share(share) for share in self.operators],
            "nodes": len(self.profile.nodes),
            "longest": [{**asdict(node), "ms": round(node.ms, 4)} for node in self.longest],
        }


def study_profile(options: ProfileOptions) -> ModelProfile:
    """Profile a file. Raises what `profile` does, and `ArtifactError` for an .onnx file that is not an ONNX model."""
    work = read_work(options.engine)
    peaks = measure_peaks(options.runtime, options.where.threads)
    found = profile(
        options.engine, options.runtime, options.runs, threads=options.where.threads, precision=options.precision
    )
    floors = None if work is None else {part: _floor(flops, peaks, options.precision) for part, flops in work.items()}
    return ModelProfile(
        name=options.engine.name,
        profile=found,
        peaks=peaks,
        gflops=None if work is None else sum(sum(flops.values()) for flops in work.values()) / 1e9,
        floor=None if floors is None else sum(floors.values()),
        parts=_group(found.nodes, lambda node: part_of(node.name) or OTHER, floors),
        operators=_group(found.nodes, lambda node: f"{node.operator} {node.kernel}".rstrip()),
        longest=tuple(sorted(found.nodes, key=lambda node: -node.ms)[: options.top]),
    )


def read_work(path: Path) -> Work | None:
    """Return the FLOPs of an ONNX file for one image, its Q/DQ pairs taken in; None for other files."""
    if path.suffix.lower() != ".onnx":
        return None
    try:
        graph = read_graph(onnx.load(str(path), load_external_data=False))
    except DecodeError as error:
        raise ArtifactError(f"{path.name} is not an ONNX model: {error}") from error
    work: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for kernel in fuse(graph):
        matrix = [operation for operation in kernel.operations if operation.operator in MATRIX]
        for unit, flops in kernel.flops.items():
            if matrix:
                work[part_of(matrix[0].name) or OTHER][INT8 if unit == "int8" else FP32] += flops
    return work


def _floor(flops: Mapping[str, float], peaks: Mapping[str, float], precision: str) -> float:
    """Return the milliseconds of FLOPs by precision at the peaks; floats are computed in `precision`."""
    floats = BF16 if precision == BF16 and BF16 in peaks else FP32
    return sum(count / peaks[INT8 if kind == INT8 else floats] / 1e6 for kind, count in flops.items())


def _group(
    nodes: Iterable[NodeTime], name_of: Callable[[NodeTime], str], floors: Mapping[str, float] | None = None
) -> tuple[Share, ...]:
    """Return the nodes by name, those that take longest first."""
    groups: dict[str, list[float]] = defaultdict(list)
    for node in nodes:
        groups[name_of(node)].append(node.ms)
    shares = (
        Share(name, len(times), sum(times), None if floors is None else floors.get(name, 0.0))
        for name, times in groups.items()
    )
    return tuple(sorted(shares, key=lambda share: -share.ms))


def format_profile(found: ModelProfile) -> str:
    """Return the floor, the tables by part and by operator, and the nodes that take longest."""
    total = sum(node.ms for node in found.profile.nodes)
    peaks = ", ".join(f"{name.upper()} {rate:.0f}" for name, rate in found.peaks.items())
    lines = [
        f"{printable(found.name)}, {found.profile.runtime}: {found.profile.call:.1f} ms per call, nodes {total:.1f} ms",
        f"peak of convolutions here, GFLOP/s: {peaks}",
    ]
    if found.floor is not None and found.gflops is not None and found.reached is not None:
        lines.append(
            f"{found.gflops:.1f} GFLOP: floor {found.floor:.1f} ms, {found.reached:.0%} of the peak is reached"
        )
    lines += _table("part", found.parts, total)
    lines += _table("operator", found.operators, total)
    if found.longest:
        lines += ["", "nodes that take longest"]
        lines += [f"{node.ms:9.2f} ms  {node.operator}  {printable(node.name)}" for node in found.longest]
    return "\n".join(lines)


def _table(head: str, shares: Iterable[Share], total: float) -> list[str]:
    shares = list(shares)
    width = max([len(head), *(len(share.name) for share in shares)])
    floors = any(share.floor is not None for share in shares)
    lines = ["", f"{head:<{width}}  nodes        ms   share" + ("     floor" if floors else "")]
    for share in shares:
        floor = "" if share.floor is None else f"  {share.floor:8.1f}"
        lines.append(f"{share.name:<{width}}  {share.nodes:5}  {share.ms:8.2f}  {share.ms / total:6.1%}{floor}")
    return lines


def _share(share: Share) -> dict[str, Any]:
    return {"name": share.name, "nodes": share.nodes, "ms": round(share.ms, 3), "floor_ms": _rounded(share.floor)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
