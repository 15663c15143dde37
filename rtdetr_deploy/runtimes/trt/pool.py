"""CUDA resources that are used again: events and blocks of memory that calls need for a while."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Generic, Protocol, TypeVar


class Closable(Protocol):
    """A resource with `close`."""

    def close(self) -> None:
        """Give it back to CUDA."""


Item = TypeVar("Item", bound=Closable)


class Pool(Generic[Item]):
    """Items that `make` made, free or lent out."""

    def __init__(self, make: Callable[[], Item]) -> None:
        self._make = make
        self._made: list[Item] = []
        self._free: deque[Item] = deque()

    def take(self) -> Item:
        """Return an item that nobody has, made where there is none."""
        try:
            return self._free.pop()
        except IndexError:
            item = self._make()
            self._made.append(item)
            return item

    def give(self, item: Item) -> None:
        """Take an item back; nothing is done to it, so that a finalizer may call this in any thread."""
        self._free.append(item)

    def lend(self, item: Item, holder: object) -> None:
        """Let an item come back when the last reference to `holder` is gone."""
        weakref.finalize(holder, self.give, item).atexit = False

    def close(self) -> None:
        """Close all items, those that are lent out, too."""
        made, self._made = self._made, []
        self._free.clear()
        with ExitStack() as stack:  # each is closed, also when another can't be
            for item in made:
                stack.callback(item.close)
