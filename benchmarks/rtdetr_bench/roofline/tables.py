"""What an estimate says, as tables of its JSON: the command prints them, the report shows the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rtdetr_deploy.words import plural

Json = dict[str, Any]
DECODER = "decoder layers"
REST = "rest"
MAX_PARTS = 7
"""Parts that are told apart where decoder layers are one; the cheapest beyond them are one, too."""
MIN_SHARE = 0.02
"""Of any model's time: parts below it are in the rest."""
MAX_BESIDE = 4
"""Models that stand beside each other, a column of parts each; of more, each is a row."""
PART = "part"
MODEL = "model"


@dataclass(frozen=True)
class Table:
    """Rows below their heads, what they are, and sentences that stand below them."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def tables_of(study: Json) -> Iterator[Table]:
    """Yield the tables of all models, then those of each: its islands, and the kernels that were asked for."""
    models = study["models"]
    yield from [_beside(models)] if len(models) <= MAX_BESIDE else _below(models)
    for model in models:
        yield from _islands(model)
    for model in models:
        yield from _kernels(model)


def head_of(study: Json) -> str:
    """Return what the times are, and how well the factors are known on the GPU."""
    gpu, factors, error = study["gpu"]["name"], study["factors"], study["max_error"]
    known = (
        f"never checked on the {gpu}; no error is known"
        if error is None
        else f"other published times come out within {100 * error:.1f} %"
    )
    return (
        "An estimate from the files alone, nothing was run. Each kernel takes the longer of its FLOPs at "
        f"{factors['compute']:.2f} of the peak rates and its bytes at {factors['bandwidth']:.2f} of the peak "
        f"bandwidth, and {factors['launch']:.1f} microseconds more. These factors were fitted on four published T4 "
        f"times: {known}."
    )


def group_parts(models: Sequence[Json], key: str = "milliseconds") -> dict[str, list[float]]:
    """Return a time of each model by groups of parts: decoder layers together, few enough for a plot."""
    grouped, shares = _grouped(models, key), _grouped(models, "milliseconds")
    totals = [sum(column) or 1.0 for column in zip(*shares.values(), strict=True)]
    largest = {name: max(map(_ratio, values, totals)) for name, values in shares.items()}
    kept = sorted((name for name in grouped if largest[name] >= MIN_SHARE), key=lambda name: -largest[name])
    if len(grouped) - len(kept) < 2 and len(grouped) <= MAX_PARTS:
        return grouped
    kept = kept[: MAX_PARTS - 1]
    rest = [values for name, values in grouped.items() if name not in kept]
    return {name: values for name, values in grouped.items() if name in kept} | {
        REST: [sum(column) for column in zip(*rest, strict=True)]
    }


def _grouped(models: Sequence[Json], key: str) -> dict[str, list[float]]:
    grouped: dict[str, list[float]] = {}
    for index, model in enumerate(models):
        for part in model["parts"]:
            name = DECODER if part["name"].startswith("decoder layer") else part["name"]
            grouped.setdefault(name, [0.0] * len(models))[index] += part[key]
    return grouped


def _ratio(value: float, whole: float) -> float:
    return value / whole


TOTALS = (
    ("all", "milliseconds", ".3f"),
    ("lower bound", "bound", ".3f"),
    ("in FP16", "in_fp16", ".3f"),
    ("GFLOP", "gflops", ".1f"),
    ("MB moved", "megabytes", ".1f"),
    ("kernels", "kernel_count", "d"),
    ("Casts", "casts", "d"),
)
TOTALS_TOLD = (
    "in FP16: the same graph with all floats in FP16 but the postprocessing's (each file's own graph, so that files of "
    "other graphs differ); MB moved: read and written by kernels; Casts: between floats."
)


def _beside(models: Sequence[Json]) -> Table:
    """Return the table of a few models: milliseconds of each part, its share and its lower bound."""
    longest_first = sorted(models, key=lambda model: -len(model["parts"]))
    names = dict.fromkeys(part["name"] for model in longest_first for part in model["parts"])
    parts = [{part["name"]: part for part in model["parts"]} for model in models]
    rows: list[tuple[str, ...]] = []
    for name in names:
        own = [(one.get(name), model) for one, model in zip(parts, models, strict=True)]
        rows.append((name, *(cell for part, model in own for cell in _part_cells(part, model))))
        if any(part is not None and part["sampler"] for part, _ in own):
            samplers = (("-" if part is None else f"{part['sampler']:.3f}", "", "") for part, _ in own)
            rows.append(("  of it the sampler", *(cell for cells in samplers for cell in cells)))
    for title, key, form in TOTALS:
        rows.append((title, *(cell for model in models for cell in (format(model[key], form), "", ""))))
    head = (PART, *(cell for model in models for cell in (model["name"], "share", "bound")))
    return Table("Milliseconds per call, share of all, and lower bound", head, tuple(rows), (TOTALS_TOLD,))


def _part_cells(part: Json | None, model: Json) -> tuple[str, str, str]:
    if part is None:
        return "-", "", ""
    share = part["milliseconds"] / model["milliseconds"]
    return f"{part['milliseconds']:.3f}", f"{share:.1%}", f"{part['bound']:.3f}"


def _below(models: Sequence[Json]) -> Iterator[Table]:
    """Yield the tables of many models, a row each: totals, milliseconds by part, lower bounds by part."""
    totals = (
        (str(model["name"]), *(format(model[key], form) for _, key, form in TOTALS)) for model in models
    )  # fmt: skip
    head = (MODEL, *(title for title, _, _ in TOTALS))
    yield Table("Milliseconds per call, and what is moved", head, tuple(totals), (TOTALS_TOLD,))
    for title, key in (("Milliseconds by part", "milliseconds"), ("Lower bounds by part", "bound")):
        grouped = group_parts(models, key)
        columns = zip(*grouped.values(), strict=True)
        rows = (
            (str(model["name"]), *(f"{value:.3f}" for value in column))
            for model, column in zip(models, columns, strict=True)
        )
        yield Table(title, (MODEL, *grouped), tuple(rows))


def _islands(model: Json) -> Iterator[Table]:
    head = ("module", "ms", "in FP16", "cost", "Casts")
    if model["all_fp32"]:
        told = (
            f"{model['name']}: all of its floats are FP32; in FP16 the same graph would take {model['in_fp16']:.3f} ms"
        )
        yield Table(told, head, ())
    elif model["islands"]:
        rows = (
            (
                one["module"],
                f"{one['milliseconds']:.3f}",
                f"{one['in_fp16']:.3f}",
                f"{one['cost']:+.3f}",
                str(one["casts"]),
            )
            for one in model["islands"]
        )
        count, time = model["cast_kernels"], model["cast_milliseconds"]
        notes = (f"{plural(count, 'kernel')} begin with a Cast, {time:.3f} ms together (counted above)",) * bool(count)
        yield Table(f"{model['name']}: FP32 and Casts, beside the same graph in FP16", head, tuple(rows), notes)


def _kernels(model: Json) -> Iterator[Table]:
    kernels = model["kernels"]
    if not kernels:
        return
    rows = (
        (
            _nodes(one["nodes"]), one["part"], f"{one['ms']:.4f}", f"{one['bound']:.4f}",
            f"{sum(one['flops'].values()) / 1e9:.3f}", f"{one['read'] / 1e6:.2f}", f"{one['written'] / 1e6:.2f}",
        )
        for one in kernels
    )  # fmt: skip
    head = ("nodes", PART, "ms", "bound", "GFLOP", "MB read", "MB written")
    title = f"{model['name']}: the {len(kernels)} of {plural(model['kernel_count'], 'kernel')} that take longest"
    yield Table(title, head, tuple(rows))


def _nodes(names: Sequence[str]) -> str:
    first, *others = names
    return first + (f" and {len(others)} more" if others else "")
