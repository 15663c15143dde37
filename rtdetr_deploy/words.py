"""Words for people: plurals, lists, and text that can't steer a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    """Return `text` on one line: characters that steer a terminal or turn the text around are written as escapes."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), str(text))


def plural(count: int, noun: str) -> str:
    """Return "1 image", "2 images", "3 classes"."""
    ending = "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{ending * (count != 1)}"


def listed(items: Iterable[str], word: str = "or") -> str:
    """Return "a", "a or b", "a, b or c"."""
    *others, last = items
    return f"{', '.join(others)} {word} {last}" if others else last
