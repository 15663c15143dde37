"""Which files a sweep exports and how each is run: all combinations of the axes, but for those that can't be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product

from rtdetr_bench.sweep.axes import AXES, Candidate, ModelFile, Subject, Way, usual_queries, usual_ways
from rtdetr_bench.sweep.options import GridOptions, SweepOptions
from rtdetr_deploy import OptionError
from rtdetr_deploy.artifacts.input_size import count_tokens
from rtdetr_deploy.words import plural

SHOWN = 4
"""Names that are listed for a reason."""


@dataclass(frozen=True)
class Plan:
    """What is tried, `candidates` best file first, and the names that are `left_out`, by reason."""

    candidates: tuple[Candidate, ...]
    left_out: dict[str, tuple[str, ...]]
    reference: Candidate

    @property
    def files(self) -> tuple[ModelFile, ...]:
        """The files to export, each once; the reference's first."""
        every = (self.reference, *self.candidates)
        return tuple(dict.fromkeys(candidate.file for candidate in every))


def build_plan(options: SweepOptions, subject: Subject) -> Plan:
    """Return what to try with a checkpoint on this machine.

    Raises `OptionError` for values that no combination of the model allows, and where nothing is left.
    """
    grid = options.grid
    check_values(grid, subject)
    ways = tuple(way for way in grid.runtime if isinstance(way, Way)) or usual_ways()
    found: list[Candidate] = []
    left_out: dict[str, list[str]] = {}
    queries = grid.values("queries") or usual_queries(subject)
    for candidate in combine(grid, subject, ways):
        reason = why_not(candidate, queries)
        if reason:
            left_out.setdefault(reason, []).append(candidate.name)
        else:
            found.append(candidate)
    chosen = choose(found, grid.only)
    if not chosen:
        reasons = "; ".join(left_out) or "this machine has no runtime for it"
        raise OptionError(f"nothing is left to try: {reasons}")
    return Plan(
        tuple(chosen), {reason: tuple(names) for reason, names in left_out.items()}, reference_of(subject, ways)
    )


def check_values(grid: GridOptions, subject: Subject) -> None:
    """Raise `OptionError` for more layers or queries than the model has."""
    for name, limit, has in (
        ("layers", subject.max_layers, plural(subject.max_layers, "decoder layer")),
        ("queries", subject.queries, f"{subject.queries} queries"),
    ):
        too_many = [value for value in grid.values(name) if value > limit]
        if too_many:
            raise OptionError(f"`{name}` is {too_many[0]}, but {subject.weights.name} has {has}")


def combine(grid: GridOptions, subject: Subject, ways: Sequence[Way]) -> Iterator[Candidate]:
    """Yield every combination; engines take any number of images unless the grid has a batch."""
    values = [grid.values(axis.name) or axis.usual(subject, tuple(ways)) for axis in AXES]
    names = [axis.name for axis in AXES]
    for combination in product(*values):
        chosen = dict(zip(names, combination, strict=True))
        for way in ways:
            dynamic = {"batch": None} if way.suffix != ".onnx" and grid.batch is None else {}
            yield Candidate(ModelFile(**{**chosen, **dynamic}, suffix=way.suffix), way)


def why_not(candidate: Candidate, queries: Sequence[int]) -> str:
    """Return why a combination can't be; empty where it can.

    Where an input has no more tokens than queries, all of them are selected: one value of those `queries` is enough.
    """
    file, way = candidate.file, candidate.way
    tokens = count_tokens(*file.size)
    everything = next((value for value in queries if value >= tokens), None)
    cascade = None if file.cascade is None else tuple(map(int, file.cascade.split(":")))
    reasons = {
        way.missing(): bool(way.missing()),
        "FP16 files are for engines: CPUs have no arithmetic for them": file.precision == "fp16"
        and way.suffix == ".onnx",
        "inputs of {}x{} have {} tokens: the same as with {} queries".format(*file.size, tokens, everything): (
            file.queries >= tokens and file.queries != everything
        ),
        f"a cascade after layer {cascade and cascade[0]} needs more than {plural(file.layers, 'layer')}": (
            cascade is not None and cascade[0] >= file.layers
        ),
        f"a cascade to {cascade and cascade[1]} leaves none of {min(file.queries, tokens)} queries out": (
            cascade is not None and cascade[1] >= min(file.queries, tokens)
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def choose(candidates: Sequence[Candidate], patterns: Sequence[str]) -> list[Candidate]:
    """Return the candidates whose name matches a pattern. Raises `OptionError` for one that matches nothing."""
    for pattern in patterns:
        if not any(fnmatchcase(candidate.name, pattern) for candidate in candidates):
            some = ", ".join(candidate.name for candidate in candidates[:SHOWN])
            raise OptionError(f"`only` {pattern!r} matches nothing; there are {some} ...")
    matching = (one for one in candidates if not patterns or any(fnmatchcase(one.name, text) for text in patterns))
    return list(matching)


def reference_of(subject: Subject, ways: Sequence[Way]) -> Candidate:
    """Return the whole model in FP32, which all are compared with, in the first runtime of ONNX files that is there."""
    candidates = [way for way in (Way("onnxruntime", "fp32"), Way("openvino", "fp32")) if not way.missing()]
    if not candidates:
        raise OptionError("comparing with the whole model needs ONNX Runtime or OpenVINO; install one of them")
    way = next((way for way in candidates if way in ways), candidates[0])
    return Candidate(ModelFile(layers=subject.layers, queries=subject.queries, size=subject.size), way)


def format_plan(plan: Plan, seconds: float) -> str:
    """Return what will be done, in lines."""
    runtimes = Counter(str(candidate.way) for candidate in plan.candidates)
    told = ", ".join(f"{count} by {way}" for way, count in runtimes.items())
    lines = [f"{plural(len(plan.files), 'file')} to export, {plural(len(plan.candidates), 'candidate')}: {told}"]
    for axis in AXES:
        values = dict.fromkeys(
            axis.label(getattr(candidate.file, axis.name)) or "none" for candidate in plan.candidates
        )
        if len(values) > 1:
            lines.append(f"  {axis.name:<10} {', '.join(values)}")
    for reason, names in plan.left_out.items():
        some = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        lines.append(f"left out, {plural(len(names), 'candidate')}: {reason} ({some})")
    return "\n".join([*lines, f"estimated time: {show_seconds(seconds)}, less where others clearly beat a candidate"])


def show_seconds(seconds: float) -> str:
    """Return a duration to read: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
