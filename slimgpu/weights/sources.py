"""The files that are packed: from directories and files, or whatever else can be read by position."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from slimgpu.errors import NotFoundError, UsageError
from slimgpu.weights.index import Link, leads_inside, occupied_above

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager


class Reader(Protocol):
    """A file's bytes by position, for any number of threads."""

    @property
    def size(self) -> int:
        """Bytes of the file."""

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes from ``offset`` on; the caller stays inside the file."""


class Source(Protocol):
    """A file to be packed."""

    @property
    def path(self) -> str:
        """Where it is in the artifact: relative, with ``/``."""

    @property
    def executable(self) -> bool:
        """Whether it may be run."""

    def open(self) -> AbstractContextManager[Reader]:
        """Its content."""


class _PlainFile:
    """Open only while it is read: there may be more files than a process can have open."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self.size = size

    def read(self, offset: int, size: int) -> bytes:
        """See `Reader.read`."""
        with self._path.open("rb", buffering=0) as file:
            file.seek(offset)
            data = file.read(size) or b""
            while len(data) < size:  # one call reads 2 GiB at most
                more = file.read(size - len(data))
                if not more:
                    raise UsageError(f"{self._path} became shorter while it was read; pack it when nothing writes it")
                data += more
        return data


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file in a directory of this machine."""

    path: str
    file: Path
    executable: bool

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """See `Source.open`."""
        before = self.file.stat()
        yield _PlainFile(self.file, before.st_size)
        after = self.file.stat()
        if (after.st_ino, after.st_size, after.st_mtime_ns) != (before.st_ino, before.st_size, before.st_mtime_ns):
            raise UsageError(f"{self.file} was changed while it was read; pack it when nothing writes it")


def collect(paths: Sequence[Path]) -> tuple[list[FileSource], list[Link]]:
    """All files and links at and below ``paths``, sorted; a directory's own name is no part of theirs.

    A link that leads out of its directory is packed as the file that it leads to, as a Hugging Face snapshot that is
    packed without its blobs needs it. Raises `NotFoundError`, and `UsageError` for what is no file.
    """
    sources: dict[str, FileSource] = {}
    links: dict[str, Link] = {}
    for path in paths:
        if not path.exists():
            raise NotFoundError(f"{path} does not exist; name a directory or file of weights")
        for name, file in _walk(path):
            if name in sources or name in links:
                raise UsageError(f"{file} would be packed as {name}, which is there already; pack one at a time")
            if not _is_text(name):
                raise UsageError(f"{file} has a name that is not UTF-8; rename it")
            target = _inside(path, name, file)
            if target is not None:
                links[name] = Link(name, target)
            else:
                sources[name] = _source(name, file)
    for name in (*sources, *links):
        if (above := occupied_above(name, sources.keys() | links.keys())) is not None:
            raise UsageError(f"{name} would lie below {above}, which is no directory; pack one at a time")
    if not sources:
        raise UsageError(f"{', '.join(map(str, paths))} holds no files; name a directory or file of weights")
    return [sources[name] for name in sorted(sources)], [links[name] for name in sorted(links)]


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _raise(error: OSError) -> None:
    raise error


def _walk(path: Path) -> Iterator[tuple[str, Path]]:
    if not path.is_dir():
        yield path.name, path
        return
    for folder, directories, names in os.walk(path, onerror=_raise):
        directories.sort()
        found = [*names, *(name for name in directories if (Path(folder) / name).is_symlink())]
        for name in found:
            file = Path(folder) / name
            yield file.relative_to(path).as_posix(), file


def _inside(root: Path, name: str, file: Path) -> str | None:
    """The link's target, when it is a link to something else that is packed."""
    if not file.is_symlink() or not root.is_dir():
        return None
    target = str(file.readlink())
    return target if leads_inside(name, target) and _is_text(target) and file.exists() else None


def _source(name: str, file: Path) -> FileSource:
    try:
        found = file.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        raise UsageError(f"{file} is a link to nothing; remove it or mend it") from error
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{file} is no regular file; weights are packed from files and directories only")
    return FileSource(name, file, bool(found.st_mode & stat.S_IXUSR))
