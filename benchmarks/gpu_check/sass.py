"""Instructions in machine code, as cuobjdump and nvdisasm print it."""

from __future__ import annotations

import re
from collections import Counter

_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
_DOUBLE = re.compile(r"^D(ADD|MUL|FMA|SETP|MNMX|MMA)\b|^MUFU\.R(CP|SQ)64H|\.F64\b")


def count_instructions(text: str) -> Counter[str]:
    """Return how often each instruction, with its modifiers, stands in a listing."""
    return Counter(match[1] for match in _INSTRUCTION.finditer(text))


def count_double(text: str) -> int:
    """Return the number of instructions of double precision, conversions included."""
    return sum(count for name, count in count_instructions(text).items() if _DOUBLE.search(name))
