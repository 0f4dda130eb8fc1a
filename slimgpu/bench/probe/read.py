"""What a probed program needs in its environment, and what it has told, in the format of `inject.sitecustomize`."""

from __future__ import annotations

import json
import math
import os
import stat
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from slimgpu.events import Event, Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

FILE_VARIABLE: Final = "SLIMGPU_PROBE"
"""Where a program finds the file to tell its stages in."""
EXEC_VARIABLE: Final = "SLIMGPU_PROBE_EXEC"
"""When the first program was executed, for who starts it to set: seconds of CLOCK_MONOTONIC in decimals."""
FOLDER: Final = Path(__file__).parent / "inject"
"""What is injected. It is for all users to read, and to be mounted read-only: no byte code belongs in it."""
_STAGES: Final = frozenset({Stage.FETCH, Stage.INTERPRETER, Stage.IMPORT, Stage.CONTEXT, Stage.LOAD})
"""Those of which a program knows more than who starts it."""
_MOST_BYTES: Final = 4 << 20
_MOST_EVENTS: Final = 20_000
_LINE_BYTES: Final = range(40, 4096)
_LONGEST_NAME: Final = 200
_TICK: Final = 0.01
"""Seconds by which the kernel may round down when a process was started."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the processes of one start have told."""

    events: tuple[Event, ...]
    dropped: int
    """Lines that were malformed, told of times that cannot be, or were too many."""


def probe_environment(folder: str, file: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What to set for a program to be probed, beside ``environment``, which its image gives it.

    ``folder`` is the absolute path where the program sees `FOLDER`, and ``file`` that of an empty file that whatever
    user it runs as may append to. Mounting the file instead of its folder keeps the program from replacing it. What is
    not Python heeds neither.
    """
    before = environment.get("PYTHONPATH")
    return {"PYTHONPATH": f"{folder}:{before}" if before else folder, FILE_VARIABLE: file}


def read_events(path: Path, since: float) -> Told:
    """What was told in a file, in order, of times from ``since`` (seconds of CLOCK_MONOTONIC) to now.

    The file has been in a container's hands, so it may hold anything or be something else; nothing is raised, and at
    most 4 MiB are read.
    """
    data = _content(path)
    lines = [line for line in data[:_MOST_BYTES].split(b"\n") if line]
    events = tuple(islice(_events(lines, since, time.monotonic()), _MOST_EVENTS))
    return Told(events, len(lines) - len(events) + (len(data) > _MOST_BYTES))


def _content(path: Path) -> bytes:
    """Empty for what is no plain file: no link is followed, no device opened, and nothing waited for."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return b""
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        return file.read(_MOST_BYTES + 1)


def _events(lines: Iterable[bytes], since: float, now: float) -> Iterator[Event]:
    last: dict[int, float] = {}
    for line in lines:
        found = _event(line, since, now) if len(line) in _LINE_BYTES else None
        if found is None:
            continue
        event, process = found
        before = last.get(process, since)
        if event.stage is Stage.INTERPRETER and event.begin < before <= event.end:
            event = replace(event, begin=before)  # it executed another program, and stays as old as it is
        last[process] = max(event.end, before)
        yield event


def _event(line: bytes, since: float, now: float) -> tuple[Event, int] | None:
    """The event of a line and its process; None when it is malformed or its times cannot be."""
    try:
        document: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    stage, what, process = (document.get(name) for name in ("stage", "what", "pid"))
    begin, end = _seconds(document.get("begin")), _seconds(document.get("end"))
    if not isinstance(stage, str) or stage not in _STAGES or begin is None or end is None:
        return None
    if not since - _TICK <= begin <= end <= now:
        return None
    name = _printable(what) if isinstance(what, str) else ""
    number = process if isinstance(process, int) else 0
    return Event(Stage(stage), max(begin, since), max(end, since), name), number


def _seconds(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _printable(text: str) -> str:
    """Nothing that a terminal would obey, or that cannot be written as UTF-8."""
    return "".join(character if character.isprintable() else "?" for character in text[:_LONGEST_NAME])
