"""Directories for what a single run needs, which outlive a process that was killed until the next one starts."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from slimgpu.errors import DestinationError
from slimgpu.store.files import exclusive
from slimgpu.store.mounts import unmount_below

if TYPE_CHECKING:
    from collections.abc import Iterator

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
            _remove(path)


def _remove_left(folder: Path) -> None:
    for path in folder.glob(f"{_PREFIX}*"):
        with suppress(DestinationError), exclusive(path):  # held by a living process, or another user's
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a directory with what is mounted in it, and what an image closed to its owner."""
    unmount_below(path)
    if os.geteuid():
        for folder, names, _ in os.walk(path):
            for below in (Path(folder) / name for name in names):
                if not below.is_symlink():
                    below.chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)
