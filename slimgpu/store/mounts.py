"""Mounting directories over each other (overlayfs), and unmounting what is left below one.

Source: https://docs.kernel.org/filesystems/overlayfs.html, mount(2), umount2(2), unshare(2)
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slimgpu.errors import DestinationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MAX_LAYERS: Final = 500
"""Of an overlay in Linux; its options must fit into a page, too."""
_CLONE_FS: Final = 0x200
_DETACH: Final = 2
_MOUNTS: Final = Path("/proc/self/mountinfo")
_OPTIONS: Final = ("index=off,volatile", "index=off", "")
"""The first that the kernel knows: nothing that is written need survive, so unmounting needn't sync the whole disk."""

_libc: Final = ctypes.CDLL(None, use_errno=True)


def overlay(folder: Path, lower: Sequence[str], upper: str | None, work: str | None, target: str) -> None:
    """Mount directories of ``folder``, named relative to it, at ``target``, the topmost first in ``lower``.

    Without ``upper`` (and ``work``, an empty directory beside it) it is read-only. Raises OSError.
    """
    options = f"lowerdir={':'.join(lower)}" + (f",upperdir={upper},workdir={work}" if upper is not None else "")

    def mount() -> None:
        for more in _OPTIONS:
            try:
                _mount(target, ",".join(part for part in (options, more) if part))
            except OSError as error:
                if error.errno != errno.EINVAL or more == _OPTIONS[-1]:
                    raise
            else:
                return

    _within(folder, mount)


def _mount(target: str, options: str) -> None:
    _check(_libc.mount(b"overlay", os.fsencode(target), b"overlay", 0, os.fsencode(options)))


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _within(folder: Path, work: Callable[[], None]) -> None:
    """Do ``work`` in a thread with a current directory of its own: short names, since all options fit into a page."""
    failed: list[OSError] = []

    def run() -> None:
        try:
            _check(_libc.unshare(_CLONE_FS))
            os.chdir(folder)
            work()
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="mount")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


@contextmanager
def overlaid(folder: Path, lower: Sequence[str], target: str, *, writable: bool) -> Iterator[Path]:
    """An `overlay` as long as the block lasts; writes go to ``<target>.upper``, unless it is read-only.

    Raises `DestinationError` when it cannot be mounted.
    """
    upper, work = (f"{target}.upper", f"{target}.work") if writable else (None, None)
    for name in (target, upper, work):
        if name is not None:
            (folder / name).mkdir(exist_ok=True)
    try:
        overlay(folder, lower, upper, work, target)
    except OSError as error:
        raise DestinationError(
            f"the layers in {folder} cannot be mounted over each other ({error.strerror}); choose a folder on another "
            "file system"
        ) from error
    try:
        yield folder / target
    finally:
        unmount(folder / target)


def can_overlay(folder: Path) -> bool:
    """Whether this process may mount overlays in ``folder``, which its file system allows, too; nothing is left."""
    names = [f"probe{number}" for number in range(5)]
    try:
        for name in names:
            (folder / name).mkdir()
        os.mknod(folder / names[1] / "whiteout", stat.S_IFCHR, 0)
        os.setxattr(folder / names[1], "trusted.overlay.opaque", b"y")
        overlay(folder, names[:2], names[2], names[3], names[4])
    except OSError:
        return False
    else:
        unmount(folder / names[4])
        return True
    finally:
        for name in names:
            shutil.rmtree(folder / name, ignore_errors=True)


def unmount(path: Path) -> None:
    """Unmount what is mounted at ``path``; while a process is in it, it only goes from sight, and is gone with that."""
    for flags in (0, _DETACH):
        if not _libc.umount2(os.fsencode(path), flags):
            return


def unmount_below(folder: Path) -> None:
    """Unmount all that is mounted below ``folder``, as far as this process may."""
    for path in sorted(_mounted_below(os.fsencode(folder.resolve()) + b"/"), reverse=True):
        unmount(Path(os.fsdecode(path)))


def _mounted_below(prefix: bytes) -> list[bytes]:
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return []
    points = (line.split(b" ")[4].decode("unicode_escape").encode("latin-1") for line in lines)
    return [point for point in points if point.startswith(prefix)]
