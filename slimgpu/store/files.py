"""Files that appear whole or not at all: write to a temporary name, fsync, rename."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import IO, TYPE_CHECKING

from slimgpu.errors import DestinationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


def _new_file_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


_MODE = _new_file_mode()
"""Asked for once, on import: reading the mask sets it, and threads that did so side by side could leave it at 0."""


@contextmanager
def atomic_file(path: Path, *, sync: bool = True) -> Iterator[IO[bytes]]:
    """A file open for writing that takes the name ``path`` when the block ends well, and else vanishes.

    ``sync`` False leaves out the fsync, for what can be made again.
    """
    with _appearing(path.parent, path.name, lambda: path.name, sync=sync) as file:
        yield file


@contextmanager
def _appearing(folder: Path, prefix: str, name: Callable[[], str], *, sync: bool) -> Iterator[IO[bytes]]:
    """A file in ``folder`` whose ``name`` is asked for when it is written."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, text = tempfile.mkstemp(prefix=f".{prefix}.", suffix=".partial", dir=folder)
    temporary = Path(text)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.chmod(_MODE)
        temporary.replace(folder / name())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_directory(folder)


def remove_partials(path: Path) -> None:
    """Remove what killed processes left of `atomic_file`; nobody else may be writing ``path``."""
    for partial in path.parent.glob(f".{escape(path.name)}.*.partial"):
        partial.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Make renames in the directory durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the right to write ``path``.

    The lock is a file beside ``path`` that goes when the block ends. Raises `DestinationError` at once when another
    process holds it, or when the directory cannot be written.
    """
    lock = path.parent / f".{path.name}.slimgpu.lock"
    with _opened_for_writing(lock, path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it before may have removed the file between our open and our lock.
            held = os.fstat(file.fileno()).st_nlink > 0
        except BlockingIOError:
            held = False
        if not held:
            raise DestinationError(
                f"{path} is being written by another slimgpu; wait for it or choose another destination"
            )
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _opened_for_writing(lock: Path, path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return lock.open("w")
    except OSError as error:
        raise DestinationError(
            f"{path} cannot be written ({error.strerror or error}); choose another destination"
        ) from error


def write_blob(directory: Path, chunks: Iterable[bytes]) -> tuple[str, int, Path]:
    """Store ``chunks`` as ``directory/sha256/<hex>``; gives digest, size in bytes and path."""
    hasher = hashlib.sha256()
    size = 0
    folder = directory / "sha256"
    with _appearing(folder, "blob", hasher.hexdigest, sync=True) as file:
        for chunk in chunks:
            hasher.update(chunk)
            file.write(chunk)
            size += len(chunk)
    return f"sha256:{hasher.hexdigest()}", size, folder / hasher.hexdigest()
