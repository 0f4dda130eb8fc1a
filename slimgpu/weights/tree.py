"""Writing the packed files back: a directory with the same files, bit for bit.

Files grow under numbers in a directory beside the destination, with a state that a later start goes on from, and take
their names when all of them are complete.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slimgpu.errors import DestinationError, DigestError
from slimgpu.store.files import atomic_file, exclusive, sync_directory
from slimgpu.weights.buffer import MISSING
from slimgpu.weights.digests import sha256
from slimgpu.weights.stripes import write_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.weights.index import File, Index, Link

_MODE: Final = 0o644
_EXECUTABLE: Final = 0o755


class Tree:
    """A directory that is being filled, see `slimgpu.weights.fetch.Target`."""

    def __init__(self, root: Path, staged: Path, index: Index) -> None:
        self._root = root
        self._staged = staged
        self._index = index
        self.present = {number for number, file in enumerate(index.files) if _is_there(root, file)}
        """Numbers of files that the destination has already."""
        for link in index.links:
            _check_link(root, link)
        with (staged / "state").open("r+b") as file:
            self._state = mmap.mmap(file.fileno(), max(len(index.chunks), 1))
        for number, each in enumerate(index.files):
            if number not in self.present:
                self._stage(number, each)
        self._places = _places(index)

    def _stage(self, number: int, file: File) -> None:
        """Make the file that will have the content; one that is new lacks what an earlier start wrote elsewhere."""
        path = self._staged / str(number)
        if path.exists() and path.stat().st_size == file.size:
            return
        for chunk in file.chunks:
            self._state[chunk] = MISSING
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, _EXECUTABLE if file.executable else _MODE)
        try:
            os.truncate(handle, file.size)
        finally:
            os.close(handle)

    @property
    def wanted(self) -> list[int]:
        """The chunks of all files that are not there yet."""
        missing = {
            c for number, file in enumerate(self._index.files) if number not in self.present for c in file.chunks
        }
        return sorted(missing)

    def has(self, chunk: int) -> bool:
        """See `Target.has`."""
        return self._state[chunk] != MISSING

    def write(self, chunk: int, data: memoryview, state: int) -> None:
        """See `Target.write`. Raises `DigestError` for what an index, or the base that it was packed on, lies about."""
        if sha256(data) != self._index.chunks[chunk].raw:
            raise DigestError(
                f"{self._index.describe(chunk)} does not decode to the bytes that were packed; pack the weights again, "
                "without --base"
            )
        for file, offset in self._places[chunk]:
            if file not in self.present:
                self._write(file, data, offset)
        self._state[chunk] = state

    def _write(self, file: int, data: memoryview, offset: int) -> None:
        # Not kept open: there may be more files than a process can have open.
        handle = os.open(self._staged / str(file), os.O_WRONLY)
        try:
            write_at(handle, data, offset)
        finally:
            os.close(handle)

    def finish(self) -> None:
        """Give all files their names."""
        for number, file in enumerate(self._index.files):
            if number in self.present:
                continue
            with (self._staged / str(number)).open("rb") as staged:
                os.fsync(staged.fileno())
            target = self._root / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            (self._staged / str(number)).replace(target)
        for link in self._index.links:
            path = self._root / link.path
            path.parent.mkdir(parents=True, exist_ok=True)
            if not _is_link(path, link):
                path.symlink_to(link.target)
        sync_directory(self._root)

    def close(self) -> None:
        """Let go of the state."""
        self._state.close()


def _places(index: Index) -> list[list[tuple[int, int]]]:
    """For each chunk, files and offsets where its content belongs."""
    found: list[list[tuple[int, int]]] = [[] for _ in index.chunks]
    for number, file in enumerate(index.files):
        at = 0
        for chunk in file.chunks:
            found[chunk].append((number, at))
            at += index.chunks[chunk].size
    return found


def _is_there(root: Path, file: File) -> bool:
    """Whether the destination has the file; `DestinationError` when it has another one of that name."""
    path = root / file.path
    if not path.exists() and not path.is_symlink():
        return False
    if path.is_file() and path.stat().st_size == file.size:
        with path.open("rb") as content:
            if f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}" == file.digest:
                return True
    raise DestinationError(f"{path} is there with other content; remove it or choose another directory")


def _is_link(path: Path, link: Link) -> bool:
    return path.is_symlink() and str(path.readlink()) == link.target


def _check_link(root: Path, link: Link) -> None:
    path = root / link.path
    if (path.exists() or path.is_symlink()) and not _is_link(path, link):
        raise DestinationError(f"{path} is there and no link to {link.target}; remove it or choose another directory")


@contextmanager
def writing(root: Path, identity: str, index: Index) -> Iterator[Tree]:
    """The directory ``root``, which appears with its files when the block ends well.

    What is there when the block fails is kept beside it for the next start with the same ``identity`` (the index's
    digest). Raises `DestinationError` for files in the way.
    """
    if root.exists() and not root.is_dir():
        raise DestinationError(f"{root} is a file; name a directory")
    root = root.resolve()
    # Beside it, so that it appears at once; in it when it is a disk of its own, across which nothing can be renamed.
    place = root / "tree" if root.is_mount() else root
    staged = place.parent / f".{place.name}.slimgpu.partial"
    with exclusive(place):
        _prepare(staged, identity, len(index.chunks))
        tree = Tree(root, staged, index)
        try:
            yield tree
            root.mkdir(parents=True, exist_ok=True)
            tree.finish()
        finally:
            tree.close()
        shutil.rmtree(staged)


def _prepare(staged: Path, identity: str, chunks: int) -> None:
    """An empty directory for this artifact, or what an earlier start left in it."""
    mark = staged / "identity"
    if mark.exists() and mark.read_text() == _boot(identity):
        return
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    (staged / "state").write_bytes(bytes(max(chunks, 1)))
    with atomic_file(mark, sync=False) as file:
        file.write(_boot(identity).encode())


def _boot(identity: str) -> str:
    """Files that were not synced before a power loss may be torn, so nothing is taken over from an earlier boot."""
    return f"{identity} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
