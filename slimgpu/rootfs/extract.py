"""A layer's entries as files below a directory, faithful to the tar and safe from it.

Two forms: *alone*, the layer has a directory of its own, with whiteouts as overlayfs wants them, so that layers can be
written side by side; else it is written onto what the layers below it left there, and what it hides is removed.

Sources: https://github.com/opencontainers/image-spec/blob/v1.1.0/layer.md,
https://docs.kernel.org/filesystems/overlayfs.html#whiteouts-and-opaque-directories
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol
from uuid import uuid4

from slimgpu.errors import DestinationError, ImageError
from slimgpu.rootfs.attributes import Attributes, LeftOut
from slimgpu.rootfs.entry import Entry, Kind
from slimgpu.rootfs.folders import AstrayError, Folders, Remover
from slimgpu.rootfs.index import MAX_ENTRIES, check_holes
from slimgpu.rootfs.tarread import TarReader
from slimgpu.rootfs.whiteouts import EVERYTHING, hidden_by, is_whiteout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from slimgpu.rootfs.folders import Place

OPAQUE_XATTR: Final = "trusted.overlay.opaque"
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SMALL: Final = 64 * 1024
_IMPLICIT: Final = Entry(path="", kind=Kind.DIRECTORY, mode=0o755)
_DISK: Final = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.ENFILE,
)
_SPECIAL: Final = {Kind.CHARACTER: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK, Kind.FIFO: stat.S_IFIFO}


class TarContent(Protocol):
    """A layer's tar: a `slimgpu.rootfs.tarstream.TarStream`, or a `slimgpu.rootfs.content.FileBytes`."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...

    def stored(self, entry: Entry) -> Iterable[bytes | memoryview]:
        """The bytes that the tar holds of a regular file."""


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a layer came to."""

    entries: int
    """Files, directories and links that were written."""
    left_out: LeftOut
    implicit: tuple[str, ...]
    """Directories that the layer holds things in but does not name, parents first; '' is the root."""
    whiteouts: tuple[str, ...]
    """Files that stand for what is hidden below; only of a layer that is alone."""
    leans: bool
    """Whether what it means hangs on lower layers, and it must be written onto those; only of one that is alone."""


def extract(tar: TarContent, root: Path, what: str, *, alone: bool) -> Extracted:
    """Write a layer to the directory ``root``, which is empty, or, unless ``alone``, holds what lies below it.

    Nobody else may change the directory meanwhile. Raises `ImageError` naming ``what`` and the path for what cannot be
    unpacked, a bomb of holes included, and `DestinationError` when the directory cannot be written.
    """
    with Folders(root, alone=alone) as folders:
        return _Extractor(tar, folders, what, alone=alone).run()


class _Extractor:
    def __init__(self, tar: TarContent, folders: Folders, what: str, *, alone: bool) -> None:
        self._tar = tar
        self._folders = folders
        self._what = what
        self._alone = alone
        self._attributes = Attributes()
        self._remover = Remover(folders)
        self._directories: dict[str, Entry] = {}
        self._written: set[str] = set()
        """Real paths of what this layer brought, which its own whiteouts do not hide; empty when it is alone."""
        self._whiteouts: list[Entry] = []
        self._opaque: set[str] = set()
        self._marked: list[str] = []
        self._leans = False
        self._entries = 0

    def run(self) -> Extracted:
        holes = length = 0
        for count, entry in enumerate(TarReader(self._tar, self._what), 1):
            if count > MAX_ENTRIES:
                raise ImageError(f"{self._what} has more than {MAX_ENTRIES} entries; split it into several layers")
            holes += entry.size - entry.stored
            length = entry.offset + entry.stored
            if not is_whiteout(entry.name):
                self._guarded(self._add, entry)
            elif self._alone:
                self._whiteouts.append(entry)  # for when it is known what stands beside it
            else:
                self._guarded(self._hide, entry)
        check_holes(holes, length, self._what)
        for step in (self._open_up, self._mark):
            for entry in self._whiteouts:
                self._guarded(step, entry)
        self._guarded(self._finish, _IMPLICIT)
        implicit = sorted({*self._folders.made, ""} - self._directories.keys())
        leans = self._leans or self._folders.leans
        left_out = self._attributes.left_out
        return Extracted(self._entries, left_out, tuple(implicit), tuple(self._marked), leans)

    def _guarded(self, step: Callable[[Entry], None], entry: Entry) -> None:
        try:
            step(entry)
        except AstrayError as error:
            if not self._alone:
                raise self._refuse(entry, str(error)) from None
            self._leans = True
        except OSError as error:
            if error.errno not in _DISK:
                raise self._refuse(entry, error.strerror or str(error)) from error
            raise DestinationError(
                f"{self._what} cannot be unpacked to {self._folders.root} ({error.strerror}); choose another folder"
            ) from error

    def _refuse(self, entry: Entry, complaint: str) -> ImageError:
        return ImageError(f"{self._what}: {entry.path!r} cannot be unpacked: {complaint}")

    def _add(self, entry: Entry) -> None:
        self._entries += 1
        if entry.kind is Kind.DIRECTORY:
            self._directory(entry)
            return
        name = entry.name
        if not name:
            raise self._refuse(entry, f"the root is a {entry.kind}")
        if entry.kind is Kind.HARDLINK:
            self._hardlink(entry)
            return
        place = self._folders.open(entry.parent)
        try:
            self._make(place, name, entry)
        except FileExistsError:
            place = self._cleared(place, name)
            self._make(place, name, entry)
        if not self._alone:
            self._written.add(place.below(name))

    def _make(self, place: Place, name: str, entry: Entry) -> None:
        """What isn't there yet; raises FileExistsError if it is."""
        if entry.kind is Kind.FILE:
            handle = os.open(name, _CREATE, 0o600, dir_fd=place.handle)
            try:
                self._fill(handle, entry)
                self._attributes.on_handle(handle, entry)
            finally:
                os.close(handle)
        elif entry.kind is Kind.SYMLINK:
            os.symlink(entry.link, name, dir_fd=place.handle)
            self._attributes.on_name(name, place.handle, entry)
        else:
            try:
                os.mknod(name, _SPECIAL[entry.kind] | 0o600, os.makedev(*entry.device), dir_fd=place.handle)
            except PermissionError:  # devices are root's to make
                self._attributes.left_out.devices += 1
            else:
                self._attributes.on_name(name, place.handle, entry)

    def _fill(self, handle: int, entry: Entry) -> None:
        if entry.extents is None and entry.size <= _SMALL:
            content = self._tar[entry.offset : entry.offset + entry.size]
            if len(content) < entry.size:
                raise self._refuse(entry, "the layer ends inside it; fetch or copy the image again")
            write_all(handle, content)
            return
        pieces = iter(self._tar.stored(entry))
        if entry.extents is None:
            for piece in pieces:
                write_all(handle, piece)
            return
        os.ftruncate(handle, entry.size)
        rest = memoryview(b"")
        for position, length in entry.extents:
            os.lseek(handle, position, os.SEEK_SET)
            left = length
            while left:
                rest = rest or memoryview(next(pieces))
                write_all(handle, rest[:left])
                rest, left = rest[left:], left - min(left, len(rest))

    def _directory(self, entry: Entry) -> None:
        if not entry.path:
            self._directories[""] = entry
            return
        place = self._folders.open(entry.parent)
        real = place.below(entry.name)
        if place.kind(entry.name) not in (None, stat.S_IFDIR):
            place = self._cleared(place, entry.name)
        with suppress(FileExistsError):
            os.mkdir(entry.name, 0o700, dir_fd=place.handle)
            self._folders.named.add(real)
        self._directories[real] = entry
        if not self._alone:
            self._written.add(real)

    def _cleared(self, place: Place, name: str) -> Place:
        """The directory without what has that name in it."""
        self._leans |= self._alone and place.kind(name) != stat.S_IFREG  # others may have been gone through
        self._remover.remove(place.below(name))
        return self._folders.open(place.real)

    def _hardlink(self, entry: Entry) -> None:
        above, _, target = entry.link.rpartition("/")
        source = self._folders.find(above)
        kind = None if source is None or not target else source.kind(target)
        if kind is None and self._alone:
            self._leans = True
            return
        if source is None or kind in (None, stat.S_IFDIR):
            raise self._refuse(entry, f"it is a hard link to {entry.link!r}, which is not there")
        handle = os.dup(source.handle)  # opening the link's own directory may close it
        try:
            self._link(handle, target, entry)
        finally:
            os.close(handle)

    def _link(self, source: int, target: str, entry: Entry) -> None:
        place, name = self._folders.open(entry.parent), entry.name
        real = place.below(name)
        if not self._alone:
            self._written.add(real)
        try:
            os.link(target, name, src_dir_fd=source, dst_dir_fd=place.handle, follow_symlinks=False)
        except FileExistsError:
            if _same(source, target, place, name):
                return
            spare = uuid4().hex  # what is removed may hold the only other link
            os.link(target, spare, src_dir_fd=source, dst_dir_fd=place.handle, follow_symlinks=False)
            place = self._cleared(place, name)
            os.rename(spare, name, src_dir_fd=place.handle, dst_dir_fd=place.handle)

    def _hide(self, entry: Entry) -> None:
        """Remove what a whiteout hides of the layers below."""
        place, hidden = self._folders.find(entry.parent), hidden_by(entry.name)
        if place is None or hidden is None:
            return
        for name in place.names() if hidden == EVERYTHING else [hidden]:
            self._remover.remove(place.below(name), self._written)

    def _open_up(self, entry: Entry) -> None:
        """Note the directories that nothing of lower layers is to be seen in."""
        hidden = hidden_by(entry.name)
        if hidden is None:
            return
        place = self._folders.open(entry.parent)
        self._leans |= place.real != entry.parent  # lower layers may have something else than this link
        if hidden == EVERYTHING:
            self._opaque.add(place.real)
        elif place.kind(hidden) == stat.S_IFDIR:
            self._opaque.add(place.below(hidden))

    def _mark(self, entry: Entry) -> None:
        """Write a whiteout as overlayfs wants it, but where the layer has something of that name itself.

        Nor does overlayfs expect one where nothing of lower layers is seen, and lists it as a file.
        """
        hidden = hidden_by(entry.name)
        if not hidden:
            return
        place = self._folders.open(entry.parent)
        if place.kind(hidden) is None and self._opaque.isdisjoint(_upwards(place.real)):
            os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=place.handle)
            self._marked.append(place.below(hidden))

    def _finish(self, _: Entry) -> None:
        """Directories get their attributes when nothing changes them any more, lower ones before those above."""
        attributes = {**dict.fromkeys(self._folders.made, _IMPLICIT), **self._directories}
        for path in sorted({*attributes, *self._folders.touched, *self._opaque}, reverse=True):
            place = self._folders.find(path)
            if place is None or place.real != path:  # it was replaced later on
                continue
            if path in self._opaque:
                os.setxattr(place.handle, OPAQUE_XATTR, b"y")
            if path in attributes:
                self._attributes.on_handle(place.handle, attributes[path])
            elif path in self._folders.touched:
                found = self._folders.touched[path]
                os.fchmod(place.handle, stat.S_IMODE(found.st_mode))
                os.utime(place.handle, ns=(found.st_atime_ns, found.st_mtime_ns))


def _upwards(path: str) -> Iterator[str]:
    """The path, those above it, and the root."""
    while path:
        yield path
        path = path.rpartition("/")[0]
    yield ""


def write_all(handle: int, data: bytes | memoryview) -> None:
    """All of ``data`` at the file's position."""
    written = os.write(handle, data)
    while written < len(data):
        written += os.write(handle, memoryview(data)[written:])


def _same(source: int, target: str, place: Place, name: str) -> bool:
    one = os.stat(target, dir_fd=source, follow_symlinks=False)
    other = os.stat(name, dir_fd=place.handle, follow_symlinks=False)
    return os.path.samestat(one, other)
