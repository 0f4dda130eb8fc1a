"""Which range is fetched next, from which source, and when it is given up."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from slimgpu.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slimgpu.weights.index import Chunk, Index

RANGE: Final = 8 * 1024 * 1024
"""Bytes of a range; neighbouring chunks are read together up to it."""
_GAP: Final = 128 * 1024
"""Bytes between two chunks that are read and thrown away rather than asked for apart."""
_ATTEMPTS: Final = 3
"""Times that a range is asked of one source."""
_STRIKES: Final = 3
"""Failures one after another, after which a source is only used when all others have failed like that."""
_HEDGE_AFTER: Final = 1.0
"""Seconds that a range may be under way before an idle thread begins it, too."""
_USUAL: Final = 3.0
"""Times that a range may take as long as one does on average, before that: a slow link is not made slower."""
_TRIAL: Final = 0.2
"""Seconds that a source which has never answered may have a range for itself, and `_TRIALS` times what one takes."""
_TRIALS: Final = 2.0
_PAUSE: Final = 0.1
"""Seconds before a range that failed is tried again, doubled each time."""


@dataclass(eq=False)
class Range:
    """Neighbouring chunks of one blob."""

    blob: int
    offset: int
    size: int
    chunks: list[int]
    failures: dict[int, int] = field(default_factory=dict)
    """By number of source."""
    rests: dict[int, float] = field(default_factory=dict)
    """Until when it isn't asked again, by number of source."""
    workers: list[int] = field(default_factory=list)
    """Numbers of the sources of the threads that are at it."""
    started: float = 0.0
    done: bool = False


def ranges(index: Index, chunks: Iterable[int]) -> list[Range]:
    """The ranges that hold ``chunks``, in the order of the first chunk of each."""
    found: list[Range] = []
    for number in chunks:
        chunk = index.chunks[number]
        last = found[-1] if found else None
        if last is not None and _extends(last, chunk):
            last.size = chunk.offset + chunk.stored - last.offset
            last.chunks.append(number)
        else:
            found.append(Range(chunk.blob, chunk.offset, chunk.stored, [number]))
    return found


def _extends(last: Range, chunk: Chunk) -> bool:
    end = last.offset + last.size
    near = last.blob == chunk.blob and end <= chunk.offset <= end + _GAP
    return near and chunk.offset + chunk.stored - last.offset <= RANGE


