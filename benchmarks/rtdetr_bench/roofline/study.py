"""Models beside each other on one GPU: their parts, and what their precision costs (`rtdetr-bench roofline`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from rtdetr_bench.options import RooflineOptions
from rtdetr_bench.roofline.estimate import Estimate, estimate
from rtdetr_bench.roofline.factors import Factors, fitted_factors, stored_fit
from rtdetr_bench.roofline.gpus import Gpu, find_gpu
from rtdetr_bench.roofline.model_parts import is_sampler, parts_of
from rtdetr_bench.roofline.precision_cost import PrecisionCost, measure_precision
from rtdetr_deploy.errors import ArtifactError
from rtdetr_deploy.files import require_file

ISLANDS_SHOWN = 12


@dataclass(frozen=True)
class PartCost:
    """A part of a model: its lower bound and its estimate in milliseconds, and how much of that is the sampler's."""

    name: str
    bound: float
    milliseconds: float
    sampler: float


@dataclass(frozen=True)
class ModelCost:
    """A model file on a GPU: its parts in the order of the graph, and what its precision costs."""

    name: str
    estimate: Estimate
    parts: tuple[PartCost, ...]
    precision: PrecisionCost

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
            "fp16_everywhere": round(self.precision.in_fp16, 4),
            "kernels": len(self.estimate.timed),
            "gflops": round(self.gflops, 3),
            "megabytes": round(self.megabytes, 2),
            "casts": self.precision.casts,
            "cast_kernels": self.precision.cast_kernels,
            "cast_milliseconds": round(self.precision.cast_milliseconds, 4),
            "parts": [_rounded(asdict(part)) for part in self.parts],
            "islands": [_rounded({**asdict(one), "cost": one.cost}) for one in self.precision.islands],
        }


@dataclass(frozen=True)
class Roofline:
    """Models on one GPU with the same factors; the first is what the others are compared with."""

    gpu: Gpu
    factors: Factors
    models: tuple[ModelCost, ...]

    def to_json(self) -> dict[str, Any]:
        """Return all costs as plain numbers and text."""
        return {
            "gpu": asdict(self.gpu),
            "factors": asdict(self.factors),
            "max_error": stored_fit()["max_error"],
            "models": [model.to_json() for model in self.models],
        }


def study_roofline(options: RooflineOptions) -> Roofline:
    """Return what the models cost on the GPU.

    Raises `OptionError` for an unknown GPU or another batch than a file's, `ArtifactError` for a file that is not an
    ONNX model or whose shapes can't be known.
    """
    gpu, factors = find_gpu(options.gpu), fitted_factors()
    files = (options.engine, *options.against)
    return Roofline(gpu, factors, tuple(_cost_of(file, gpu, factors, options.batch) for file in files))


def _cost_of(file: Path, gpu: Gpu, factors: Factors, batch: int | None) -> ModelCost:
    found = estimate(_load(file), gpu, batch, factors)
    return ModelCost(file.name, found, tuple(_parts(found)), measure_precision(found, factors))


def _load(file: Path) -> Any:
    if file.suffix.lower() != ".onnx":
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


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in values.items()}


def format_roofline(found: Roofline) -> str:
    """Return the tables: parts of all models, then the islands of each."""
    gpu, factors = found.gpu, found.factors
    head = (
        f"{gpu.name}: an estimate, not a measurement ({factors.compute:.2f} of the peak rates, {factors.bandwidth:.2f} "
        f"of the bandwidth,\n{factors.launch:.1f} us a kernel: fitted on published T4 times, other published times "
        f"within {stored_fit()['max_error']:.1%})"
    )
    lines = [head, "", *_part_lines(found), *(line for model in found.models for line in _island_lines(model))]
    return "\n".join(line.rstrip() for line in lines)


def _part_lines(found: Roofline) -> Iterator[str]:
    models = found.models
    longest_first = sorted(models, key=lambda model: -len(model.parts))
    names = list(dict.fromkeys(part.name for model in longest_first for part in model.parts))
    width = max(20, *map(len, names)) + 2
    yield f"{'ms':<{width}}" + "".join(f"{_short(model.name):>24}" for model in models)
    by_name = [{part.name: part for part in model.parts} for model in models]
    for name in names:
        yield f"{name:<{width}}" + "".join(
            _cell(parts.get(name), model) for parts, model in zip(by_name, models, strict=True)
        )
        if any(name in parts and parts[name].sampler for parts in by_name):
            samplers = (f"{parts[name].sampler:.3f}" if name in parts else "-" for parts in by_name)
            yield f"{'  of it the sampler':<{width}}" + "".join(f"{time:>16}{'':>8}" for time in samplers)
    rows: list[tuple[str, list[str]]] = [
        ("all", [f"{model.estimate.milliseconds:.3f}" for model in models]),
        ("lower bound", [f"{model.estimate.bound:.3f}" for model in models]),
        ("with FP16 everywhere", [f"{model.precision.in_fp16:.3f}" for model in models]),
        ("GFLOP", [f"{model.gflops:.1f}" for model in models]),
        ("MB read and written", [f"{model.megabytes:.1f}" for model in models]),
        ("kernels", [str(len(model.estimate.timed)) for model in models]),
        ("Casts of floats", [str(model.precision.casts) for model in models]),
    ]
    for name, values in rows:
        yield f"{name:<{width}}" + "".join(f"{value:>16}{'':>8}" for value in values)


def _cell(part: PartCost | None, model: ModelCost) -> str:
    if part is None:
        return f"{'-':>16}{'':>8}"
    return f"{part.milliseconds:>16.3f}{part.milliseconds / model.estimate.milliseconds:>7.1%} "


def _island_lines(model: ModelCost) -> Iterator[str]:
    islands, cost = model.precision.islands, model.precision
    if not islands:
        return
    yield f"\n{model.name}: FP32 and Casts, and what they cost against FP16 everywhere"
    yield f"{'module':<52}{'ms':>8}{'in FP16':>9}{'cost':>8}{'Casts':>7}"
    for one in islands[:ISLANDS_SHOWN]:
        yield f"{one.module:<52}{one.milliseconds:>8.3f}{one.in_fp16:>9.3f}{one.cost:>+8.3f}{one.casts:>7}"
    rest = sum(one.cost for one in islands[ISLANDS_SHOWN:])
    if len(islands) > ISLANDS_SHOWN:
        yield f"{f'{len(islands) - ISLANDS_SHOWN} others':<69}{rest:>+8.3f}"
    if cost.cast_kernels:
        yield f"{cost.cast_kernels} kernels begin with a Cast and take {cost.cast_milliseconds:.3f} ms (counted above)"


def _short(name: str) -> str:
    name = name.removesuffix(".onnx")
    return name if len(name) <= 22 else f"{name[:10]}..{name[-10:]}"
