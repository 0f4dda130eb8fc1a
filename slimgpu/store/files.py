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
    from collections.abc import Iterable, Iterator


@contextmanager
def atomic_file(path: Path, *, sync: bool = True) -> Iterator[IO[bytes]]:
    """A file open for writing that takes the name ``path`` when the block ends well, and else vanishes.

    ``sync`` False leaves out the fsync, for what can be made again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if sync:
        sync_directory(path.parent)


def remove_partials(path: Path) -> None:
    """Remove what killed processes left of `atomic_file`; nobody else may be writing ``path``."""
    for partial in path.parent.glob(f".{escape(path.name)}.*.partial"):
        partial.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".blob.", suffix=".partial", dir=folder)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb", buffering=0) as file:
            for chunk in chunks:
                hasher.update(chunk)
                _write_all(file, chunk)
                size += len(chunk)
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        final = folder / hasher.hexdigest()
        temporary.replace(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(folder)
    return f"sha256:{hasher.hexdigest()}", size, final


def _write_all(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
