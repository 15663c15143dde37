"""Which of a model's slots runs a call: each is lent to one call at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

Slot = TypeVar("Slot")


class Slots(Generic[Slot]):
    """The slots of a model. Calls from several threads take one each; further calls wait for one."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._all = tuple(slots)
        self._free = list(reversed(self._all))
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._all)

    @property
    def first(self) -> Slot:
        """The slot that tells what all are like."""
        return self._all[0]

    @contextmanager
    def take(self, slot: Slot | None = None) -> Iterator[Slot]:
        """Lend out the slot that was used last (its memory is warm), or the given one, waiting until it is free."""
        with self._changed:
            self._changed.wait_for(lambda: self._free if slot is None else slot in self._free)
            taken = self._free[-1] if slot is None else slot
            self._free.remove(taken)
        try:
            yield taken
        finally:
            with self._changed:
                self._free.append(taken)
                self._changed.notify_all()
