"""How many of the processor's cores this process may use: containers and batch systems lend out a part of them.

`os.cpu_count` tells all that the machine has. A process may be bound to some of them (its affinity), and a control
group may limit the time that it gets on them (Docker's `--cpus`, limits of Kubernetes): more threads than that are
stopped in the middle of a call until the next period.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
"""Linux's files; see cgroups(7). Where they are missing nothing limits."""


def usable_cores() -> int:
    """Return how many cores this process can keep busy, at least 1; of a quota the whole cores."""
    quota = cpu_quota()
    return max(1, bound_cores() if quota is None else min(bound_cores(), int(quota)))


def default_threads() -> int | None:
    """Return how many threads fit this process; None where it has the whole machine, which runtimes know better.

    They leave out, for example, the second threads of cores.
    """
    cores = usable_cores()
    return None if cores >= (os.cpu_count() or 1) else cores


def bound_cores() -> int:
    """Return how many cores the process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float | None:
    """Return the cores' time that control groups, version 1 or 2, allow per second of time; None without a limit."""
    return min(_quotas(cgroups, membership), default=None)


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """Yield the limits of the process's groups and of those that hold them."""
    lines: list[str] = []
    with suppress(OSError):
        lines = membership.read_text(encoding="utf-8").splitlines()
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number != "0" and "cpu" not in controllers.split(","):
            continue
        root = cgroups if number == "0" else cgroups / "cpu"
        path = root / group.lstrip("/")
        for folder in (path, *path.parents):
            quota = _read_quota(folder)
            if quota is not None:
                yield quota
            if folder == root:
                break


def _read_quota(folder: Path) -> float | None:
    """Return the limit of one group."""
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        used = int((folder / "cpu.cfs_quota_us").read_text(encoding="utf-8"))
        return None if used < 0 else used / int((folder / "cpu.cfs_period_us").read_text(encoding="utf-8"))
    return None
