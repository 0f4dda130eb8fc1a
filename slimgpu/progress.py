"""Progress as an object that is handed in: the library reports, the command line draws."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Task(Protocol):
    """One thing under way; called from any thread."""

    def advance(self, amount: int) -> None:
        """Count ``amount`` more units done."""


class Progress(Protocol):
    """Where tasks are announced."""

    def task(self, name: str, total: int | None, unit: str = "B") -> AbstractContextManager[Task]:
        """Start a task of ``total`` units (None: not known), which ends with the ``with`` block."""


class _SilentTask:
    def advance(self, amount: int) -> None:
        pass


class SilentProgress:
    """Draws nothing; the default everywhere."""

    def task(self, name: str, total: int | None, unit: str = "B") -> AbstractContextManager[Task]:
        """See `Progress.task`."""
        del name, total, unit
        return nullcontext(_SilentTask())


SILENT = SilentProgress()
