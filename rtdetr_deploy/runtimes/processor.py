"""What the processor computes with: the instruction sets that runtimes gain by, as the operating system lists them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
"""Linux's list; other systems have none that can be read without further packages."""
INSTRUCTION_SETS = {
    "AVX2": (("avx2", "fma"),),
    "AVX-512": (("avx512f", "avx512bw", "avx512dq", "avx512vl"),),
    "VNNI": (("avx512_vnni",), ("avx_vnni",)),
    "BF16": (("avx512_bf16",), ("amx_bf16",), ("bf16",)),
    "AMX": (("amx_tile", "amx_int8"),),
    "NEON": (("asimd",),),
}
"""Sets of the flags that Linux shows for each, any of which will do; ARM's `bf16` is its own."""


@cache
def instruction_sets() -> frozenset[str] | None:
    """Return the names of those that this processor has, keys of `INSTRUCTION_SETS`; None where nobody tells."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return find_instruction_sets(text)


def find_instruction_sets(cpuinfo: str) -> frozenset[str] | None:
    """Return what the flags of the first processor in the text of /proc/cpuinfo say; None without flags."""
    keys = ("flags", "Features")  # x86, ARM
    line = next((line for line in cpuinfo.splitlines() if line.startswith(keys)), None)
    if line is None:
        return None
    flags = set(line.partition(":")[2].split())
    return frozenset(
        name for name, choices in INSTRUCTION_SETS.items() if any(flags.issuperset(choice) for choice in choices)
    )
