"""Parameters and GFLOPs of every variant beside the published ones."""

from __future__ import annotations

from dataclasses import dataclass

from rtdetr_deploy.evaluate.published import COMPLEXITY
from rtdetr_deploy.model.complexity import measure_complexity
from rtdetr_deploy.model.variants import VARIANTS


@dataclass(frozen=True)
class VariantRow:
    """A variant at 640x640: decoder `layers` run by default of `max_layers`, millions of `parameters`, `gflops`.

    A multiply-add is two operations. What was not published is None.
    """

    name: str
    layers: int
    max_layers: int
    parameters: float
    published_parameters: float | None
    gflops: float
    published_gflops: float | None

    def __str__(self) -> str:
        layers = f"{self.layers} of {self.max_layers}"
        parameters, gflops = (
            "-" if figure is None else f"{figure:g}" for figure in (self.published_parameters, self.published_gflops)
        )
        return f"{self.name:<10} {layers:>8} {self.parameters:>11.2f} {parameters:>10} {self.gflops:>8.1f} {gflops:>10}"


def measure_variants() -> list[VariantRow]:
    """Return a row for every variant; needs torch."""
    rows = []
    for name, variant in VARIANTS.items():
        counted = measure_complexity(variant)
        parameters, gflops = COMPLEXITY.get(name, (None, None))
        rows.append(
            VariantRow(name, variant.layers, variant.max_layers, counted.parameters, parameters, counted.gflops, gflops)
        )
    return rows
