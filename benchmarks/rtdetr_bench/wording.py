"""Numbers in sentences."""

from __future__ import annotations


def counted(count: int, thing: str) -> str:
    """Return "1 image", "3 images"."""
    return f"{count} {thing}{'s' * (count != 1)}"
