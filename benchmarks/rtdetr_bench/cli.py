"""rtdetr-bench: how fast and how good models are on this machine, beside each other, with all that detection takes.

What takes long to import is imported inside `run_main`, which knows how to end.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rtdetr_deploy.cli.run import run_main

SPELLINGS = {"method": "--nms"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (0 done, 2 wrong input, 130 interrupted)."""
    return run_main("rtdetr-bench", lambda: _run(argv), "nothing was measured", spellings=SPELLINGS)


def _run(argv: Sequence[str] | None) -> int:
    from rtdetr_bench.verbs import run

    return run(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
