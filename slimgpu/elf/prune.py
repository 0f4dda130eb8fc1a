"""What stays of each container of GPU code when only some GPUs are wanted."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from slimgpu.elf import fatbin
from slimgpu.elf.arch import Sm, Variant
from slimgpu.elf.choice import Choice, Code, Form, Policy, choose
from slimgpu.elf.fatbin import Container, Entry
from slimgpu.elf.tables import is_zero
from slimgpu.errors import UnusualFileError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_FORMS: Final[dict[str, int]] = {"sm": Form.CUBIN, "compute": Form.PTX, "lto": Form.LTO_IR}
_NAMES: Final = {form: name for name, form in _FORMS.items()}
_LABEL: Final = re.compile(r"(sm|compute|lto)_(\d+)([af]?)")
_START: Final = re.compile(re.escape(fatbin.START))
_MAX_ITEMS: Final = 2**18
"""Containers with their entries in one section; the largest seen (cuFFT) has 120,000."""
_MAX_ODD: Final = 64
"""Bytes that begin as a container and are none; no library has any."""


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes between containers, of unknown use."""

    offset: int
    size: int


Item = Container | Data
"""What a section is made of, in order."""


@dataclass(slots=True)
class Census:
    """Bytes of GPU code by what it is for (``sm_90a``, ``compute_80``, ...), headers included."""

    before: Counter[str] = field(default_factory=Counter)
    after: Counter[str] = field(default_factory=Counter)
    placeholders: int = 0
    """Containers of which nothing but an empty entry stays."""
    scattered: int = 0
    """Of containers in sections that are left alone."""
    missing: list[str] = field(default_factory=list)
    """Kernels that only PTX could provide for a target, when none may stay."""

    def count(self, container: Container) -> None:
        """Note what a container holds."""
        for entry in container.entries:
            self.before[label(entry.code)] += entry.size

    def keep(self, container: Container) -> None:
        """Note a container that stays whole."""
        self.count(container)
        for entry in container.entries:
            self.after[label(entry.code)] += entry.size


@dataclass(frozen=True, slots=True)
class Pruned:
    """What stays of a container: stretches of the original as (offset, length), or bytes of its own."""

    parts: tuple[tuple[int, int] | bytes, ...]
    size: int


def read_items(data: memoryview, start: int, end: int) -> Iterator[Item]:
    """Containers and what is between them; zeros that pad are left out.

    Raises `UnusualFileError` for a container that is not as it should be, or when there are more than in any library.
    """
    position = start
    count = 0
    while position < end:
        count += 1
        if count > _MAX_ITEMS:
            raise UnusualFileError("it has more containers of GPU code than any library")
        if data[position : position + len(fatbin.START)] == fatbin.START:
            container = fatbin.read_container(data, position, end)
            yield container
            position += container.size
            count += len(container.entries)
            continue
        following = _next_container(data, position + 1, end)
        if not is_zero(data[position:following]):
            yield Data(position, following - position)
        position = following


def _next_container(data: memoryview, start: int, end: int) -> int:
    """Where the next container starts, at an aligned place; ``end`` if nowhere."""
    for found in _START.finditer(data, start, end):
        if found.start() % fatbin.ALIGNMENT == 0:
            return found.start()
    return end


def scattered(data: memoryview, start: int, end: int) -> Iterator[Container]:
    """The containers among bytes of any kind, as many as there are in any library, until too many are none."""
    position = start
    count = odd = 0
    while count < _MAX_ITEMS and odd < _MAX_ODD:
        position = _next_container(data, position, end)
        if position == end:
            return
        try:
            container = fatbin.read_container(data, position, end)
        except UnusualFileError:
            position += fatbin.ALIGNMENT
            odd += 1
        else:
            yield container
            position += container.size
            count += 1 + len(container.entries)


def label(code: Code) -> str:
    """What a piece of code is, as nvcc's options name it."""
    name = _NAMES.get(code.form)
    return f"{name}_{code.sm.number}{code.sm.variant}" if name else "other"


def parse_label(name: str) -> Code | None:
    """The code that `label` gives this name; None for ``other``."""
    match = _LABEL.fullmatch(name)
    return Code(_FORMS[match[1]], Sm(int(match[2]), Variant(match[3]))) if match else None


def prune(data: memoryview, container: Container, policy: Policy, census: Census) -> Pruned:
    """What stays of the container."""
    codes = [entry.code for entry in container.entries]
    choice = choose(codes, policy)
    census.count(container)
    census.missing += _missing(data, container, policy, choice)
    kept = [entry for number, entry in enumerate(container.entries) if number in choice.kept]
    parts: list[tuple[int, int] | bytes] = [(entry.offset, entry.size) for entry in kept]
    if not kept and container.entries:
        parts = [_left_over(container.entries)]
        census.placeholders += 1
    size = sum(len(part) if isinstance(part, bytes) else part[1] for part in parts)
    unchanged = fatbin.HEADER.size + size == container.size
    for entry in container.entries if unchanged else kept:
        census.after[label(entry.code)] += entry.size
    header = fatbin.HEADER.pack(fatbin.MAGIC, 1, fatbin.HEADER.size, size)
    return Pruned((header, *parts), fatbin.HEADER.size + size)


def _left_over(entries: Sequence[Entry]) -> tuple[int, int] | bytes:
    """Something that no target can run either, so that the container stays valid: as small as can be."""
    smallest = min(entries, key=lambda entry: (entry.size, entry.offset))
    cubins = [entry for entry in entries if entry.code.form == Form.CUBIN]
    if cubins and smallest.size > fatbin.PLACEHOLDER:
        return fatbin.placeholder(min(cubins, key=lambda entry: entry.offset))
    return smallest.offset, smallest.size


def _missing(data: memoryview, container: Container, policy: Policy, choice: Choice) -> list[str]:
    if not choice.missing:
        return []
    wanted = choose([entry.code for entry in container.entries], Policy(policy.targets)).kept
    ptx = [container.entries[n] for n in sorted(wanted) if container.entries[n].code.form == Form.PTX]
    return [name for entry in ptx for name in fatbin.kernels(data, entry)] or ["a kernel without a name"]
