"""Who a command runs as: ``user[:group]`` of an image, looked up in its own files the way container engines do.

Nothing here asks this machine's users or loads code of the image (its NSS modules). Lines that break the format are
passed over. Source: https://github.com/moby/sys/tree/main/user (``GetExecUser``)
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slimgpu.errors import NotFoundError
from slimgpu.rootfs.within import read_within

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MAX_ID: Final = 2**31 - 1
_MAX_FILE: Final = 16 * 1024 * 1024
_PASSWD_FIELDS: Final = 7
_GROUP_FIELDS: Final = 4


@dataclass(frozen=True, slots=True)
class Identity:
    """The numbers that a process has, and where it is at home."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = (0,)
    """All groups, the first one (``gid``) included."""
    home: str = "/"


@dataclass(frozen=True, slots=True)
class _User:
    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    gid: int
    members: tuple[str, ...]


def identity_of(root: Path, user: str) -> Identity:
    """The identity of ``user``, as an image's configuration names it, in the root file system ``root``.

    A number needs no entry. Raises `NotFoundError` when a name has none.
    """
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        passwd, group = (_text(folder, f"/etc/{name}") for name in ("passwd", "group"))
    finally:
        os.close(folder)
    return identify(user, passwd, group)


def _text(folder: int, path: str) -> str:
    with suppress(OSError):
        return read_within(folder, path, _MAX_FILE).decode(errors="replace")
    return ""


def identify(user: str, passwd: str, group: str) -> Identity:
    """The same from the texts of ``/etc/passwd`` and ``/etc/group``."""
    name, colon, group_name = user.partition(":")
    found = _find_user(name or "0", passwd)
    if colon and group_name:
        gid = _find_group(group_name, group)
        return Identity(found.uid, gid, (gid,), found.home)
    others = [entry.gid for entry in _groups(group) if found.name and found.name in entry.members]
    return Identity(found.uid, found.gid, tuple(dict.fromkeys((found.gid, *others))), found.home)


def _find_user(name: str, passwd: str) -> _User:
    number = _number(name)
    for user in _users(passwd):
        if user.name == name if number is None else user.uid == number:
            return user
    if number is None:
        raise NotFoundError(f"the image has no user {name!r} in /etc/passwd; give the user's number")
    return _User("", number, 0, "/")


def _find_group(name: str, group: str) -> int:
    number = _number(name)
    for entry in _groups(group):
        if entry.name == name if number is None else entry.gid == number:
            return entry.gid
    if number is None:
        raise NotFoundError(f"the image has no group {name!r} in /etc/group; give the group's number")
    return number


def _users(passwd: str) -> Iterator[_User]:
    for line in passwd.split("\n"):
        fields = line.split(":")
        if len(fields) == _PASSWD_FIELDS:
            uid, gid = _number(fields[2]), _number(fields[3])
            if uid is not None and gid is not None:
                home = fields[5] if fields[5].startswith("/") and "\0" not in fields[5] else "/"
                yield _User(fields[0], uid, gid, home)


def _groups(group: str) -> Iterator[_Group]:
    for line in group.split("\n"):
        fields = line.split(":")
        gid = _number(fields[2]) if len(fields) == _GROUP_FIELDS else None
        if gid is not None:
            yield _Group(fields[0], gid, tuple(fields[3].strip().split(",")))


def _number(text: str) -> int | None:
    """A user's or group's number; None for what is a name."""
    if not text.isascii() or not text.isdigit() or len(text) > len(str(_MAX_ID)):
        return None
    return int(text) if int(text) <= _MAX_ID else None
