"""Turn a run's checkpoint into the file to deploy: `python -m rtdetr_train.publish runs/cells/best.pth cells.pth`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rtdetr_deploy.cli.arguments import parse_size, path_argument
from rtdetr_deploy.cli.run import run_main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_main("rtdetr_train.publish", lambda: _publish(_parse(argv)), "nothing was written")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="rtdetr_train.publish", description="Keep the averaged weights alone, in half precision."
    )
    parser.add_argument("source", type=path_argument, help="best.pth or last.pth of a run, or another checkpoint")
    parser.add_argument("target", type=path_argument, help="file to write, .pth or .pt")
    parser.add_argument("--size", help="input size to name in the file (default: what the run was trained at)")
    return parser.parse_args(argv)


def _publish(arguments: argparse.Namespace) -> int:
    from rtdetr_train.checkpoint import publish

    target: Path = arguments.target
    publish(arguments.source, target, parse_size(arguments.size) if arguments.size is not None else None)
    print(f"wrote {target} ({target.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
