"""What a layer holds: its entries, each regular file with the digest and the first bytes of its content.

An index depends on nothing but the layer's bytes, so it is kept in the cache under the layer's diff id.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import zstandard

from slimgpu.errors import ImageError
from slimgpu.parallel import ordered_map
from slimgpu.rootfs.content import FileBytes
from slimgpu.rootfs.entry import MAGIC, Entry, Kind
from slimgpu.rootfs.tarread import TarReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

FORMAT: Final = "index-1"
"""Names the form and the meaning of `dump`; a change to either needs a new one."""

_BATCH: Final = 8 * 1024 * 1024
_WINDOW: Final = 16
MAX_ENTRIES: Final = 4_000_000
"""Each takes about 500 bytes of memory."""
_FREE_HOLES: Final = 1024**3
_MAX_HOLES: Final = 20 * 1024**3


def index_layer(tar: Path, what: str, executor: Executor) -> list[Entry]:
    """All entries of an uncompressed layer in their order.

    Raises `ImageError` naming ``what`` if it is malformed, or if its sparse files are a bomb: over 20 GiB of holes,
    or over 1 GiB that is also more than 200 times the layer.
    """
    with FileBytes(tar) as data:
        entries = list(islice(TarReader(data, what), MAX_ENTRIES + 1))
        if len(entries) > MAX_ENTRIES:
            raise ImageError(f"{what} has more than {MAX_ENTRIES} entries; split it into several layers")
        check_holes(sum(entry.size - entry.stored for entry in entries), len(data), what)
        hashed = ordered_map(executor, lambda batch: _hash_batch(data, batch), _batches(entries), _WINDOW)
        return [entry for batch in hashed for entry in batch]


def check_holes(holes: int, length: int, what: str) -> None:
    """Raise `ImageError` naming ``what``, a tar of ``length`` bytes, when its sparse files are a bomb."""
    if holes > _MAX_HOLES or holes > max(_FREE_HOLES, 200 * length):
        raise ImageError(f"{what} has sparse files with {holes} bytes of holes; write them out or leave them out")


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Runs of neighbours that are read in one go, or single large files."""
    batch: list[Entry] = []
    start = 0
    for entry in entries:
        if batch and entry.offset + entry.stored - start > _BATCH:
            yield batch
            batch = []
        if not batch:
            start = entry.offset
        batch.append(entry)
    if batch:
        yield batch


def _hash_batch(data: FileBytes, batch: Sequence[Entry]) -> list[Entry]:
    start, last = batch[0].offset, batch[-1]
    length = last.offset + last.stored - start
    if length > _BATCH:
        return [_hash_alone(data, entry) for entry in batch]
    run = memoryview(data.read(start, length))
    return [_hash_within(data, run, entry, entry.offset - start) for entry in batch]


def _hash_within(data: FileBytes, run: memoryview, entry: Entry, at: int) -> Entry:
    if entry.kind is not Kind.FILE or entry.extents is not None:
        return _hash_alone(data, entry)
    content = run[at : at + entry.size]
    return replace(entry, digest=_name(hashlib.sha256(content)), magic=bytes(content[:MAGIC]))


def _hash_alone(data: FileBytes, entry: Entry) -> Entry:
    if entry.kind is not Kind.FILE:
        return entry
    hasher = hashlib.sha256()
    magic = b""
    for piece in data.content(entry):
        hasher.update(piece)
        if len(magic) < MAGIC:
            magic = (magic + piece[:MAGIC])[:MAGIC]
    return replace(entry, digest=_name(hasher), magic=magic)


def _name(hasher: Any) -> str:
    return f"sha256:{hasher.hexdigest()}"


def dump(entries: Iterable[Entry]) -> bytes:
    """The index as bytes for the cache."""
    rows = [_to_row(entry) for entry in entries]
    return zstandard.compress(json.dumps(rows, separators=(",", ":")).encode(), 3)


def load(data: bytes) -> list[Entry]:
    """The index that `dump` wrote."""
    return [_from_row(row) for row in json.loads(zstandard.decompress(data))]


def _to_row(entry: Entry) -> list[Any]:
    xattrs = [[name, base64.b64encode(value).decode()] for name, value in entry.xattrs]
    return [
        *(entry.path, entry.kind.value, entry.mode, entry.uid, entry.gid, entry.uname, entry.gname),
        *(entry.size, entry.mtime, entry.link, entry.device, xattrs, entry.offset, entry.extents),
        *(entry.digest, entry.magic.hex()),
    ]


_KINDS: Final = {kind.value: kind for kind in Kind}


def _from_row(row: Sequence[Any]) -> Entry:
    path, kind, mode, uid, gid, uname, gname, size, mtime, link, device, xattrs, offset, extents, *rest = row
    return Entry(
        *(path, _KINDS[kind], mode, uid, gid, uname, gname, size, mtime, link),
        device=(device[0], device[1]),
        xattrs=tuple((name, base64.b64decode(value)) for name, value in xattrs),
        offset=offset,
        extents=None if extents is None else tuple((start, length) for start, length in extents),
        digest=rest[0],
        magic=bytes.fromhex(rest[1]),
    )
