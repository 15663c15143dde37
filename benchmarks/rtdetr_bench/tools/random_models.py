"""Exports RT-DETR models with random weights, for latency where no checkpoint is at hand.

    python -m rtdetr_bench.tools.random_models --output models/ --variants r18 r50 hgnetv2-l

The files are what `rtdetr-export` makes of a checkpoint, and run exactly as fast; what they detect means nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from rtdetr_deploy.cli.arguments import Parser
from rtdetr_deploy.cli.run import run_main
from rtdetr_deploy.files import atomic_write, check_writable
from rtdetr_deploy.model import RTDETR
from rtdetr_deploy.model.random_weights import fill_randomly
from rtdetr_deploy.model.variants import find_variant, variant_names
from rtdetr_deploy.options import path_argument
from rtdetr_export import ExportOptions, export_onnx


def write_random_weights(variant: str, path: Path) -> None:
    """Write a checkpoint of `variant` with seeded random weights."""
    model = RTDETR(find_variant(variant))
    fill_randomly(model)
    torch.save({"model": model.state_dict()}, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser("rtdetr_bench.tools.random_models", (__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=path_argument, required=True, help="folder for weights and ONNX files")
    parser.add_argument(
        "--variants",
        nargs="+",
        default=["r18", "r50", "hgnetv2-l"],
        choices=variant_names(),
        metavar="VARIANT",
        help="models to make, as rtdetr-export --variants names them (default: r18 r50 hgnetv2-l)",
    )
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32", help="default: fp32")
    parser.add_argument("--weights-only", action="store_true", help="write checkpoints, don't export them")
    return run_main("rtdetr_bench.tools.random_models", lambda: _make(parser.parse_args(argv)), "nothing was written")


def _make(arguments: argparse.Namespace) -> int:
    check_writable(arguments.output, folder=True)
    for variant in arguments.variants:
        if arguments.weights_only:
            with atomic_write(arguments.output / f"{variant}.pth") as beside:
                write_random_weights(variant, beside)
            continue
        with TemporaryDirectory() as folder:
            weights = Path(folder, f"{variant}.pth")
            write_random_weights(variant, weights)
            name = f"rtdetr-{variant}{'-fp16' * (arguments.precision == 'fp16')}.onnx"
            options = ExportOptions(weights, arguments.output / name, precision=arguments.precision, verify=False)
            export_onnx(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
