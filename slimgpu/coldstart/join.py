"""Layers that were unpacked side by side become one tree: what each of them means depends on those below it.

A layer may hold files in directories that it does not name, which then are as the layers below have them. Where those
have a link instead, or where a hard link's target is theirs, the layer is unpacked once more, onto them.
"""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Final

from slimgpu.rootfs.attributes import OVERLAY_XATTRS
from slimgpu.rootfs.folders import Folders
from slimgpu.store.mounts import overlaid

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from slimgpu.rootfs.extract import Extracted

EMPTY: Final = "empty"
"""A directory below the lowest layer, since an overlay that is only read needs two."""
_BELOW: Final = "below"
_MODE: Final = 0o755
"""Of directories that no layer names."""


def new_root(folder: Path) -> None:
    """An empty directory like the root of an image without layers."""
    folder.mkdir()
    folder.chmod(_MODE)
    os.utime(folder, ns=(0, 0))


def join(place: Path, layers: Sequence[Extracted], again: Callable[[int, Path], Extracted]) -> list[Extracted]:
    """Mend the layers' directories, which are ``place/0`` and so on; gives what each came to.

    ``again`` unpacks the layer with a number onto the directory that it gets. Raises what that raises.
    """
    new_root(place / EMPTY)
    joined: list[Extracted] = []
    for number, layer in enumerate(layers):
        below = [str(lower) for lower in reversed(range(number))] + [EMPTY]
        if layer.leans or not _adopt(place, number, layer, below):
            joined.append(_unpack_onto(place, number, below, again))
        else:
            joined.append(layer)
    return joined


def _unpack_onto(place: Path, number: int, below: Sequence[str], again: Callable[[int, Path], Extracted]) -> Extracted:
    shutil.rmtree(place / str(number))
    name = f"{number}.again"
    upper = place / f"{name}.upper"
    upper.mkdir()
    copy_root(place / below[0], upper)
    with overlaid(place, below, name, writable=True) as root:
        extracted = again(number, root)
    upper.rename(place / str(number))
    return extracted


def _adopt(place: Path, number: int, layer: Extracted, below: Sequence[str]) -> bool:
    """Have directories that the layer does not name be like those below, and only what is there be hidden.

    False when that hangs on links.
    """
    own = place / str(number)
    if "" in layer.implicit:
        copy_root(place / below[0], own)
    directories = list(filter(None, layer.implicit))
    if not directories and not layer.whiteouts:
        return True
    with _together(place, below) as root, Folders(root, alone=True) as lower, Folders(own, alone=True) as upper:
        if not all(_is_straight(lower, path) for path in (*directories, *map(_above, layer.whiteouts))):
            return False
        for path in layer.whiteouts:
            found = lower.find(_above(path))
            if found is None or found.kind(_name(path)) is None:
                _drop(upper, path)
        for path in reversed(directories):
            found = lower.find(path)
            if found is None:
                _drop(upper, path)
            else:
                _copy_attributes(found.handle, upper.open(path).handle)
    return True


def _together(place: Path, below: Sequence[str]) -> AbstractContextManager[Path]:
    return overlaid(place, below, _BELOW, writable=False) if len(below) > 1 else nullcontext(place / EMPTY)


def _above(path: str) -> str:
    return path.rpartition("/")[0]


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _is_straight(folders: Folders, path: str) -> bool:
    """Whether there are only directories on the way to a path and at its end, as far as anything is there."""
    while (place := folders.find(path)) is None:
        above = folders.find(_above(path))
        if above is not None:
            return above.real == _above(path) and above.kind(_name(path)) is None
        path = _above(path)
    return place.real == path


def _drop(folders: Folders, path: str) -> None:
    """Remove a whiteout, or a directory that only had such; another directory stays as it is."""
    place = folders.open(_above(path))
    before = os.fstat(place.handle)
    with suppress(OSError):
        if place.kind(_name(path)) == stat.S_IFDIR:
            os.rmdir(_name(path), dir_fd=place.handle)
        else:
            os.unlink(_name(path), dir_fd=place.handle)
    os.utime(place.handle, ns=(before.st_atime_ns, before.st_mtime_ns))


def copy_root(source: Path, target: Path) -> None:
    """Make the root of one layer like that of another."""
    with Folders(source, alone=True) as one, Folders(target, alone=True) as other:
        _copy_attributes(one.open("").handle, other.open("").handle)


def _copy_attributes(source: int, target: int) -> None:
    """Make a directory like another one."""
    found = os.fstat(source)
    os.fchown(target, found.st_uid, found.st_gid)
    for name in os.listxattr(source):
        if not name.startswith(OVERLAY_XATTRS):
            with suppress(PermissionError):  # the kernel's own
                os.setxattr(target, name, os.getxattr(source, name))
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
