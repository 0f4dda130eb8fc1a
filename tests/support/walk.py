"""Describing a directory tree on disk so that two of them can be compared in every attribute."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

Facts = tuple[object, ...]


def describe(root: Path) -> dict[str, Facts]:
    """Every path below ``root`` with kind, mode, owner, mtime, xattrs, device, content and hard link group."""
    first: dict[tuple[int, int], str] = {}
    found: dict[str, Facts] = {".": _facts(root, root, first)}
    for directory, subdirectories, names in os.walk(os.fsencode(root)):
        subdirectories.sort()
        for name in sorted([*subdirectories, *names]):
            path = Path(os.fsdecode(os.path.join(directory, name)))  # noqa: PTH118 - bytes
            found[str(path.relative_to(root))] = _facts(root, path, first)
    return found


def _facts(root: Path, path: Path, first: dict[tuple[int, int], str]) -> Facts:
    status = path.lstat()
    content = ""
    if stat.S_ISREG(status.st_mode):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    elif stat.S_ISLNK(status.st_mode):
        content = str(path.readlink())
    device = status.st_rdev if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode) else 0
    xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in _xattrs(path)}
    group = str(path.relative_to(root))
    if not stat.S_ISDIR(status.st_mode):
        group = first.setdefault((status.st_dev, status.st_ino), group)
    return (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, device, content, xattrs, group)


def _xattrs(path: Path) -> list[str]:
    """umoci keeps its own notes in user.rootlesscontainers; overlay and SELinux are the machine's."""
    own = ("user.rootlesscontainers", "trusted.overlay", "security.selinux", "user.umoci")
    return sorted(name for name in os.listxattr(path, follow_symlinks=False) if not name.startswith(own))


def differences(before: dict[str, Facts], after: dict[str, Facts]) -> list[str]:
    """A line for every path that is not the same in both."""
    paths = sorted(set(before) | set(after))
    return [f"{path}: {before.get(path)} -> {after.get(path)}" for path in paths if before.get(path) != after.get(path)]
