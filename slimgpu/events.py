"""What happened when, as an injected object: the library tells of stages, whoever measures keeps them.

All times are seconds of ``CLOCK_MONOTONIC``, which every process and container of a machine shares.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator


class Stage(StrEnum):
    """The stages of a cold start; several may be under way at the same time."""

    RESOLVE = "resolve"
    """Manifest and configuration of the image."""
    PULL = "pull"
    """Layers over the network."""
    UNPACK = "unpack"
    """Checking, inflating and writing layers as files."""
    FETCH = "fetch weights"
    """Weights over the network into this machine's memory or files."""
    START = "start"
    """From the order to start a container to its first program."""
    INTERPRETER = "interpreter"
    """From there until the interpreter runs the program's first line."""
    IMPORT = "import"
    """Frameworks being imported."""
    CONTEXT = "GPU context"
    LOAD = "load weights"
    """Weights to where the program computes."""
    OUTPUT = "first output"
    """From the last of those to the first output."""


@dataclass(frozen=True, slots=True)
class Event:
    """One stage, or a part of one."""

    stage: Stage
    begin: float
    end: float
    what: str = ""
    """What it was done to: a layer's digest, a module."""


class Events(Protocol):
    """Where events are told; called from any thread."""

    def tell(self, event: Event) -> None:
        """Note the event."""


class Recorder:
    """Keeps all events in the order in which they ended."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def tell(self, event: Event) -> None:
        """See `Events.tell`."""
        self.events.append(event)


@contextmanager
def stage(events: Events, name: Stage, what: str = "") -> Iterator[None]:
    """Tell of a stage that lasts as long as the block; one that fails is told, too."""
    begin = time.monotonic()
    try:
        yield
    finally:
        events.tell(Event(name, begin, time.monotonic(), what))
