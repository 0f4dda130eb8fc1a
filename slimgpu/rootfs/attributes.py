"""A file's owner, mode, times and extended attributes, as far as this process may set them."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slimgpu.rootfs.entry import Kind

if TYPE_CHECKING:
    from slimgpu.rootfs.entry import Entry

OVERLAY_XATTRS: Final = ("trusted.overlay.", "user.overlay.")
"""What overlayfs itself reads: an image that sets one could lead it anywhere."""
_NOT_OURS: Final = (errno.EPERM, errno.EINVAL)
"""No privileges, or none over this owner in a user namespace."""
_NO_XATTRS: Final = (errno.EPERM, errno.ENOTSUP)


@dataclass(slots=True)
class LeftOut:
    """Entries that lack something, because this process or the file system may not have it."""

    owners: int = 0
    devices: int = 0
    xattrs: int = 0

    def __add__(self, other: LeftOut) -> LeftOut:
        return LeftOut(self.owners + other.owners, self.devices + other.devices, self.xattrs + other.xattrs)


class Attributes:
    """Sets them on what has just been made, with the process's user and rights as they are when this is made."""

    def __init__(self) -> None:
        self.left_out = LeftOut()
        self._us = os.geteuid(), os.getegid()

    def on_handle(self, handle: int, entry: Entry) -> None:
        """Of a file or directory that is open; its times last, its mode after what takes bits from it."""
        if (entry.uid, entry.gid) != self._us:
            try:
                os.fchown(handle, entry.uid, entry.gid)
            except OSError as error:
                self._forgive_owner(error)
        if entry.xattrs:
            self._xattrs(handle, entry, follow=True)
        os.fchmod(handle, entry.mode)
        os.utime(handle, ns=(entry.mtime, entry.mtime))

    def on_name(self, name: str, folder: int, entry: Entry) -> None:
        """Of a name in an open directory that is a symlink or a special file, which isn't to be opened."""
        if (entry.uid, entry.gid) != self._us:
            try:
                os.chown(name, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False)
            except OSError as error:
                self._forgive_owner(error)
        if entry.xattrs:
            self._xattrs(f"/proc/self/fd/{folder}/{name}", entry, follow=False)
        if entry.kind is not Kind.SYMLINK:
            os.chmod(name, entry.mode, dir_fd=folder)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=folder, follow_symlinks=False)

    def _forgive_owner(self, error: OSError) -> None:
        if error.errno not in _NOT_OURS:
            raise error
        self.left_out.owners += 1

    def _xattrs(self, file: int | str, entry: Entry, *, follow: bool) -> None:
        lacks = False
        for name, value in entry.xattrs:
            if name.startswith(OVERLAY_XATTRS):
                lacks = True
                continue
            try:
                os.setxattr(file, name, value, follow_symlinks=follow)
            except OSError as error:
                if error.errno not in _NO_XATTRS:
                    raise
                lacks = True
        self.left_out.xattrs += lacks
