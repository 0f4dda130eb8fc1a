"""Directories for what a single run needs, which outlive a process that was killed until the next one starts."""

from __future__ import annotations

import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from slimgpu.errors import DestinationError
from slimgpu.store.files import exclusive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PREFIX: Final = "slimgpu."
"""Nothing else in the folder is touched."""


@contextmanager
def workspace(folder: Path, purpose: str) -> Iterator[Path]:
    """A new directory in ``folder`` that goes when the block ends; those whose process is gone go now."""
    folder.mkdir(parents=True, exist_ok=True)
    _remove_left(folder)
    path = folder / f"{_PREFIX}{purpose}.{uuid4().hex}"
    with exclusive(path):  # before the directory is there, because one that nobody holds may be removed
        path.mkdir(mode=0o700)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def _remove_left(folder: Path) -> None:
    for path in folder.glob(f"{_PREFIX}*"):
        with suppress(DestinationError), exclusive(path):  # held by a living process, or another user's
            shutil.rmtree(path, ignore_errors=True)
