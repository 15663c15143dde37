"""rtdetr-bench: how fast models run on this machine, beside each other, with everything that belongs to detection."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rtdetr_deploy.cli.run import run_main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (0 done, 2 wrong input, 130 interrupted)."""
    return run_main("rtdetr-bench", lambda: _run(argv), "nothing was measured")


def _run(argv: Sequence[str] | None) -> int:
    """Import what is heavy where an interrupt is caught already."""
    from rtdetr_bench.commands import run
    from rtdetr_bench.options import parse

    return run(parse(argv))


if __name__ == "__main__":
    sys.exit(main())
