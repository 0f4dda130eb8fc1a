"""Results of commands on weights as tables that fit 100 columns."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Final

from rich.text import Text

from slimgpu.report.drawing import new_table, safe_text
from slimgpu.units import format_size, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from slimgpu.weights.results import (
        DtypeTotal,
        ListedFile,
        ListedTensor,
        Listing,
        LoadResult,
        PackResult,
        TransformTotal,
        VerifyResult,
    )

_SHORT: Final = 20
_NUMBER: Final = re.compile(r"(?<![^./_])\d+(?![^./_])")
_SCALES: Final = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k"))
_DIGEST: Final = 19
"""Characters of a digest on the screen."""


def pack_tables(result: PackResult) -> Iterator[RenderableType]:
    """What was packed, and how well."""
    tables = [_dtypes(result.dtypes)] if result.dtypes else []
    tables += [_transforms(result.transforms)] if result.transforms else []
    for table in tables[:1]:
        table.title = str(table.title).lstrip("\n")
    yield from tables
    gap = "\n" if tables else ""
    rate = result.bytes / result.seconds if result.seconds else 0
    yield Text(
        f"{gap}{_number(result.files, 'file')} with {_number(result.tensors, 'tensor')}: "
        f"{format_size(result.bytes)} stored as "
        f"{format_size(result.stored)}{_ratio(result.stored, result.bytes)}, {format_size(result.new)} of it new, "
        f"in {result.seconds:.1f} s ({format_size(int(rate))}/s)\n{printable(result.reference)}"
    )


def list_tables(listing: Listing, *, show_all: bool) -> Iterator[RenderableType]:
    """An artifact on one screen, or all of it."""
    yield Text.assemble(
        (printable(listing.reference), "bold"),
        f"\n{listing.digest}\nvalues {listing.values}\n"
        f"{_number(len(listing.files), 'file')}, {_number(len(listing.tensors), 'tensor')}, "
        f"{format_size(listing.bytes)} stored as "
        f"{format_size(listing.stored)}{_ratio(listing.stored, listing.bytes)}, "
        f"index {printable(listing.index_version)}",
    )
    for name, value in sorted(listing.annotations.items()):
        yield safe_text(f"{name}: {value}")
    yield _files(listing.files, None if show_all else _SHORT)
    for link in listing.links if show_all else ():
        yield safe_text(f"{link.path} -> {link.target}")
    if listing.tensors:
        yield _dtypes(listing.dtypes)
        yield _tensors(listing.tensors) if show_all else _groups(listing.tensors)
    yield _transforms(listing.transforms)
    yield _blobs(listing)
    if not show_all:
        yield Text("--all shows every file and tensor; --json has all digests.", style="dim")


def verify_tables(result: VerifyResult) -> Iterator[RenderableType]:
    """That all is well."""
    what = printable(result.directory) if result.directory else _number(result.chunks, "chunk")
    yield Text(
        f"{what}: {_number(result.files, 'file')}, {_number(result.tensors, 'tensor')}, "
        f"{format_size(result.bytes)} are what was packed ({result.seconds:.1f} s)"
    )


def load_tables(result: LoadResult) -> Iterator[RenderableType]:
    """How fast it went."""
    rate = format_size(int(result.bytes / result.seconds)) if result.seconds else "?"
    yield Text(
        f"{_number(result.tensors, 'tensor')}, {format_size(result.bytes)} to {printable(result.device)} in "
        f"{result.seconds:.2f} s ({rate}/s), the first after {result.first:.2f} s"
    )
    if result.values:
        yield Text(f"values {result.values}, as the index says")


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _ratio(stored: int, size: int) -> str:
    return f" ({100 * stored / size:.1f} %)" if size else ""


def _dtypes(totals: Sequence[DtypeTotal]) -> Table:
    table = new_table("Tensors by type", "type", "tensors>", "parameters>", "bytes>", "stored>", "ratio")
    for total in totals:
        ratio = f"{total.stored / total.bytes:.3f}" if total.bytes else ""
        table.add_row(
            safe_text(total.dtype),
            str(total.tensors),
            _count(total.parameters),
            format_size(total.bytes),
            format_size(total.stored),
            ratio,
        )
    return table


def _count(number: int) -> str:
    for size, letter in _SCALES:
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return str(number)


def _transforms(totals: Sequence[TransformTotal]) -> Table:
    table = new_table("Chunks by how they are stored", "chunks>", "bytes>", "stored>", "ratio>", "transform")
    for total in totals:
        ratio = f"{total.stored / total.bytes:.3f}" if total.bytes else ""
        sizes = (format_size(total.bytes), format_size(total.stored))
        table.add_row(str(total.chunks), *sizes, ratio, safe_text(total.transform))
    return table


def _files(files: Sequence[ListedFile], limit: int | None) -> Table:
    table = new_table("Files", "bytes>", "sha256", "path")
    for file in files[:limit]:
        digest = file.digest if limit is None else file.digest[:_DIGEST]
        table.add_row(format_size(file.bytes), digest.removeprefix("sha256:"), safe_text(file.path))
    if limit is not None and len(files) > limit:
        table.add_row("", "", f"and {len(files) - limit} more")
    return table


def _tensors(tensors: Sequence[ListedTensor]) -> Table:
    table = new_table("Tensors", "bytes>", "type", "shape", "name")
    for tensor in tensors:
        table.add_row(format_size(tensor.bytes), safe_text(tensor.dtype), _shape(tensor.shape), safe_text(tensor.name))
    return table


def _groups(tensors: Sequence[ListedTensor]) -> Table:
    """Tensors that differ in numbers of layers and experts only are one line."""
    counts: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
    sizes: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
    for tensor in tensors:
        kind = (_NUMBER.sub("*", tensor.name), tensor.dtype, tensor.shape)
        counts[kind] += 1
        sizes[kind] += tensor.bytes
    table = new_table("Tensors", "count>", "bytes>", "type", "shape", "name")
    for kind in list(counts)[:_SHORT]:
        name, dtype, shape = kind
        table.add_row(str(counts[kind]), format_size(sizes[kind]), safe_text(dtype), _shape(shape), safe_text(name))
    if len(counts) > _SHORT:
        table.add_row("", "", "", "", f"and {len(counts) - _SHORT} more kinds")
    return table


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _blobs(listing: Listing) -> Table:
    table = new_table("Blobs", "chunks>", "bytes>", "digest")
    for blob in listing.blobs[:_SHORT]:
        table.add_row(str(blob.chunks), format_size(blob.bytes), blob.digest)
    if len(listing.blobs) > _SHORT:
        table.add_row("", "", f"and {len(listing.blobs) - _SHORT} more")
    return table
