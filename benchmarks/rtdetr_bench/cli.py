"""rtdetr-bench: how fast a model runs on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rtdetr_bench.latency import Latency, measure_latency
from rtdetr_bench.machine import describe_machine
from rtdetr_deploy import find_images
from rtdetr_deploy.command import run_command
from rtdetr_deploy.files import write_atomically

SCHEMA = 1
COLUMNS = ("p50", "p90", "p99", "mean", "min")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `rtdetr-bench`."""
    parser = argparse.ArgumentParser(
        prog="rtdetr-bench", description="Measure the latency of an exported RT-DETR model, stage by stage."
    )
    add = parser.add_argument
    add("--engine", type=Path, required=True, metavar="MODEL", help="model file, e.g. from rtdetr-export")
    add("--images", action="append", default=[], metavar="PATH", help="image, folder or glob (default: synthetic 720p)")
    add("--runs", type=int, default=100, metavar="N", help="measured calls (default: %(default)s)")
    add("--warmup", type=int, default=5, metavar="N", help="calls before measuring (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="threads of the engine (default: the engine decides)")
    add("--json", type=Path, metavar="FILE", help="write machine, versions, every sample and the percentiles")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (0 done, 2 wrong input, 130 interrupted)."""
    arguments = build_parser().parse_args(argv)
    return run_command("rtdetr-bench", lambda: _bench(arguments), "nothing was measured")


def _bench(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    images = find_images(arguments.images)
    steps = max(0, arguments.runs) + max(0, arguments.warmup)
    with tqdm(total=steps, unit="run", leave=False, disable=not sys.stderr.isatty()) as bar:
        latency = measure_latency(
            arguments.engine,
            images=images,
            runs=arguments.runs,
            warmup=arguments.warmup,
            threads=arguments.threads,
            on_run=bar.update,
        )
    machine = describe_machine()
    print_latency(arguments.engine, latency, machine)
    if arguments.json is not None:
        write_atomically(arguments.json, _to_json(arguments, latency, machine))
    return 0


def print_latency(engine: Path, latency: Latency, machine: dict[str, object]) -> None:
    """Print the table."""
    print(f"{engine.name}, batch {latency.batch}, opened in {latency.opened:.2f} s")
    print(f"{machine['processor']}, {machine['cores']} cores; {machine['packages']}")
    print(f"{'milliseconds per call':<24}" + "".join(f"{column:>9}" for column in COLUMNS))
    for name, row in latency.rows().items():
        print(f"{name:<24}" + "".join(f"{row[column]:>9.2f}" for column in COLUMNS))
    print(f"{latency.throughput:.1f} images per second; the paper's span is infer + decode on prepared input")


def _to_json(arguments: argparse.Namespace, latency: Latency, machine: dict[str, object]) -> bytes:
    content = {
        "schema": SCHEMA,
        "engine": arguments.engine.name,
        "command": {"runs": arguments.runs, "warmup": arguments.warmup, "threads": arguments.threads},
        "machine": machine,
        "batch": latency.batch,
        "opened_seconds": latency.opened,
        "milliseconds": latency.rows(),
        "samples": {stage: values.tolist() for stage, values in latency.samples.items()},
    }
    return json.dumps(content, indent=1).encode()


if __name__ == "__main__":
    sys.exit(main())
