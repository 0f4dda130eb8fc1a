"""GPU code that no target can choose leaves a library's sections.

What stays of a container moves to its front, and containers move up to each other where every reference to them is
known and can be changed; others keep their addresses. The pages that get free leave the file either way.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from slimgpu.elf import fatbin
from slimgpu.elf.fatbin import Container
from slimgpu.elf.pointers import Pointers, pointers_into
from slimgpu.elf.prune import Census, Data, Item, Pruned, prune, read_items
from slimgpu.elf.tables import SectionFlag, SectionType, merged
from slimgpu.errors import UnusualFileError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slimgpu.elf.choice import Policy
    from slimgpu.elf.rewrite import Rewriter
    from slimgpu.elf.tables import Section, Span, Tables

NAMES: Final = (".nv_fatbin", "__nv_relfatbin", ".cask_resource")
"""Sections of which containers are the whole or a known part. Others hold some too (``.ldata`` of cuFFT: code that
serves every architecture, found by tables of its own) and stay as they are."""


def code_sections(tables: Tables) -> list[Section]:
    """The sections that are pruned, by offset; `UnusualFileError` when they overlap."""
    found = [s for s in tables.sections if s.name in NAMES and s.allocated and s.size and s.type != SectionType.NOBITS]
    found.sort(key=lambda section: section.offset)
    if any(first.end > second.offset for first, second in pairwise(found)):
        raise UnusualFileError("sections with GPU code overlap")
    return found


def scattered_spans(tables: Tables) -> list[Span]:
    """The stretches of other data, in which containers may lie; they do not overlap."""
    found = []
    for section in tables.sections:
        is_data = section.allocated and section.type == SectionType.PROGBITS and not section.flags & SectionFlag.EXEC
        if is_data and section.name not in NAMES:
            found.append((section.offset, section.end))
    return merged(found)


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


def prune_sections(
    data: memoryview, tables: Tables, policy: Policy, census: Census, rewriter: Rewriter
) -> tuple[bool, ...]:
    """Queue what makes these sections smaller; gives of each whether it has containers that can move.

    Raises `UnusualFileError` for containers, or pointers to them, that are not as compilers and linkers make them.
    """
    sections = code_sections(tables)
    for section in sections:
        if tables.file_offset(section.address) != section.offset:
            raise UnusualFileError(f"section {section.name} is not mapped as it says")
    if not sections:
        return ()
    pointers = pointers_into(data, tables, [(s.address, s.address + s.size) for s in sections])
    stretches = [_Stretch(data, section, pointers) for section in sections]
    for stretch in stretches:
        _prune_section(stretch, policy, census, rewriter)
    return tuple(bool(stretch.movable) for stretch in stretches)


class _Stretch:
    """One section, with all places as offsets in the file."""

    def __init__(self, data: memoryview, section: Section, pointers: Pointers) -> None:
        self.data = data
        self.section = section
        self.shift = section.address - section.offset
        self.movable = {
            target - self.shift: places for target, places in pointers.movable.items() if self._has(target - self.shift)
        }
        spans = [(start - self.shift, end - self.shift) for start, end in pointers.fixed]
        self.fixed = sorted(
            (start, min(end, section.end)) for start, end in spans if start < section.end and section.offset < end
        )

    def _has(self, offset: int) -> bool:
        return self.section.offset <= offset < self.section.end


def _prune_section(stretch: _Stretch, policy: Policy, census: Census, rewriter: Rewriter) -> None:
    section = stretch.section
    items = _with_targets(list(read_items(stretch.data, section.offset, section.end)), stretch)
    placed = _place(items, stretch, policy, census)
    _queue(section, placed, rewriter)
    for one in placed:
        if one.offset != one.item.offset:
            for written_at in stretch.movable[one.item.offset]:
                rewriter.write(written_at, (one.offset + stretch.shift).to_bytes(8, "little"))


def _with_targets(items: list[Item], stretch: _Stretch) -> list[Item]:
    """The items and, as data, what is referred to outside of them."""
    found = []
    position = stretch.section.offset
    for start, end in sorted([*stretch.fixed, *((target, target + 1) for target in stretch.movable)]):
        start, position = max(start, position), max(end, position)  # noqa: PLW2901 - overlapping ones count once
        found += list(_outside(items, start, end))
    return sorted([*items, *found], key=lambda item: item.offset)


def _outside(items: Sequence[Item], start: int, end: int) -> Iterator[Data]:
    """What of a stretch is in no item."""
    number = max(0, bisect_right(items, start, key=lambda item: item.offset) - 1)
    while start < end:
        item = items[number] if number < len(items) else Data(end, 0)
        if start < min(end, item.offset):
            yield Data(start, min(end, item.offset) - start)
        start = max(start, item.offset + item.size)
        number += 1


def _place(items: Sequence[Item], stretch: _Stretch, policy: Policy, census: Census) -> list[Placed]:
    whole, fixed = _kept_as_they_are(items, stretch)
    placed: list[Placed] = []
    end = stretch.section.offset
    for number, item in enumerate(items):
        if not isinstance(item, Container):
            placed.append(Placed(item, item.offset, None))
        elif number in whole:
            census.keep(item)
            placed.append(Placed(item, item.offset, None))
        else:
            pruned = prune(stretch.data, item, policy, census)
            moves = item.offset in stretch.movable and number not in fixed
            placed.append(Placed(item, _moved_up(item, end, stretch) if moves else item.offset, pruned))
        end = placed[-1].end
    return placed


def _moved_up(item: Item, end: int, stretch: _Stretch) -> int:
    """The next place that is aligned as the item is, as far as its section asks for that."""
    address = item.offset + stretch.shift
    alignment = min(address & -address, max(stretch.section.alignment, fatbin.ALIGNMENT))
    return end + -(end + stretch.shift) % alignment


def _kept_as_they_are(items: Sequence[Item], stretch: _Stretch) -> tuple[set[int], set[int]]:
    """The numbers of items that something looks into, and of those that are referred to in ways that cannot change."""
    starts = [item.offset for item in items]
    known = set(starts)
    whole = {bisect_right(starts, target) - 1 for target in stretch.movable if target not in known}
    fixed = set()
    reached = 0
    for start, end in stretch.fixed:
        first, last = bisect_left(starts, start), bisect_left(starts, end)
        if first < len(starts) and starts[first] == start:
            fixed.add(first)
            first += 1
        elif first and start < items[first - 1].offset + items[first - 1].size:
            whole.add(first - 1)
        whole.update(range(max(first, reached), last))
        reached = max(reached, last)
    return whole, fixed


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
