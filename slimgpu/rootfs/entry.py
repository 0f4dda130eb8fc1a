"""One file's facts, as a tar archive records them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MAGIC: Final = 20
"""How many leading bytes are kept of each file: enough to tell formats, and the machine of an ELF file."""


class Kind(StrEnum):
    """What an entry is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"
    CHARACTER = "character"
    BLOCK = "block"
    FIFO = "fifo"


@dataclass(frozen=True, slots=True)
class Entry:
    """A tar entry; paths are relative, without ``.``, ``..`` or a slash at either end.

    Names are str with undecodable bytes as lone surrogates (``os.fsdecode``).
    """

    path: str
    kind: Kind
    mode: int
    """Permission bits, with set-uid, set-gid and sticky."""
    uid: int = 0
    gid: int = 0
    uname: str = ""
    gname: str = ""
    size: int = 0
    """Bytes of a regular file, holes included."""
    mtime: int = 0
    """Nanoseconds since 1970."""
    link: str = ""
    """A symlink's text as it is, or a hard link's target as a path like ``path``."""
    device: tuple[int, int] = (0, 0)
    """Major and minor number."""
    xattrs: tuple[tuple[str, bytes], ...] = ()
    """Extended attributes, sorted by name."""
    offset: int = 0
    """Where the content starts in the layer's tar."""
    extents: tuple[tuple[int, int], ...] | None = None
    """For a sparse file the (position, length) of what is stored, back to back, at ``offset``."""
    digest: str = ""
    """Of a regular file's content, once it has been indexed."""
    magic: bytes = b""
    """The first bytes of a regular file's content, once it has been indexed; at most `MAGIC`."""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> str:
        """The directory's path, '' for the root."""
        return self.path.rpartition("/")[0]

    @property
    def stored(self) -> int:
        """Bytes that the content takes in the tar."""
        return self.size if self.extents is None else sum(length for _, length in self.extents)
