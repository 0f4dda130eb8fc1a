"""What a longer operation says about its size on the way, noted for its result."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from slimgpu.progress import Progress, Task


class Tally:
    """Progress that another one shows, see `slimgpu.progress.Progress`."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self.total = 0
        """Units of the task that was announced last."""

    def task(self, name: str, total: int | None, unit: str = "B") -> AbstractContextManager[Task]:
        """See `slimgpu.progress.Progress.task`."""
        self.total = total or 0
        return self._shown.task(name, total, unit)
