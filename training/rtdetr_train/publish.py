"""Turn a run's checkpoint into the file to deploy: `python -m rtdetr_train.publish runs/cells/best.pth cells.pth`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rtdetr_deploy.artifacts.input_size import check_input_size
from rtdetr_deploy.artifacts.weights_file import find_weights
from rtdetr_deploy.cli.arguments import Parser
from rtdetr_deploy.cli.run import run_main
from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.files import check_writable, refuse_overwriting
from rtdetr_deploy.options import path_argument, size_argument


def publish(source: Path, target: Path, size: tuple[int, int] | None = None) -> None:
    """Write the weights to deploy alone: the moving average, matrices and kernels in half precision.

    Vectors (biases, batch normalization's statistics) stay in FP32: small, and the statistics' range is wide. About an
    eighth of a run's checkpoint; `load_checkpoint` opens it like any other. `size` (height, width) replaces the input
    size that the checkpoint names. Raises `CheckpointError`, `OptionError` and `OutputError`.
    """
    if target.suffix.lower() not in (".pth", ".pt"):
        raise OptionError(f"{target} would hold a checkpoint; end its name with .pth or .pt")
    if size is not None:
        size = check_input_size(size)
    refuse_overwriting({"the file to write": target}, [find_weights(source)])
    check_writable(target)
    from rtdetr_deploy.model import load_checkpoint
    from rtdetr_train.checkpoint import write_checkpoint

    checkpoint = load_checkpoint(source)
    state = {name: value.half() if value.ndim > 1 else value for name, value in checkpoint.model.state_dict().items()}
    content = {"ema": {"module": state}, "class_names": list(checkpoint.class_names)}
    size = size or checkpoint.input_size
    write_checkpoint(target, {**content, "input_size": list(size)} if size else content)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = Parser("rtdetr_train.publish", "Keep the averaged weights alone, in half precision.")
    parser.add_argument("source", type=path_argument, help="best.pth or last.pth of a run, or another checkpoint")
    parser.add_argument("target", type=path_argument, help="file to write, .pth or .pt")
    parser.add_argument(
        "--size", type=size_argument, help="input size to name in the file (default: what the run was trained at)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_main("rtdetr_train.publish", lambda: _publish(build_parser().parse_args(argv)), "nothing was written")


def _publish(arguments: argparse.Namespace) -> int:
    publish(arguments.source, arguments.target, arguments.size)
    print(f"wrote {arguments.target} ({arguments.target.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
