"""Directories below a root, held open: whatever symlinks say, none of them is outside.

Each step of a path is opened relative to the one before it without following links; what a link says is walked in the
same way, with the root as the top. Nobody else changes the tree meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_OPEN: Final = 128
_MAX_LINKS: Final = 40
_NO_DIRECTORY: Final = (errno.ENOTDIR, errno.ELOOP)


class AstrayError(Exception):
    """A path leads to no directory; the text says why."""


class Place(NamedTuple):
    """A directory that is open."""

    handle: int
    """Valid until the next directory is asked for."""
    real: str
    """Its path below the root, without symlinks."""

    def below(self, name: str) -> str:
        """The real path of what it holds."""
        return f"{self.real}/{name}" if self.real else name

    def kind(self, name: str) -> int | None:
        """The type of file that has the name, of `stat.S_IFMT`; None when there is none."""
        try:
            return stat.S_IFMT(os.stat(name, dir_fd=self.handle, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        """What it holds."""
        return os.listdir(self.handle)  # noqa: PTH208 - an open directory has no path


class Folders:
    """The directories of one root, as long as the ``with`` block."""

    def __init__(self, root: Path, *, alone: bool) -> None:
        """``alone`` is set where other trees will lie below this one, so that links may lead to what is not here."""
        self.root = root
        self._root = Place(os.open(root, _OPEN), "")
        self._alone = alone
        self._known: dict[str, Place] = {"": self._root}
        self._aliases: dict[str, str] = {}
        self.made: set[str] = set()
        """Directories that had to be made on the way to others."""
        self.named: set[str] = set()
        """Directories that the caller made."""
        self.touched: dict[str, os.stat_result] = {} if alone else {"": os.fstat(self._root.handle)}
        """What the others were like before they were opened."""
        self.leans = False
        """Whether a link led to what is not here."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.forget()
        os.close(self._root.handle)

    def forget(self) -> None:
        """Directories or links have been removed, so no path is known any more."""
        for place in self._known.values():
            if place is not self._root:
                os.close(place.handle)
        self._known = {"": self._root}
        self._aliases = {}

    def open(self, path: str) -> Place:
        """The directory that ``path`` leads to, made where there is nothing; raises `AstrayError`."""
        place = self._known.get(path)
        return place if place is not None else self._walk(path, make=True)

    def find(self, path: str) -> Place | None:
        """The directory that ``path`` leads to; None when it leads to none."""
        try:
            return self._known.get(path) or self._walk(path, make=False)
        except AstrayError:
            return None

    def _walk(self, path: str, *, make: bool) -> Place:
        alias = self._known.get(self._aliases.get(path, path))
        if alias is not None:
            return alias
        place, pending = self._nearest(path)
        links, own = 0, len(pending)
        while pending:
            part = pending.pop()
            linked = len(pending) >= own  # this part is from a link's text
            own = min(own, len(pending))
            if part in ("", "."):
                continue
            child = self._step(place, part, make=make and (self._alone or not linked), linked=linked)
            if not isinstance(child, str):
                place = child
                continue
            links += 1
            if links > _MAX_LINKS:
                raise AstrayError(f"symlinks on its way, {path!r}, do not end")
            place = self._root if child.startswith("/") else place
            pending += child.split("/")[::-1]
        if place.real != path:
            self._aliases[path] = place.real
        return place

    def _nearest(self, path: str) -> tuple[Place, list[str]]:
        """The last directory on the way that is open, and the parts from there on, the last first."""
        pending: list[str] = []
        while path not in self._known:
            path, _, part = path.rpartition("/")
            pending.append(part)
        return self._known[path], pending

    def _step(self, place: Place, part: str, *, make: bool, linked: bool) -> Place | str:
        """The directory ``part`` of ``place``, or the text of the link that it is."""
        if part == "..":
            return self._known.get(above := place.real.rpartition("/")[0]) or self._enter(place, part, above)
        real = place.below(part)
        known = self._known.get(real)
        if known is not None:
            return known
        try:
            return self._enter(place, part, real)
        except FileNotFoundError:
            if not make:
                raise AstrayError(f"a symlink on its way leads to {real!r}, which is not there") from None
        except OSError as error:
            if error.errno not in _NO_DIRECTORY:
                raise
            return self._text(place, part, real)
        self.leans |= linked
        os.mkdir(part, 0o700, dir_fd=place.handle)
        self.made.add(real)
        return self._enter(place, part, real)

    def _enter(self, place: Place, part: str, real: str) -> Place:
        if not self._alone and real not in self.made and real not in self.named and real not in self.touched:
            self._touch(place, part, real)
        entered = Place(os.open(part, _OPEN, dir_fd=place.handle), real)
        if len(self._known) >= _MAX_OPEN:
            oldest = next(path for path, each in self._known.items() if each not in (self._root, place))
            os.close(self._known.pop(oldest).handle)
        self._known[real] = entered
        return entered

    def _touch(self, place: Place, part: str, real: str) -> None:
        found = os.stat(part, dir_fd=place.handle, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode):
            return
        self.touched[real] = found
        if os.geteuid() and found.st_mode & stat.S_IRWXU != stat.S_IRWXU:  # closed to all but root
            os.chmod(part, stat.S_IRWXU, dir_fd=place.handle)

    @staticmethod
    def _text(place: Place, part: str, real: str) -> str:
        try:
            return os.readlink(part, dir_fd=place.handle)
        except OSError:
            raise AstrayError(f"its parent {real!r} is no directory") from None


class Remover:
    """Removes what lies below a root, however deep."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders

    def remove(self, real: str, keep: Container[str] = ()) -> None:
        """What lies at this real path and below, but for what is to be kept there, and the directories of that."""
        pending, directories = [real], []
        while pending:
            path = pending.pop()
            above, _, name = path.rpartition("/")
            place = self._folders.find(above)
            if place is None:
                continue
            inside = self._inside(place, name)
            if inside is not None:
                directories.append(path)
                pending += [f"{path}/{each}" for each in inside]
            elif path not in keep:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=place.handle)
        for path in reversed(directories):
            above, _, name = path.rpartition("/")
            place = self._folders.find(above)
            if place is not None and path not in keep:
                with suppress(OSError):  # it holds what is kept
                    os.rmdir(name, dir_fd=place.handle)
        self._folders.forget()

    def _inside(self, place: Place, name: str) -> list[str] | None:
        """What a directory holds; None for what is none."""
        inside = self._folders.find(place.below(name)) if place.kind(name) == stat.S_IFDIR else None
        return None if inside is None else inside.names()
