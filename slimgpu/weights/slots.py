"""Memory for the ranges of a fetch: so many may be there at once."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

SLOTS: Final = 24
"""Ranges in memory at once: what is read, waits to be decoded, or to be kept."""


class ClosedError(Exception):
    """The fetch is over; what a slow thread still has is not wanted."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Memory for one range."""

    memory: memoryview
    number: int | None
    """Of the slot; None for memory that was made for a range larger than one."""


class Slots:
    """So many slots of one size, each made when it is first needed."""

    def __init__(self, count: int, size: int, make: Callable[[int], memoryview] | None = None) -> None:
        """``make`` gives the memory of the slot with a number; else it is this process's own."""
        self._count = self._left = count
        self._size = size
        self._make = make or (lambda _: _own(size))
        self._made = 0
        self._lent = 0
        self._free: list[Slot] = []
        self._changed = threading.Condition()
        self._closed = False

    def take(self, size: int) -> Slot:
        """A slot for ``size`` bytes, as soon as there is one."""
        with self._changed:
            self._changed.wait_for(lambda: self._left or self._closed)
            if self._closed:
                raise ClosedError
            self._left -= 1
            if size > self._size:
                return Slot(_own(size), None)
            if self._free:
                return self._free.pop()
            self._made += 1
            return Slot(self._make(self._made - 1), self._made - 1)

    def give(self, slot: Slot) -> None:
        """The slot is free again."""
        with self._changed:
            self._left += 1
            if slot.number is not None:
                self._free.append(slot)
            self._changed.notify()

    def lend(self) -> bool:
        """Whether the keeper may have one more: a slow disk must not slow down readers."""
        with self._changed:
            may = self._lent < self._count // 3
            self._lent += may
            return may

    def take_back(self, slot: Slot) -> None:
        """What was lent is free again."""
        with self._changed:
            self._lent -= 1
        self.give(slot)

    def close(self) -> None:
        """Nobody gets another one."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _own(size: int) -> memoryview:
    from slimgpu.weights.planes import memory  # noqa: PLC0415 - numpy: not for who brings memory

    return memory(size)
