"""Models beside each other on one GPU: their parts, and what their precision costs (`rtdetr-bench roofline`)."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from rtdetr_bench.options import RooflineOptions
from rtdetr_bench.roofline.estimate import Estimate, estimate
from rtdetr_bench.roofline.factors import Factors, fitted_factors, stored_fit
from rtdetr_bench.roofline.gpus import GPUS, Gpu, find_gpu
from rtdetr_bench.roofline.model_parts import is_sampler, parts_of
from rtdetr_bench.roofline.precision_cost import PrecisionCost, measure_precision
from rtdetr_bench.roofline.tables import MODEL, Table, head_of, tables_of
from rtdetr_deploy.errors import ArtifactError
from rtdetr_deploy.files import require_file
from rtdetr_deploy.words import plural, printable

ISLANDS_SHOWN = 12
NAME_SHOWN = 22
TEXT_SHOWN = 52


@dataclass(frozen=True)
class PartCost:
    """A part of a model: its lower bound and its estimate in milliseconds, and how much of that is the sampler's."""

    name: str
    bound: float
    milliseconds: float
    sampler: float


@dataclass(frozen=True)
class KernelCost:
    """A kernel: its nodes, the part that it belongs to, and its lower bound and estimate in milliseconds.

    `flops` by the rate of `Gpu` that they run at; bytes `read` and `written`.
    """

    nodes: tuple[str, ...]
    part: str
    flops: Mapping[str, float]
    read: int
    written: int
    bound: float
    ms: float


@dataclass(frozen=True)
class ModelCost:
    """A model file on a GPU: its parts in the order of the graph, and what its precision costs.

    `kernels` are those that were asked for, those that take longest first.
    """

    name: str
    estimate: Estimate
    parts: tuple[PartCost, ...]
    precision: PrecisionCost
    kernels: tuple[KernelCost, ...] = ()

    @property
    def gflops(self) -> float:
        """10^9 operations of convolutions, matrix products and softmax."""
        return sum(count for item in self.estimate.timed for count in item.kernel.flops.values()) / 1e9

    @property
    def megabytes(self) -> float:
        """Megabytes that the kernels read and write."""
        return sum(item.kernel.read + item.kernel.written for item in self.estimate.timed) / 1e6

    def to_json(self) -> dict[str, Any]:
        """Return the costs as plain numbers and text."""
        return {
            "name": self.name,
            "milliseconds": round(self.estimate.milliseconds, 4),
            "bound": round(self.estimate.bound, 4),
            "in_fp16": round(self.precision.in_fp16, 4),
            "all_fp32": self.precision.single,
            "kernel_count": len(self.estimate.timed),
            "gflops": round(self.gflops, 3),
            "megabytes": round(self.megabytes, 2),
            "casts": self.precision.casts,
            "cast_kernels": self.precision.cast_kernels,
            "cast_milliseconds": round(self.precision.cast_milliseconds, 4),
            "parts": [_rounded(asdict(part)) for part in self.parts],
            "islands": [_rounded({**asdict(one), "cost": one.cost}) for one in self.precision.islands],
            "kernels": [_rounded(asdict(kernel)) for kernel in self.kernels],
        }


@dataclass(frozen=True)
class Roofline:
    """Models on one GPU with the same factors; the first is what the others are compared with."""

    gpu: Gpu
    factors: Factors
    models: tuple[ModelCost, ...]

    @property
    def max_error(self) -> float | None:
        """The maximum relative error on published times; None for a GPU without any."""
        fit = stored_fit()
        return fit["max_error"] if self.gpu == GPUS[fit["gpu"]] else None

    def to_json(self) -> dict[str, Any]:
        """Return all costs as plain numbers and text."""
        return {
            "gpu": asdict(self.gpu),
            "factors": asdict(self.factors),
            "max_error": self.max_error,
            "models": [model.to_json() for model in self.models],
        }


