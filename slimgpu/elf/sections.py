"""GPU code that no target can choose leaves a library's sections.

What stays of a container moves to its front, and containers move up to each other where every reference to them is
known and can be changed; others keep their addresses. The pages that get free leave the file either way.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slimgpu.elf import fatbin
from slimgpu.elf.fatbin import Container
from slimgpu.elf.pointers import Pointers, pointers_into
from slimgpu.elf.prune import Census, Data, Item, Pruned, prune, read_items
from slimgpu.elf.tables import SectionType
from slimgpu.errors import UnusualFileError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from slimgpu.elf.choice import Policy
    from slimgpu.elf.rewrite import Rewriter
    from slimgpu.elf.tables import Section, Tables

NAMES: Final = (".nv_fatbin", "__nv_relfatbin", ".cask_resource")
"""Sections of which containers are the whole or a known part. Others hold some too (``.ldata`` of cuFFT: code that
serves every architecture, found by tables of its own) and stay as they are."""


def code_sections(tables: Tables) -> list[Section]:
    """The sections that are pruned."""
    return [s for s in tables.sections if s.name in NAMES and s.allocated and s.size and s.type != SectionType.NOBITS]


@dataclass(frozen=True, slots=True)
class Placed:
    """What stays of an item, and where."""

    item: Item
    offset: int
    pruned: Pruned | None
    """None: all of it."""

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.offset + (self.item.size if self.pruned is None else self.pruned.size)

    @property
    def unchanged(self) -> bool:
        """Whether nothing about it changes."""
        return self.offset == self.item.offset and (self.pruned is None or self.pruned.size == self.item.size)


def prune_section(
    data: memoryview, tables: Tables, section: Section, policy: Policy, census: Census, rewriter: Rewriter
) -> bool:
    """Queue what makes the section smaller; gives whether its containers could move.

    Raises `UnusualFileError` when it holds what is no container in places where only containers are known.
    """
    if tables.file_offset(section.address) != section.offset:
        raise UnusualFileError(f"section {section.name} is not mapped as it says")
    pointers = _pointers(data, tables, section)
    shift = section.address - section.offset
    items = _with_targets(list(read_items(data, section.offset, section.end)), pointers, shift)
    placed = _place(data, items, pointers, shift, policy, census)
    _queue(section, placed, rewriter)
    for one in placed:
        if one.offset != one.item.offset and pointers is not None:
            for written_at in pointers.movable[one.item.offset + shift]:
                rewriter.write(written_at, (one.offset + shift).to_bytes(8, "little"))
    return pointers is not None


def _pointers(data: memoryview, tables: Tables, section: Section) -> Pointers | None:
    """None when they are not known; then nothing moves."""
    try:
        return pointers_into(data, tables, section.address, section.address + section.size)
    except UnusualFileError:
        return None


def _with_targets(items: list[Item], pointers: Pointers | None, shift: int) -> list[Item]:
    """The items and, as data, the single bytes outside of them that something points to."""
    starts = [item.offset for item in items]
    found = set()
    for address in () if pointers is None else (*pointers.movable, *pointers.fixed):
        offset = address - shift
        number = bisect_right(starts, offset) - 1
        if number < 0 or offset >= items[number].offset + items[number].size:
            found.add(offset)
    return sorted([*items, *(Data(offset, 1) for offset in found)], key=lambda item: item.offset)


def _place(
    data: memoryview, items: Sequence[Item], pointers: Pointers | None, shift: int, policy: Policy, census: Census
) -> list[Placed]:
    starts = [item.offset for item in items]
    known = _numbers_at(starts, shift, () if pointers is None else pointers.movable)
    fixed = _numbers_at(starts, shift, () if pointers is None else pointers.fixed)
    # Something looks at the inside: what is there cannot be known to be free.
    whole = {n for n, inside in (*known, *fixed) if inside}
    movable = {n for n, inside in known} - {n for n, _ in fixed} - whole
    placed: list[Placed] = []
    end = items[0].offset if items else 0
    for number, item in enumerate(items):
        pruned = prune(data, item, policy, census) if isinstance(item, Container) and number not in whole else None
        if isinstance(item, Container) and number in whole:
            census.keep(item)
        moves = isinstance(item, Container) and number in movable
        aligned = end + -end % fatbin.ALIGNMENT
        placed.append(Placed(item, aligned if moves else item.offset, pruned))
        end = placed[-1].end
    return placed


def _numbers_at(starts: Sequence[int], shift: int, addresses: Iterable[int]) -> list[tuple[int, bool]]:
    """Which items the addresses lie in, and whether inside rather than at the start."""
    found = []
    for address in addresses:
        number = bisect_right(starts, address - shift) - 1
        if number >= 0:
            found.append((number, starts[number] != address - shift))
    return found


def _queue(section: Section, placed: Sequence[Placed], rewriter: Rewriter) -> None:
    """Write every item to its place, and free what is between them."""
    end = section.offset
    for one in placed:
        rewriter.free(end, one.offset)
        if not one.unchanged:
            _write(one, rewriter)
        end = one.end
    rewriter.free(end, section.end)


def _write(one: Placed, rewriter: Rewriter) -> None:
    parts = ((one.item.offset, one.item.size),) if one.pruned is None else one.pruned.parts
    position = one.offset
    for part in parts:
        if isinstance(part, bytes):
            rewriter.write(position, part)
            position += len(part)
        else:
            rewriter.fetch(position, *part)
            position += part[1]