class Schedule:
    """The ranges of one fetch, shared by the threads of all sources.

    The first source is the one that the index came from. Others may be dead: each gets one range at a time until it
    has answered, and what comes first doesn't wait for it.
    """

    def __init__(self, waiting: Iterable[Range], sources: int, *, grows: bool = False) -> None:
        """``grows`` says that more will be added, until it is stopped."""
        self._grows = grows
        self._waiting = deque(waiting)
        self._under_way: list[Range] = []
        self._strikes = [0] * sources
        self._answered = [False] * sources
        self._busy = [0] * sources
        """Threads that are at a range, also at one that another thread has delivered meanwhile."""
        self._moved = time.monotonic()
        """When a range was last taken or delivered."""
        self._changed = threading.Condition()
        self._left = len(self._waiting)
        self._bytes = 0
        self._seconds = 0.0
        self._delivered = 0
        self._stopped = False
        self._error: BaseException | None = None

    def add(self, each: Range) -> None:
        """One more, the last."""
        with self._changed:
            self._waiting.append(each)
            self._left += 1
            self._changed.notify_all()

    def take(self, source: int) -> Range | None:
        """The next range for a thread of ``source``, as soon as there is one; None when the fetch is over."""
        with self._changed:
            while not self._is_over():
                now = time.monotonic()
                chosen = self._choose(source, now)
                if chosen is not None:
                    chosen.workers.append(source)
                    self._busy[source] += 1
                    chosen.started = self._moved = now
                    return chosen
                self._changed.wait(_PAUSE)
            return None

    def answered(self, source: int) -> None:
        """The source has sent a range, right or wrong: it lives."""
        with self._changed:
            if not self._answered[source]:
                self._answered[source] = True
                self._changed.notify_all()

    def _choose(self, source: int, now: float) -> Range | None:
        if self._answered[source]:
            return self._untold(source, now) or self._waiting_for(source, now) or self._late(source, now)
        if source and self._busy[source]:
            return None
        return self._waiting_for(source, now) or self._late(source, now)

    def _untold(self, source: int, now: float) -> Range | None:
        """A range that a source has been at for long of which nobody knows yet whether it lives."""
        after = _TRIAL + _TRIALS * self._usual()
        untold = (each for each in self._under_way if len(each.workers) == 1 and not self._answered[each.workers[0]])
        return next((each for each in untold if now - each.started > after and self._may(each, source)), None)

    def _usual(self) -> float:
        """Seconds that a range takes."""
        return self._seconds / max(self._delivered, 1)

    def _waiting_for(self, source: int, now: float) -> Range | None:
        suits = self._may if now - self._moved > _HEDGE_AFTER else self._suits
        for each in self._waiting:
            if now >= each.rests.get(source, 0.0) and suits(each, source):
                self._waiting.remove(each)
                self._under_way.append(each)
                return each
            if not each.failures:
                break  # those behind it haven't failed either: what came back lies in front
        return None

    def _may(self, each: Range, source: int) -> bool:
        """Whether the source can be asked for the range at all, as every one is when nothing moves."""
        return self._promise(each, source) is not None

    def _suits(self, each: Range, source: int) -> bool:
        """Whether no other source promises more for the range."""
        mine = self._promise(each, source)
        return mine is not None and all(
            mine <= other for number in range(len(self._strikes)) if (other := self._promise(each, number)) is not None
        )

    def _promise(self, each: Range, source: int) -> tuple[bool, int] | None:
        """Sorts sources for a range, the best first; None for one that has failed too often with it."""
        failures = each.failures.get(source, 0)
        return (self._strikes[source] >= _STRIKES, failures) if failures < _ATTEMPTS else None

    def _late(self, source: int, now: float) -> Range | None:
        """A range that one thread alone has been at for long, when there is nothing else to do."""
        if self._waiting:
            return None
        after = max(_HEDGE_AFTER, _USUAL * self._usual())
        late = (each for each in self._under_way if len(each.workers) == 1 and now - each.started > after)
        return next((each for each in late if self._may(each, source) and self._may_join(each, source)), None)

    def _may_join(self, each: Range, source: int) -> bool:
        """What is late from one source is better had from another, if one has it."""
        others = (number for number in range(len(self._strikes)) if number not in each.workers)
        return source not in each.workers or not any(self._may(each, other) for other in others)

    def complete(self, each: Range, source: int) -> None:
        """The range has been delivered."""
        with self._changed:
            self._leave(each, source)
            self._strikes[source] = 0
            self._moved = time.monotonic()
            if not each.done:
                each.done = True
                self._under_way.remove(each)
                self._left -= 1
                self._bytes += each.size
                self._seconds += self._moved - each.started
                self._delivered += 1
                self._changed.notify_all()

    def give_back(self, each: Range, source: int, error: Exception) -> None:
        """The range could not be had from ``source``; when no other has it either, the fetch ends with ``error``."""
        with self._changed:
            self._leave(each, source)
            if isinstance(error, NotFoundError):
                each.failures[source] = _ATTEMPTS
                self._answered[source] = True
            else:
                each.rests[source] = time.monotonic() + _PAUSE * 2 ** each.failures.get(source, 0)
                each.failures[source] = each.failures.get(source, 0) + 1
                self._strikes[source] += 1
            if each.done or each.workers:
                return
            if not any(self._may(each, number) for number in range(len(self._strikes))):
                self._fail(error)
            self._under_way.remove(each)
            self._waiting.appendleft(each)
            self._changed.notify_all()

    def _leave(self, each: Range, source: int) -> None:
        each.workers.remove(source)
        self._busy[source] -= 1

    def fail(self, error: BaseException) -> None:
        """Nothing can mend this: end the fetch."""
        with self._changed:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error
        self._changed.notify_all()

    def stop(self) -> None:
        """No thread gets anything more to do."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _is_over(self) -> bool:
        return self._stopped or (self._left == 0 and not self._grows) or self._error is not None

    def wait(self, seconds: float) -> tuple[bool, int, int]:
        """Wait for the end, at most so long: whether it is over, bytes delivered so far, ranges left.

        Raises the error that ended it.
        """
        with self._changed:
            self._changed.wait_for(self._is_over, timeout=seconds)
            if self._error is not None:
                raise self._error
            return self._is_over(), self._bytes, self._left
