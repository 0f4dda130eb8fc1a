"""Where the bytes that stay of an ELF file go, when stretches of it are free and sections are dropped.

The file is seen as chunks that stay whole: what each segment maps, and each section that is in no segment. A segment is
cut where whole pages of it are free. Chunks follow each other in their old order, each at the next offset that is
congruent to its old one, so that every mapped byte keeps its address. Each cut makes one more segment. A table of
segments that has become too long for its place goes behind all chunks, where no segment maps it: glibc then makes a
copy (elf/dl-load.c), and binutils refuses to change the file. One in another segment than the ELF header makes strip
and objcopy write a broken library and report success (seen with 2.40).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from slimgpu.elf.tables import (
    HEADER_SIZE,
    SECTION_SIZE,
    SEGMENT_SIZE,
    Section,
    SectionType,
    Segment,
    SegmentType,
    Span,
    Tables,
    is_program,
    is_zero,
)
from slimgpu.errors import UnusualFileError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

_MAX_CUTS: Final = 64
"""Each costs the process a mapping."""
_TABLE_ALIGNMENT: Final = 8


@dataclass(frozen=True, slots=True)
class Cut:
    """Bytes of a segment that leave the file; offsets in the original."""

    start: int
    """Where the file leaves off."""
    end: int
    """Where it goes on."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes that stay together; offsets in the original."""

    start: int
    end: int
    alignment: int
    """The new offset is congruent to ``start`` modulo this."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The plan of the new file."""

    chunks: tuple[Chunk, ...]
    places: tuple[int, ...]
    """The new offset of each chunk."""
    cuts: tuple[Cut, ...]
    segments: tuple[Segment, ...]
    """With their new offsets."""
    segments_at: int
    """Where their table lies in the new file."""
    in_place: bool
    """Whether it is where it was in the original."""
    sections_at: int
    """Where the table of sections lies in the new file."""

    def new_offset(self, offset: int) -> int:
        """Where a byte of the original is now; for one that is gone, where what came before it ends."""
        return _new_offset(self.chunks, self.places, offset)


def lay_out(data: memoryview, tables: Tables, free: Sequence[Span], dropped: Collection[int]) -> Layout:
    """The layout without the free pages of ``free`` (sorted, apart) and the ``dropped`` sections.

    Raises `UnusualFileError` when bytes would be lost that nothing describes, or parts overlap that would be parted.
    """
    cuts = _cuts(tables, free) if free and tables.is_library and not is_program(data, tables) else []
    # A segment for the table itself would have to say where it is mapped; without cuts nothing about it changes.
    segments = [s for s in tables.segments if s.type != SegmentType.PHDR or not cuts]
    parts = [part for segment in segments for part in _split(segment, cuts)]
    in_place = len(parts) <= len(tables.segments) and _is_mapped(tables.loads, _table_of_segments(tables))
    chunks = _chunks(tables, [part for part in parts if part.type == SegmentType.LOAD], dropped)
    gone = [(cut.start, cut.end) for cut in cuts] + [_span(tables.sections[number]) for number in dropped]
    _check_contents(segments, chunks)
    _check_nothing_lost(data, chunks, [*gone, _table_of_segments(tables), _table_of_sections(tables)])
    places = _places(chunks, gone)
    moved = tuple(_moved(part, _new_offset(chunks, places, part.offset), tables.page) for part in parts)
    end = _aligned(places[-1] + chunks[-1].end - chunks[-1].start, _TABLE_ALIGNMENT)
    segments_at = (
        _new_offset(chunks, places, tables.segments_offset) if in_place else _unmapped(moved, end, tables.page)
    )
    sections_at = end if in_place else segments_at + SEGMENT_SIZE * len(parts)
    return Layout(tuple(chunks), tuple(places), tuple(cuts), moved, segments_at, in_place, sections_at)


def _unmapped(segments: Iterable[Segment], end: int, page: int) -> int:
    """From ``end`` on, where no page of a segment is: glibc would find the table in the last one, and clear that."""
    return max(end, *(_aligned(segment.end, page) for segment in segments if segment.type == SegmentType.LOAD))


def _is_mapped(loads: Iterable[Segment], span: Span) -> bool:
    return any(load.offset <= span[0] and span[1] <= load.end for load in loads)


def _aligned(offset: int, alignment: int) -> int:
    return offset + -offset % max(1, alignment)


def _span(section: Section) -> Span:
    return section.offset, section.end


def _table_of_sections(tables: Tables) -> Span:
    return tables.sections_offset, tables.sections_offset + SECTION_SIZE * len(tables.sections)


