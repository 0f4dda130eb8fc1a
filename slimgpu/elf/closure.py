"""Which file satisfies each DT_NEEDED of each ELF file, by the dynamic loader's rules.

Source: ld.so(8), and glibc's elf/dl-load.c: RPATH of the file (only without RUNPATH), LD_LIBRARY_PATH, RUNPATH,
the directories of ld.so.conf, then /lib and /usr/lib. A name that none of these finds can still be satisfied by
a library that the process loaded before under the same name (Python packages preload theirs with ctypes), so a
file of that name anywhere in the image is noted as `elsewhere`.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slimgpu.errors import SlimgpuError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from slimgpu.elf.read import ElfFacts
    from slimgpu.rootfs.filesystem import FileSystem

_MAX_CONF: Final = 1024 * 1024
_DEFAULT: Final = ("lib64", "usr/lib64", "lib", "usr/lib")
_TOKEN: Final = re.compile(r"\$(?:\{(ORIGIN|LIB|PLATFORM)\}|(ORIGIN|LIB|PLATFORM))")


@dataclass(frozen=True, slots=True)
class Provider:
    """What a needed name leads to."""

    path: str
    """'' when nothing in the image has that name."""
    elsewhere: bool
    """Whether the file is found by name only, off the loader's search path."""
    links: tuple[str, ...] = ()
    """The symlinks that lead there."""


class Loader:
    """The dynamic loader of one file system."""

    def __init__(
        self,
        elf: Mapping[str, ElfFacts],
        trail: Callable[[str], list[str] | None],
        directories: Iterable[str],
        library_path: Iterable[str] = (),
    ) -> None:
        self._elf = elf
        self._trail = trail
        self._library_path = tuple(library_path)
        self._directories = tuple(directories)
        self._by_name: dict[str, list[str]] = {}
        for path, facts in elf.items():
            for name in {path.rpartition("/")[2], facts.soname} - {""}:
                self._by_name.setdefault(name, []).append(path)

    def providers(self, path: str) -> dict[str, Provider]:
        """For each name that the file at ``path`` needs, its interpreter's too, what satisfies it."""
        facts = self._elf[path]
        origin = path.rpartition("/")[0]
        text = facts.runpath or facts.rpath
        own = tuple(_expand(part, origin, facts.bits) for part in text.split(":") if part)
        first = (*self._library_path, *own) if facts.runpath else (*own, *self._library_path)
        search = (*first, *self._directories)
        names = (*facts.needed, facts.interpreter) if facts.interpreter else facts.needed
        return {name: self._provider(name, facts, search) for name in names}

    def _provider(self, name: str, facts: ElfFacts, search: Iterable[str]) -> Provider:
        candidates = [name] if "/" in name else [f"{directory}/{name}" for directory in search]
        for candidate in candidates:
            trail = self._trail(candidate)
            if trail is not None and self._fits(trail[-1], facts):
                return Provider(trail[-1], elsewhere=False, links=tuple(trail[:-1]))
        for path in self._by_name.get(name, ()):
            if self._fits(path, facts):
                return Provider(path, elsewhere=True)
        return Provider("", elsewhere=True)

    def _fits(self, path: str, facts: ElfFacts) -> bool:
        other = self._elf.get(path)
        return other is not None and (other.bits, other.machine) == (facts.bits, facts.machine)


def _expand(text: str, origin: str, bits: int) -> str:
    values = {"ORIGIN": f"/{origin}", "LIB": "lib64" if bits == 64 else "lib", "PLATFORM": "x86_64"}  # noqa: PLR2004
    return _TOKEN.sub(lambda match: values[match[1] or match[2]], text)


def library_path(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The directories of LD_LIBRARY_PATH."""
    return tuple(part for part in re.split("[:;]", environment.get("LD_LIBRARY_PATH", "")) if part)


def search_directories(files: FileSystem) -> tuple[str, ...]:
    """The directories of ld.so.conf with its includes, and the loader's own, in order."""
    return (*_configured(files, "etc/ld.so.conf", depth=0), *_DEFAULT)


def _configured(files: FileSystem, path: str, depth: int) -> list[str]:
    try:
        lines = files.read(path, _MAX_CONF).decode(errors="replace").splitlines()
    except SlimgpuError:
        return []  # no configuration, or none that the loader could use
    found: list[str] = []
    for line in lines:
        words = line.partition("#")[0].split()
        if words[:1] == ["include"] and depth < 4:  # noqa: PLR2004 - a loop of includes
            for pattern in words[1:]:
                for match in sorted(fnmatch.filter(files.nodes, _absolute(pattern, path))):
                    found += _configured(files, match, depth + 1)
        elif words and words[0].startswith("/"):
            found.append(words[0])
    return found


def _absolute(pattern: str, path: str) -> str:
    return pattern.lstrip("/") if pattern.startswith("/") else f"{path.rpartition('/')[0]}/{pattern}"
