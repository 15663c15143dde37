"""Fits the cost model's three factors on four published T4 times, and shows the errors on all the others.

    python -m rtdetr_bench.roofline.fit --output benchmarks/rtdetr_bench/roofline/t4_fit.json

The graphs are those that the times were measured on, in the released exporter's form, with FP16 everywhere: that is
what TensorRT's flag for FP16 made of them (see `released`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtdetr_bench.results import write_json
from rtdetr_bench.roofline.factors import Factors
from rtdetr_bench.roofline.fusion import Kernel, fuse
from rtdetr_bench.roofline.gpus import GPUS, Gpu
from rtdetr_deploy.cli.arguments import Parser
from rtdetr_deploy.cli.run import run_main
from rtdetr_deploy.evaluate.published import DECODER_LAYERS, ENCODERS, POINTS, SOURCE
from rtdetr_deploy.files import check_writable
from rtdetr_deploy.options import path_argument
from rtdetr_deploy.packages import needed_for

FITTED_ON = ("R18", "R50", "R101", "R50, 1 layer")
"""The range of the variants, and the two ends of the decoder depths."""
OTHER_READINGS = {"C": "C_MSE"}
"""An encoder that the paper can be read in two ways for: both are estimated, and the second one counts."""
START = Factors(0.5, 0.75, 5.0)
SMALLEST_STEP = 1e-5


@dataclass(frozen=True)
class Figure:
    """A published time of batch 1 at 640x640, and the model that it belongs to; `counts`: not a rejected reading."""

    name: str
    milliseconds: float
    variant: str
    layers: int | None = None
    encoder: str | None = None
    counts: bool = True


@dataclass(frozen=True)
class Row:
    """A figure, what the model estimates for it, its lower bound, and whether the factors were fitted on it."""

    figure: Figure
    estimate: float
    bound: float
    fitted_on: bool

    @property
    def error(self) -> float:
        """The estimate's relative error."""
        return self.estimate / self.figure.milliseconds - 1.0


def published_figures() -> tuple[Figure, ...]:
    """Return the variants, R50's decoder depths and its encoders, each model once."""
    variants = (Figure(p.name, 1000.0 / p.fps, p.name.lower()) for p in POINTS if p.family == "RT-DETR")
    depths = (
        Figure(f"R50, {count} layer{'s' * (count > 1)}", row[1], "r50", layers=count)
        for count, row in DECODER_LAYERS.items()
        if count < max(DECODER_LAYERS)
    )
    return (*variants, *depths, *_encoders())


def _encoders() -> Iterator[Figure]:
    for name, (_, _, milliseconds) in ENCODERS.items():
        if name == "E":  # R50 itself
            continue
        other = OTHER_READINGS.get(name)
        yield Figure(f"R50, encoder {name}", milliseconds, "r50", encoder=name, counts=other is None)
        if other is not None:
            yield Figure(f"R50, encoder {other}", milliseconds, "r50", encoder=other)


def find_kernels(figure: Figure) -> tuple[Kernel, ...]:
    """Return the kernels of a figure's model. Raises `MissingPackageError` without the packages of exports."""
    with needed_for("fitting the cost model", "export"):
        from rtdetr_bench.roofline.everywhere import in_fp16
        from rtdetr_bench.roofline.graph import read_graph
        from rtdetr_bench.roofline.released import released_graph
    return fuse(in_fp16(read_graph(released_graph(figure.variant, figure.layers, figure.encoder))))


class Workload:
    """The milliseconds that each kernel of a model takes at a GPU's peak rates, and at its peak bandwidth."""

    def __init__(self, kernels: Sequence[Kernel], gpu: Gpu) -> None:
        from rtdetr_bench.roofline.estimate import compute_time, memory_time

        self._compute: NDArray[np.float64] = np.array([compute_time(kernel, gpu) for kernel in kernels])
        self._memory: NDArray[np.float64] = np.array([memory_time(kernel, gpu) for kernel in kernels])

    def time(self, factors: Factors) -> float:
        """Return the milliseconds of all kernels, as `estimate` does."""
        busy = np.maximum(self._compute / factors.compute, self._memory / factors.bandwidth)
        return float(busy.sum() + len(busy) * factors.launch / 1e3)