def _table_of_segments(tables: Tables) -> Span:
    return tables.segments_offset, tables.segments_offset + SEGMENT_SIZE * len(tables.segments)


def _new_offset(chunks: Sequence[Chunk], places: Sequence[int], offset: int) -> int:
    number = max(0, bisect_right(chunks, offset, key=lambda chunk: chunk.start) - 1)
    chunk = chunks[number]
    return places[number] + min(offset, chunk.end) - chunk.start


def _cuts(tables: Tables, free: Sequence[Span]) -> list[Cut]:
    """The largest stretches of free pages, in order."""
    loads = tables.loads
    found = [cut for span in free for load in loads for cut in _cut(span, load, tables.page)]
    largest = sorted(found, key=lambda cut: (cut.start - cut.end, cut.start))[:_MAX_CUTS]
    return sorted(largest, key=lambda cut: cut.start)


def _cut(span: Span, load: Segment, page: int) -> Iterator[Cut]:
    start, end = span
    if load.offset < start < end <= load.end:
        last = min(end, load.end - 1)
        if _aligned(start, page) < last // page * page:
            yield Cut(start, last)


def _split(segment: Segment, cuts: Iterable[Cut]) -> Iterator[Segment]:
    """The segment without the cuts inside it."""
    if segment.type == SegmentType.LOAD:
        for cut in cuts:
            if segment.offset < cut.start <= segment.end:
                yield replace(segment, stored=cut.start - segment.offset, loaded=cut.start - segment.offset)
                segment = _behind(segment, cut.end - segment.offset)
    yield segment


def _behind(segment: Segment, count: int) -> Segment:
    """The segment without its first bytes."""
    return replace(
        segment,
        offset=segment.offset + count,
        address=segment.address + count,
        physical=segment.physical + count,
        stored=segment.stored - count,
        loaded=segment.loaded - count,
    )


def _chunks(tables: Tables, loads: Iterable[Segment], dropped: Collection[int]) -> list[Chunk]:
    """What stays, by its place in the original."""
    found = [Chunk(load.offset, load.end, tables.page) for load in loads]
    others = [s for n, s in enumerate(tables.sections) if n not in dropped and s.size and s.type != SectionType.NOBITS]
    spans = [(*_span(s), s.alignment) for s in others if s.type != SectionType.NULL]
    mapped = tables.loads
    for start, end, alignment in [*spans, (0, HEADER_SIZE, 1)]:
        if not _is_mapped(mapped, (start, end)):
            found.append(Chunk(start, end, max(1, alignment)))
    found = sorted(set(found), key=lambda chunk: (chunk.start, chunk.end))
    for first, second in pairwise(found):
        if second.start < first.end:
            raise UnusualFileError("its segments or sections overlap in the file")
    return found


def _check_contents(segments: Iterable[Segment], chunks: Sequence[Chunk]) -> None:
    """Segments that describe others' bytes have to lie in one piece."""
    for segment in segments:
        if segment.type != SegmentType.LOAD and segment.stored:
            number = bisect_right(chunks, segment.offset, key=lambda chunk: chunk.start) - 1
            if number < 0 or segment.end > chunks[number].end:
                raise UnusualFileError("one of its segments is in no loaded one, or would be cut")


def _check_nothing_lost(data: memoryview, chunks: Iterable[Chunk], gone: Iterable[Span]) -> None:
    """Programs append archives to themselves; what lies between sections is what patchelf left of a moved one."""
    end = max(end for _, end in (*gone, *((chunk.start, chunk.end) for chunk in chunks)))
    if not is_zero(data[end:]):
        raise UnusualFileError("something is appended to it that no section describes")


def _places(chunks: Sequence[Chunk], gone: Iterable[Span]) -> list[int]:
    """The new offset of each chunk; those before anything that is gone stay where they are."""
    first_gone = min((start for start, end in gone if start < end), default=chunks[-1].end)
    places: list[int] = []
    end = 0
    for chunk in chunks:
        places.append(chunk.start if chunk.start <= first_gone else end + (chunk.start - end) % chunk.alignment)
        end = places[-1] + chunk.end - chunk.start
    return places


def _moved(segment: Segment, offset: int, page: int) -> Segment:
    """The segment at its new offset; one that no longer fits its alignment is aligned to pages."""
    fits = segment.type != SegmentType.LOAD or (offset - segment.address) % segment.alignment == 0
    return replace(segment, offset=offset, alignment=segment.alignment if fits else page)
