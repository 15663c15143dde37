"""The cascade K:N: after decoder layer K only the N best queries go on through the later layers.

One rule for command lines, exports, models and metadata.
"""

from __future__ import annotations

import re

from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.words import plural

Cascade = tuple[int, int]
"""(K, N): the decoder layer after which queries are left out, counted from 1, and how many go on."""


def parse_cascade(text: str) -> Cascade:
    """Return (K, N) of "K:N". Raises `OptionError` for any other text, lists of cuts included."""
    match = re.fullmatch(r"([0-9]+):([0-9]+)", text)
    if match is None:
        raise OptionError(
            f"cascade {text!r} is not understood; write a single K:N, e.g. 2:100: after decoder layer 2 the best 100 "
            "queries go on"
        )
    return int(match[1]), int(match[2])


def check_cascade(cascade: object, layers: int | None = None, queries: int | None = None) -> Cascade:
    """Return `cascade` as (K, N). Raises `OptionError` unless K is in 1 .. `layers` - 1 and N in 1 .. `queries`.

    `layers` and `queries` are None where they aren't known yet.
    """
    if not (isinstance(cascade, (tuple, list)) and [type(number) for number in cascade] == [int, int]):
        raise OptionError(f"`cascade` is {cascade!r}, expected (K, N): after layer K the N best queries go on")
    after, keep = cascade
    if layers == 1:
        raise OptionError("`cascade` leaves queries out between decoder layers, and only 1 runs; leave it out")
    if after < 1 or (layers is not None and after >= layers):
        last = "" if layers is None else f": of {plural(layers, 'layer')} choose 1 to {layers - 1}"
        raise OptionError(f"`cascade` leaves queries out after decoder layer {after}, which no other follows{last}")
    if keep < 1 or (queries is not None and keep > queries):
        of, to = ("", " or more") if queries is None else (f" of {queries}", f" to {queries}")
        raise OptionError(f"`cascade` lets {keep}{of} queries go on: choose 1{to}")
    return after, keep


def show_cascade(cascade: Cascade) -> str:
    """Return the text that `parse_cascade` reads."""
    return f"{cascade[0]}:{cascade[1]}"
