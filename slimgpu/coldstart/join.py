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
        if layer.leans or not _adopt(place, number, layer.implicit, below):
            joined.append(_unpack_onto(place, number, below, again))
        else:
            joined.append(layer)
    return joined


def _unpack_onto(place: Path, number: int, below: Sequence[str], again: Callable[[int, Path], Extracted]) -> Extracted:
    shutil.rmtree(place / str(number))
    name = f"{number}.again"
    upper = place / f"{name}.upper"
    upper.mkdir()
    copy_attributes(place / below[0], upper)
    with overlaid(place, below, name, writable=True) as root:
        extracted = again(number, root)
    upper.rename(place / str(number))
    return extracted


def _adopt(place: Path, number: int, implicit: Sequence[str], below: Sequence[str]) -> bool:
    """Give directories that the layer does not name what those below say; False where they have something else."""
    own = place / str(number)
    if "" in implicit:
        copy_attributes(place / below[0], own)
    if not any(implicit):
        return True
    with _together(place, below) as root, Folders(root, alone=False) as found:
        missing = []
        for path in filter(None, implicit):
            present = found.find(path)
            if present is None and not _is_there(found, path):
                missing.append(path)
            elif present is None or present.real != path:
                return False
            else:
                copy_attributes(root / path, own / path)
    for path in reversed(missing):
        _drop_if_bare(own / path)
    return True


def _together(place: Path, below: Sequence[str]) -> AbstractContextManager[Path]:
    return overlaid(place, below, _BELOW, writable=False) if len(below) > 1 else nullcontext(place / EMPTY)


def _is_there(folders: Folders, path: str) -> bool:
    above, _, name = path.rpartition("/")
    place = folders.find(above)
    return place is not None and place.real == above and name in place.names()


def _drop_if_bare(folder: Path) -> None:
    """Remove a directory that only holds whiteouts, which hide nothing."""
    if all(_is_whiteout(path) for path in folder.iterdir()):
        before = folder.parent.stat()
        shutil.rmtree(folder)
        os.utime(folder.parent, ns=(before.st_atime_ns, before.st_mtime_ns))


def _is_whiteout(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def copy_attributes(source: Path, target: Path) -> None:
    """Make a directory like another one."""
    found = source.stat()
    os.chown(target, found.st_uid, found.st_gid)
    for name in os.listxattr(source):
        if not name.startswith(OVERLAY_XATTRS):
            with suppress(PermissionError):  # the kernel's own
                os.setxattr(target, name, os.getxattr(source, name))
    target.chmod(stat.S_IMODE(found.st_mode))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