def fit_factors(workloads: Mapping[str, Workload], published: Mapping[str, float]) -> Factors:
    """Return the factors with the smallest sum of squared relative errors (logarithms) over the `published` times.

    A pattern search: each factor is changed by a step in turn, and steps are halved where no change helps.
    """
    logs = np.log([*asdict(START).values()])
    best, step = _squares(logs, workloads, published), 0.25
    while step > SMALLEST_STEP:
        tries = [logs + sign * step * axis for axis in _directions() for sign in (1.0, -1.0)]
        errors = [_squares(one, workloads, published) for one in tries]
        lowest = int(np.argmin(errors))
        if errors[lowest] < best:
            logs, best = tries[lowest], errors[lowest]
        else:
            step /= 2
    return Factors(*(float(value) for value in np.exp(logs)))


def _directions() -> NDArray[np.float64]:
    """Return single factors and pairs: those of bandwidth and launch make up for each other, one alone would stick."""
    single = np.eye(3)
    pairs = [single[a] + sign * single[b] for a in range(3) for b in range(a) for sign in (1.0, -1.0)]
    return np.array([*single, *pairs])


def _squares(logs: NDArray[np.float64], workloads: Mapping[str, Workload], published: Mapping[str, float]) -> float:
    factors = Factors(*np.exp(logs))
    return float(sum(np.log(workloads[name].time(factors) / time) ** 2 for name, time in published.items()))


def fit(gpu: Gpu = GPUS["t4"], *, on_step: Callable[[str], object] = lambda _: None) -> tuple[Factors, list[Row]]:
    """Return the factors, and a row for each published figure. `on_step` is called with what is being done."""
    workloads, figures = {}, published_figures()
    for figure in figures:
        on_step(figure.name)
        workloads[figure.name] = Workload(find_kernels(figure), gpu)
    published = {figure.name: figure.milliseconds for figure in figures if figure.name in FITTED_ON}
    factors = fit_factors(workloads, published)
    ideal = replace(factors, compute=1.0, bandwidth=1.0, launch=0.0)
    return factors, [
        Row(figure, workloads[figure.name].time(factors), workloads[figure.name].time(ideal), figure.name in published)
        for figure in figures
    ]


def max_error(rows: Sequence[Row]) -> float:
    """Return the maximum relative error on figures that were not fitted on."""
    return max(abs(row.error) for row in rows if row.figure.counts and not row.fitted_on)


def format_fit(factors: Factors, rows: Sequence[Row]) -> str:
    """Return the factors and the rows as a table."""
    told = f"{factors.compute:.3f} of the peak rates, {factors.bandwidth:.3f} of the bandwidth"
    lines = [f"{told}, {factors.launch:.2f} us a kernel", f"{'':<20}{'published':>10}{'estimate':>10}{'error':>9}"]
    for row in rows:
        mark = "  fitted on" if row.fitted_on else "" if row.figure.counts else "  rejected reading"
        lines.append(
            f"{row.figure.name:<20}{row.figure.milliseconds:>10.2f}{row.estimate:>10.2f}{row.error:>+9.1%}{mark}"
        )
    return "\n".join([*lines, f"maximum error where nothing was fitted: {max_error(rows):.1%}"])


def to_json(factors: Factors, rows: Sequence[Row]) -> dict[str, object]:
    """Return what is stored: rounded, so that it is the same on every machine."""
    return {
        "gpu": "t4",
        "source": SOURCE,
        "factors": {name: round(value, 4) for name, value in asdict(factors).items()},
        "max_error": round(max_error(rows), 3),
        "figures": [
            {
                "name": row.figure.name,
                "published": round(row.figure.milliseconds, 2),
                "estimate": round(row.estimate, 2),
                "bound": round(row.bound, 2),
                "fitted_on": row.fitted_on,
                "counts": row.figure.counts,
            }
            for row in rows
        ],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser("rtdetr_bench.roofline.fit", (__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=path_argument, help="file to write the fit to (default: only print it)")
    return run_main("rtdetr_bench.roofline.fit", lambda: _run(parser.parse_args(argv).output), "nothing was fitted")


def _run(output: Path | None) -> int:
    if output is not None:
        check_writable(output)
    factors, rows = fit(on_step=lambda name: print(f"{name} ...", file=sys.stderr))  # noqa: T201
    print(format_fit(factors, rows))  # noqa: T201
    if output is not None:
        write_json(output, to_json(factors, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
