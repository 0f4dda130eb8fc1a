"""Where the members of a tar archive lie, so that they are read in place and nothing is ever extracted."""

from __future__ import annotations

import posixpath
import tarfile
from typing import IO, TYPE_CHECKING, Final

from slimgpu.errors import ImageError
from slimgpu.store.documents import MAX_DOCUMENT
from slimgpu.store.layout import BlobFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MAX_MEMBERS: Final = 100_000
_MAX_HEADER: Final = 1024 * 1024
_MAX_LINKS: Final = 8
_BROKEN: Final = (tarfile.TarError, ValueError, OverflowError, LookupError, RecursionError)


class _Headers:
    """The archive as tarfile sees it: it reads nothing but headers, and a long one can only be an attack."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if size > _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


class TarIndex:
    """The regular members of an uncompressed tar file by name; links inside the archive are followed."""

    def __init__(self, path: Path, name: str) -> None:
        """Read all headers; `ImageError` naming ``name`` when the archive is damaged or cut short."""
        self.name = name
        self._path = path
        self._files: dict[str, BlobFile] = {}
        self._links: dict[str, str] = {}
        try:
            with path.open("rb") as file:
                for member in _members(file):
                    self._add(member)
        except _BROKEN as error:
            raise ImageError(f"{name} is not a whole tar archive ({error}); copy or save it again") from error

    def _add(self, member: tarfile.TarInfo) -> None:
        name = _normal(member.name)
        self._files.pop(name, None)
        self._links.pop(name, None)
        if member.issym():
            self._links[name] = _normal(posixpath.join(posixpath.dirname(name), member.linkname))
        elif member.islnk():
            self._links[name] = _normal(member.linkname)
        elif _is_blob(member):
            self._files[name] = BlobFile(self._path, member.offset_data, member.size)

    def find(self, member: str) -> BlobFile:
        """The member's place; FileNotFoundError when there is no such regular file in the archive."""
        name = _normal(member)
        for _ in range(_MAX_LINKS):
            if name in self._files:
                return self._files[name]
            if name not in self._links:
                break
            name = self._links[name]
        raise FileNotFoundError(member)

    def document(self, name: str) -> bytes:
        """A JSON member; FileNotFoundError when it is missing, and no more than tells that it is too long."""
        place = self.find(name)
        return BlobFile(place.path, place.offset, min(place.size, MAX_DOCUMENT + 1)).read()


class ArchivedBlobs:
    """The blobs of an OCI layout in a tar archive, see `slimgpu.store.layout.Blobs`."""

    def __init__(self, index: TarIndex) -> None:
        self._index = index
        self.document = index.document

    def find(self, digest: str) -> BlobFile:
        """See `slimgpu.store.layout.Blobs.find`."""
        return self._index.find(f"blobs/{digest.replace(':', '/')}")


def _members(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    end = file.seek(0, 2)
    file.seek(0)
    with tarfile.open(fileobj=_Headers(file), mode="r:") as archive:  # type: ignore[call-overload]
        for count, member in enumerate(archive):
            if count >= _MAX_MEMBERS:
                raise tarfile.ReadError(f"more than {_MAX_MEMBERS} members")
            if _is_blob(member) and member.offset_data + member.size > end:
                raise tarfile.ReadError(f"{member.name!r} is cut short")
            yield member


def _is_blob(member: tarfile.TarInfo) -> bool:
    """Whether the member lies in the archive as it is; no engine writes sparse ones."""
    return member.isreg() and not member.issparse()


def _normal(name: str) -> str:
    return posixpath.normpath(name.lstrip("/") or ".")
