"""What a sweep found of each candidate: a row of the table, of sweep.json and of sweep.csv."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rtdetr_bench.results import portable
from rtdetr_bench.sweep.axes import AXES, Candidate
from rtdetr_bench.sweep.front import Point, find_front
from rtdetr_bench.sweep.speed import Speed
from rtdetr_deploy.words import printable

MAX_NAME = 44
FIGURES = ("p90 ms", "p99x8 ms", "images/s", "AP", "AP50", "kept", "MB")
WIDTHS = (9, 10, 10, 8, 8, 8, 8)


@dataclass(frozen=True)
class Row:
    """A candidate, and what is known of it.

    `export_command` and `run_hint` make and run it. `speed` is None where it was not timed at length, `ap`, `ap50`
    and `match_rate` where it was not evaluated; `failed` says why, where something went wrong, `note` where it was not
    wanted: others clearly beat it, or it is far above the budget. `brief` is the median of the few queries that come
    before, in milliseconds.
    """

    candidate: Candidate
    export_command: str
    run_hint: str
    megabytes: float | None = None
    speed: Speed | None = None
    ap: float | None = None
    ap50: float | None = None
    match_rate: float | None = None
    failed: str | None = None
    note: str | None = None
    same_as: str | None = None
    brief: float | None = None

    @property
    def name(self) -> str:
        """The candidate's name."""
        return self.candidate.name

    @property
    def point(self) -> Point | None:
        """(SingleStream p90 in ms, AP); None unless both were measured at length."""
        if self.failed or self.speed is None or self.ap is None:
            return None
        return self.speed.p90, self.ap

    @property
    def offline_point(self) -> Point | None:
        """(Offline's seconds per image, AP); None as for `point`."""
        speed = None if self.point is None or self.speed is None else self.speed.images_per_second
        return None if speed is None or self.ap is None else (1.0 / speed, self.ap)

    def to_json(self, *, front: bool, offline_front: bool) -> dict[str, Any]:
        """Return the row for a JSON file."""
        file, way, speed = self.candidate.file, self.candidate.way, self.speed
        return {
            "name": self.name,
            **{axis.name: getattr(file, axis.name) for axis in AXES},
            "size": list(file.size),
            "runtime": way.runtime,
            "arithmetic": way.arithmetic or None,
            "brief_median_ms": self.brief,
            "single_stream_p90_ms": None if speed is None else speed.p90,
            "single_stream_bound_ms": None if speed is None else speed.bound,
            "multi_stream_p99_ms": None if speed is None else speed.p99,
            "offline_images_per_second": None if speed is None else speed.images_per_second,
            "AP": self.ap,
            "AP50": self.ap50,
            "AP_same_as": self.same_as,
            "match_rate": self.match_rate,
            "file": file.name,
            "file_mb": self.megabytes,
            "export_command": shlex.join(map(portable, shlex.split(self.export_command))),
            "run_hint": self.run_hint,
            "failed": self.failed,
            "note": self.note,
            "front": front,
            "offline_front": offline_front,
            "session": None if speed is None else speed.session,
            "single_stream_rounds": [] if speed is None else list(speed.rounds),
            "single_stream_ms": [] if speed is None else list(speed.single),
            "multi_stream_ms": [] if speed is None else list(speed.multi),
        }


def fronts(rows: Sequence[Row]) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names on the front of AP against SingleStream's p90, and against Offline's throughput."""
    single = {row.name: row.point for row in rows if row.point is not None}
    offline = {row.name: row.offline_point for row in rows if row.offline_point is not None}
    return find_front(single), find_front(offline)


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows for a JSON file."""
    single, offline = fronts(rows)
    return [row.to_json(front=row.name in single, offline_front=row.name in offline) for row in rows]


def to_csv(rows: Sequence[Row]) -> str:
    """Return the rows as CSV, samples left out."""
    table = to_json(rows)
    names = [name for name in table[0] if not name.endswith(("stream_ms", "stream_rounds"))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in table:
        writer.writerow(["x".join(map(str, row[name])) if name == "size" else row[name] for name in names])
    return text.getvalue()


def format_rows(rows: Sequence[Row], recommended: str | None) -> str:
    """Return the table, fastest first; what failed and what was not timed at length stands below it."""
    single, offline = fronts(rows)
    shown = sorted((row for row in rows if row.point is not None), key=lambda row: row.point or (0.0, 0.0))
    width = min(MAX_NAME, max((len(row.name) for row in rows), default=0))
    head = "".join(f"{name:>{size}}" for name, size in zip(FIGURES, WIDTHS, strict=True))
    lines = [f"{'':<{width}}{head}  front"] if shown else []
    for row in shown:
        marks = ("latency" if row.name in single else "", "throughput" if row.name in offline else "")
        told = " ".join(mark for mark in marks if mark) + (" <--" if row.name == recommended else "")
        lines.append(f"{_fitted(row.name, width):<{width}}{_figures(row)}  {told}".rstrip())
    lines += [f"{_fitted(row.name, width):<{width}}  {row.note}" for row in rows if row.note and not row.failed]
    lines += [f"{_fitted(row.name, width):<{width}}  failed: {printable(row.failed)}" for row in rows if row.failed]
    return "\n".join(lines)


def _fitted(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width - 1] + "~"


def _figures(row: Row) -> str:
    speed = row.speed
    assert speed is not None
    values = (
        f"{speed.p90:.1f}",
        "-" if speed.p99 is None else f"{speed.p99:.1f}",
        "-" if speed.images_per_second is None else f"{speed.images_per_second:.1f}",
        *("-" if value is None else f"{value:.4f}" for value in (row.ap, row.ap50, row.match_rate)),
        "-" if row.megabytes is None else f"{row.megabytes:.1f}",
    )
    return "".join(f"{value:>{size}}" for value, size in zip(values, WIDTHS, strict=True))
