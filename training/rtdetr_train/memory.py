"""Memory of the process while it trains on the CPU."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt(3)."""


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks for the next step, and return whether it does.

    By default it gives every large block back to the system and asks for it again, zeroed page by page, at the next
    step: measured as 38 % of a training step (docs/training.md). The setting is the whole process's, so only the
    command makes it. Without glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