def study_roofline(options: RooflineOptions) -> Roofline:
    """Return what the models cost on the GPU.

    Raises `OptionError` for an unknown GPU or another batch than a file's, `ArtifactError` for a file that is not an
    ONNX model, whose shapes can't be known, that lacks weights, or that has nothing to compute.
    """
    gpu, factors = find_gpu(options.gpu), fitted_factors()
    files = (options.engine, *options.against)
    return Roofline(gpu, factors, tuple(_cost_of(file, gpu, factors, options) for file in files))


def _cost_of(file: Path, gpu: Gpu, factors: Factors, options: RooflineOptions) -> ModelCost:
    model = _load(file)
    try:
        found = estimate(model, gpu, options.batch, factors)
    except ArtifactError as error:
        raise ArtifactError(f"{file.name}: {error}") from error
    if not found.timed:
        raise ArtifactError(
            f"{file.name}: nothing is left to compute; its outputs depend on constants alone, or are views"
        )
    precision = measure_precision(found, factors)
    return ModelCost(file.name, found, tuple(_parts(found)), precision, tuple(_longest(found, options.top)))


def _load(file: Path) -> Any:
    if file.suffix.lower() != ".onnx" and not file.is_dir():
        raise ArtifactError(f"{file.name} is not an .onnx file; an engine's cost is that of the file it was built from")
    require_file(file, ArtifactError)
    try:
        model = onnx.load(str(file), load_external_data=False)
    except DecodeError as error:
        raise ArtifactError(f"{file.name} is not an ONNX model: {error}") from error
    if not model.graph.node:
        raise ArtifactError(f"{file.name} is not an ONNX model: it holds no operations")
    return model


def _parts(found: Estimate) -> Iterator[PartCost]:
    names = parts_of([item.kernel for item in found.timed])
    for name in dict.fromkeys(names):
        own = [item for part, item in zip(names, found.timed, strict=True) if part == name]
        sampler = sum(item.estimate for item in own if is_sampler(item.kernel))
        yield PartCost(name, sum(item.bound for item in own), sum(item.estimate for item in own), sampler)


def _longest(found: Estimate, count: int) -> Iterator[KernelCost]:
    """Yield the `count` kernels that take longest."""
    parts = parts_of([item.kernel for item in found.timed])
    ordered = sorted(zip(parts, found.timed, strict=True), key=lambda pair: -pair[1].estimate)
    for part, item in ordered[:count]:
        nodes = tuple(operation.name for operation in item.kernel.operations)
        kernel = item.kernel
        yield KernelCost(nodes, part, kernel.flops, kernel.read, kernel.written, item.bound, item.estimate)


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in values.items()}


def format_roofline(found: Roofline) -> str:
    """Return the tables: parts of all models, then the islands of each, and the kernels that were asked for."""
    study = found.to_json()
    head = textwrap.fill(f"{found.gpu.name}. {head_of(study)}", 100)
    return "\n".join([head, *(line.rstrip() for table in tables_of(study) for line in _lines(table))])


def _lines(table: Table) -> Iterator[str]:
    yield f"\n{printable(table.title)}"
    rows = list(table.rows)
    if table.head[0] == "module" and len(rows) > ISLANDS_SHOWN:
        hidden = rows[ISLANDS_SHOWN:]
        cost = sum(float(row[3]) for row in hidden)
        rows = [*rows[:ISLANDS_SHOWN], (f"{plural(len(hidden), 'other')}", "", "", f"{cost:+.3f}", "")]
    if rows:
        limit = NAME_SHOWN if table.head[0] == MODEL else TEXT_SHOWN
        cells = [tuple(_short(cell, NAME_SHOWN) for cell in table.head)]
        cells += [(_short(row[0], limit), *row[1:]) for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for first, *others in cells:
            yield f"{first:<{widths[0]}}" + "".join(
                f"{cell:>{width + 2}}" for cell, width in zip(others, widths[1:], strict=True)
            )
    for note in table.notes:
        yield from textwrap.wrap(note, 100)


def _short(name: str, limit: int) -> str:
    name = printable(name.removesuffix(".onnx"))
    return name if len(name) <= limit else f"{name[: limit // 2 - 1]}..{name[1 - limit // 2 :]}"
