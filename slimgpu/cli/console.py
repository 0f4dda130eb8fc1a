"""Where output goes: results to stdout, everything else to stderr; progress only on a terminal."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from slimgpu.progress import SILENT
from slimgpu.progress import Progress as ProgressProtocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import RenderableType

    from slimgpu.progress import Task

_PLAIN_WIDTH = 100


def stdout() -> Console:
    """The console for results: as wide as the terminal, 100 columns when there is none."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack our characters, too
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PLAIN_WIDTH
    return console


def stderr() -> Console:
    """The console for everything that is not a result."""
    return Console(stderr=True, highlight=False)


def show(console: Console, parts: Iterable[RenderableType]) -> None:
    """Print results: tables as wide as the screen, lines of text whole, so that they can be copied."""
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, Text))


def progress(*, quiet: bool) -> ProgressProtocol:
    """Bars on a terminal, silence elsewhere and with ``--quiet``."""
    console = stderr()
    return SILENT if quiet or not console.is_terminal else RichProgress(console)


class _RichTask:
    def __init__(self, bars: Progress, identity: TaskID) -> None:
        self._bars = bars
        self._identity = identity

    def advance(self, amount: int) -> None:
        self._bars.advance(self._identity, amount)


class RichProgress:
    """A bar for every task that is under way, gone when it is done."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "B") -> Iterator[Task]:
        """See `slimgpu.progress.Progress.task`."""
        columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn()]
        columns += [DownloadColumn(), TransferSpeedColumn()] if unit == "B" else [MofNCompleteColumn()]
        with Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True) as bars:
            yield _RichTask(bars, bars.add_task(name, total=total))
