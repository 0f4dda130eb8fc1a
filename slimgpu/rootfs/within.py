"""Opening paths of a directory as if it were the root, whatever links in it say.

Each component is opened in the handle of the one before without following links, and a link's text goes on from
there. So neither ``..`` nor an absolute link nor one of ``/proc`` leads out, and nobody who changes the directory
meanwhile can make it so. (openat2(2) does the same from Linux 5.6 on, but has no part in creating what is missing.)
"""

from __future__ import annotations

import errno
import os
import stat

_MAX_LINKS = 40
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
DIRECTORY = "directory"
FILE = "file"


def open_within(root: int, path: str, create: str = "", *, follow: bool = True) -> int:
    """An ``O_PATH`` handle of what ``path`` names in the directory ``root``; the caller closes it.

    ``create`` makes what is missing, an empty `FILE` or a `DIRECTORY`, and the directories to it; what is there has to
    be a directory then, or none. ``follow`` False takes no link as any part. Raises OSError.
    """
    opened = [os.dup(root)]
    pending = path.split("/")[::-1]
    links = 0
    try:
        while pending:
            name = pending.pop()
            if name == "..":
                if len(opened) > 1:
                    os.close(opened.pop())
            elif name not in ("", "."):
                opened.append(_looked_up(opened[-1], name, create if not any(pending) else create and DIRECTORY))
                if stat.S_ISLNK(os.fstat(opened[-1]).st_mode):
                    links += 1
                    if not follow or links > _MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                    text = _taken_link(opened)
                    pending += text.split("/")[::-1]
        if create and stat.S_ISDIR(os.fstat(opened[-1]).st_mode) != (create == DIRECTORY):
            number = errno.ENOTDIR if create == DIRECTORY else errno.EISDIR
            raise OSError(number, os.strerror(number), path)
        return opened.pop()
    finally:
        for handle in opened:
            os.close(handle)


def _taken_link(opened: list[int]) -> str:
    """The text of the link on top, which goes, with all but the root where the text is absolute."""
    link = opened.pop()
    try:
        text = os.readlink("", dir_fd=link)
    finally:
        os.close(link)
    while text.startswith("/") and len(opened) > 1:
        os.close(opened.pop())
    return text


def _looked_up(folder: int, name: str, create: str) -> int:
    try:
        return os.open(name, _LOOK, dir_fd=folder)
    except FileNotFoundError:
        if create == DIRECTORY:
            os.mkdir(name, 0o755, dir_fd=folder)
        elif create == FILE:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=folder))
        else:
            raise
        return os.open(name, _LOOK, dir_fd=folder)


def read_within(root: int, path: str, limit: int) -> bytes:
    """The first ``limit`` bytes of a regular file; raises OSError."""
    handle = open_within(root, path)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        with open(f"/proc/self/fd/{handle}", "rb") as file:  # noqa: PTH123 - a handle, no path
            return file.read(limit)
    finally:
        os.close(handle)
