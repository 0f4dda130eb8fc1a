"""One file made smaller: GPU code that no target can choose goes, and what only debuggers read."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slimgpu.elf import fatbin
from slimgpu.elf.choice import Policy
from slimgpu.elf.fatbin import Container
from slimgpu.elf.prune import Census, prune, read_items, scattered
from slimgpu.elf.rewrite import Rewriter
from slimgpu.elf.sections import code_sections, prune_sections, scattered_spans
from slimgpu.elf.strip import unneeded
from slimgpu.elf.tables import Tables, read_tables
from slimgpu.errors import ImageError, UnusualFileError
from slimgpu.rootfs.splice import Splice, SpliceBuilder
from slimgpu.store.files import atomic_file

if TYPE_CHECKING:
    from pathlib import Path


_WORTH: Final = 64 * 1024
"""So many bytes that become zeros are worth a file of the same size."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What may go."""

    policy: Policy | None = None
    """None: no GPU code."""
    symbols: bool = True
    """Whether symbol tables and debug information go."""


SYMBOLS_ONLY: Final = Wanted()
"""What goes for every GPU."""
NOTHING: Final = Wanted(symbols=False)
"""Only tells what GPU code there is."""


@dataclass(frozen=True, slots=True)
class Shrunk:
    """What became of a file; sizes in bytes."""

    before: int
    after: int
    splice: Splice | None = None
    """The new content; None when the file stays as it is."""
    symbols: int = 0
    """Of symbol tables and debug information that went."""
    method: str = ""
    """What happened to GPU code: ``packed``, or ``in place`` when not all of it could move. Programs are as long as
    before then, with zeros that compress well."""
    untouched: str = ""
    """Why a file that was to change did not."""
    code_before: tuple[tuple[str, int], ...] = ()
    """Bytes of GPU code by architecture (``sm_90a``, ``compute_80``, ...), sorted by name."""
    code_after: tuple[tuple[str, int], ...] = ()
    placeholders: int = 0
    """Containers of which only an empty entry stays."""
    scattered: int = 0
    """Bytes of GPU code in sections that are left alone."""
    missing: tuple[str, ...] = ()
    """Kernels for which only native code was wanted and there is none."""

    @property
    def code(self) -> int:
        """Bytes of GPU code that went."""
        return self.before - self.after - self.symbols


def shrink(data: memoryview, wanted: Wanted) -> Shrunk:
    """The file in ``data`` without what may go; a file that is unusual in any way stays and says why.

    The same bytes and the same wish give the same result everywhere.
    """
    census = Census()
    try:
        if data[: len(fatbin.START)] == fatbin.START:
            return _shrink_fatbin(data, wanted, census)
        return _shrink_elf(data, wanted, census)
    except UnusualFileError as error:
        return _result(data, census, untouched=str(error))


def _shrink_elf(data: memoryview, wanted: Wanted, census: Census) -> Shrunk:
    tables = read_tables(data)
    rewriter = Rewriter(data, tables)
    dropped = unneeded(tables) if wanted.symbols else set()
    rewriter.drop_sections(dropped)
    packed: tuple[bool, ...] = ()
    if wanted.policy is not None:
        packed = prune_sections(data, tables, wanted.policy, census, rewriter)
    else:
        for section in code_sections(tables):
            _count(data, section.offset, section.end, census)
    _count_scattered(data, tables, census)
    symbols = sum(tables.sections[number].end - tables.sections[number].offset for number in dropped)
    changed = census.before != census.after
    method = "" if not packed or not changed else "packed" if all(packed) else "in place"
    return _result(data, census, rewriter.finish(), symbols, method)


def _shrink_fatbin(data: memoryview, wanted: Wanted, census: Census) -> Shrunk:
    """A file of containers back to back."""
    if wanted.policy is None:
        _count(data, 0, len(data), census)
        return _result(data, census)
    out = SpliceBuilder()
    for item in read_items(data, 0, len(data)):
        if not isinstance(item, Container):
            raise UnusualFileError("it holds more than containers of GPU code")
        out.zeros(-out.size % fatbin.ALIGNMENT)
        for part in prune(data, item, wanted.policy, census).parts:
            out.add(part)
    return _result(data, census, out.finish(), 0, "packed" if census.before != census.after else "")


def _count(data: memoryview, start: int, end: int, census: Census) -> None:
    for item in read_items(data, start, end):
        if isinstance(item, Container):
            census.keep(item)


def _count_scattered(data: memoryview, tables: Tables, census: Census) -> None:
    """Note containers in other sections, which nothing is known of and which stay."""
    for start, end in scattered_spans(tables):
        for container in scattered(data, start, end):
            census.keep(container)
            census.scattered += container.size


def _result(
    data: memoryview,
    census: Census,
    splice: Splice | None = None,
    symbols: int = 0,
    method: str = "",
    untouched: str = "",
) -> Shrunk:
    """A result; a new content that holds as much as the old one is none."""
    missing = tuple(census.missing)
    before = tuple(sorted(census.before.items()))
    zeroed = (census.before.total() - census.after.total()) * bool(method)
    if splice is None or splice.size > len(data) or (splice.size == len(data) and zeroed < _WORTH):
        return Shrunk(
            len(data),
            len(data),
            untouched=untouched,
            code_before=before,
            code_after=before,
            scattered=census.scattered,
            missing=missing,
        )
    return Shrunk(
        before=len(data),
        after=splice.size,
        splice=splice,
        symbols=min(symbols, len(data) - splice.size) if method else len(data) - splice.size,
        method=method,
        code_before=before,
        code_after=tuple(sorted(census.after.items())),
        placeholders=census.placeholders,
        scattered=census.scattered,
        missing=missing,
    )


def shrink_file(source: Path, destination: Path, wanted: Wanted) -> Shrunk:
    """Write the shrunk form of a file; the same bytes when nothing may go.

    The mode is the original's. Raises `ImageError` when ``source`` is empty or no regular file.
    """
    if not source.is_file() or not source.stat().st_size:
        raise ImageError(f"{source} is no file with content; name a library or a fatbin file")
    with source.open("rb") as file:
        mode = source.stat().st_mode & 0o7777  # asked for now: the destination may be the source
        data = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    result = shrink(data, wanted)
    splice = result.splice or Splice(((0, len(data)),))
    with atomic_file(destination) as out:
        for piece in splice.content(lambda offset, size: data[offset : offset + size]):
            out.write(piece)
    destination.chmod(mode)
    return result
