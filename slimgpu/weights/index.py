"""The index of a weights artifact: which files it holds, where their tensors lie, and which chunks make them up.

A file is the concatenation of its chunks, whatever is in it, so that what comes out is what went in, bit for bit. A
tensor is a part of a file. Chunks are listed in load order (embeddings, layers from the first to the last, heads),
and lie in the blobs in that order. The document is the artifact's configuration: JSON, zstd-compressed when large.
"""

from __future__ import annotations

import posixpath
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, dropwhile, pairwise
from typing import TYPE_CHECKING, Annotated, Final, Literal

import zstandard
from pydantic import FailFast, Field, TypeAdapter, ValidationError

from slimgpu.errors import ImageError
from slimgpu.oci.digest import Digest
from slimgpu.weights.transforms import TRANSFORMS, is_known

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

SCHEMA: Final = "slimgpu.weights.v1"
ARTIFACT_TYPE: Final = "application/vnd.slimgpu.weights.v1"
CACHE_TYPE: Final = "application/vnd.slimgpu.cache.v1"
"""The same for what compilers left behind, instead of weights."""
INDEX_TYPE: Final = "application/vnd.slimgpu.weights.index.v1+json"
ZSTD_INDEX_TYPE: Final = INDEX_TYPE + "+zstd"
CHUNKS_TYPE: Final = "application/vnd.slimgpu.weights.chunks.v1"
MAX_CHUNK: Final = 64 * 1024 * 1024
"""Bytes of a raw chunk that a reader makes room for; ours have about 4 MiB."""
MAX_INDEX: Final = 256 * 1024 * 1024
"""Bytes of JSON; chunks of a terabyte take about 100 MiB."""
_MAX_COMMAS: Final = 16_000_000
"""In the JSON: a file that names one chunk again and again takes 40 times its text in memory, and ours has 30 bytes a
comma."""
_OVERLAPS: Final = 8
"""Times that a chunk may be a part of a tensor, on average: ours don't overlap, and every part takes time."""
_COMPRESS_FROM: Final = 64 * 1024
_LEVEL: Final = 9
_PAGE: Final = 4096
_EACH: Final = FailFast()
"""One error is told; remembering those of millions of entries would take gigabytes."""

Size = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True, slots=True)
class Blob:
    """A layer of the artifact, in which chunks lie."""

    digest: Digest
    size: Size


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a file, as it is stored (`slimgpu.weights.codec`)."""

    blob: Size
    """Number of its blob."""
    offset: Size
    """Of its first byte in the blob."""
    stored: Size
    """Bytes in the blob."""
    size: Annotated[int, Field(gt=0, le=MAX_CHUNK)]
    """Bytes in the file."""
    transform: str
    packed: Size
    digest: Digest
    """Of the stored bytes."""
    raw: Digest
    """Of the file's bytes."""


@dataclass(frozen=True, slots=True)
class File:
    """A file that was packed; its content is its chunks', one after another."""

    path: str
    """Relative, with ``/``."""
    size: Size
    digest: Digest
    chunks: Annotated[tuple[Size, ...], _EACH]
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link that was packed."""

    path: str
    target: str


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor in a file."""

    name: str
    dtype: str
    """safetensors' name (``BF16``), or a block type's of GGUF (``Q4_K``)."""
    shape: Annotated[tuple[Size, ...], _EACH]
    file: Size
    """Number of its file."""
    offset: Size
    """Of its first byte in the file."""
    size: Size
    digest: Digest
    """sha256 over the sha256 digests (32 bytes each) of its pieces of 4 MiB: one value, however it was packed."""


@dataclass(frozen=True, slots=True)
class Part:
    """The bytes of a tensor that one chunk holds."""

    chunk: int
    place: int
    """Where the chunk's content begins in the buffer of all files."""
    skip: int
    """Bytes of the chunk before them."""
    into: int
    """Bytes of the tensor before them."""
    length: int


@dataclass(frozen=True)
class Index:
    """The whole document."""

    schema_version: Annotated[Literal["slimgpu.weights.v1"], Field(alias="schema")]
    values: Digest
    """sha256 over all tensors' names, types, shapes and digests, which doesn't depend on files or packing."""
    blobs: Annotated[tuple[Blob, ...], _EACH]
    chunks: Annotated[tuple[Chunk, ...], _EACH]
    files: Annotated[tuple[File, ...], _EACH]
    links: Annotated[tuple[Link, ...], _EACH] = field(default=())
    tensors: Annotated[tuple[TensorEntry, ...], _EACH] = field(default=())
    """In load order."""

    @cached_property
    def bases(self) -> Sequence[int]:
        """Where each file begins when all of them lie in one buffer, each on a page of its own."""
        ends = accumulate(-(-file.size // _PAGE) * _PAGE for file in self.files)
        return [0, *ends]

    @cached_property
    def total(self) -> int:
        """Bytes of that buffer."""
        return self.bases[-1]

    @cached_property
    def places(self) -> Sequence[Sequence[int]]:
        """For each chunk, where in the buffer its content belongs: once for each time that a file holds it."""
        found: list[list[int]] = [[] for _ in self.chunks]
        for file, base in zip(self.files, self.bases, strict=False):
            at = base
            for number in file.chunks:
                found[number].append(at)
                at += self.chunks[number].size
        return found

    @cached_property
    def _starts(self) -> Sequence[Sequence[int]]:
        return [[0, *accumulate(self.chunks[number].size for number in file.chunks)] for file in self.files]

    def count_parts(self, tensor: TensorEntry) -> int:
        """How many `parts` gives, without making them."""
        starts = self._starts[tensor.file]
        first = bisect_right(starts, tensor.offset) - 1
        return bisect_left(starts, tensor.offset + tensor.size) - first if tensor.size else 0

    def parts(self, tensor: TensorEntry) -> Iterator[Part]:
        """The tensor's bytes chunk by chunk."""
        if not tensor.size:
            return
        starts = self._starts[tensor.file]
        base, end = self.bases[tensor.file], tensor.offset + tensor.size
        position = bisect_right(starts, tensor.offset) - 1
        while position < len(starts) - 1 and starts[position] < end:
            number = self.files[tensor.file].chunks[position]
            first, last = max(starts[position], tensor.offset), min(starts[position + 1], end)
            yield Part(number, base + starts[position], first - starts[position], first - tensor.offset, last - first)
            position += 1

    def describe(self, chunk: int) -> str:
        """A chunk for a message: its number, and the first tensor or file that it is of."""
        for tensor in self.tensors:
            if any(part.chunk == chunk for part in self.parts(tensor)):
                return f"chunk {chunk} (of {tensor.name} in {self.files[tensor.file].path})"
        paths = (f" (of {file.path})" for file in self.files if chunk in file.chunks)
        return f"chunk {chunk}{next(paths, '')}"

    def dump(self) -> tuple[str, bytes]:
        """Media type and bytes, always the same for the same value."""
        data = _ADAPTER.dump_json(self, by_alias=True, exclude_defaults=True)
        if len(data) < _COMPRESS_FROM:
            return INDEX_TYPE, data
        return ZSTD_INDEX_TYPE, zstandard.ZstdCompressor(level=_LEVEL).compress(data)


_ADAPTER: Final[TypeAdapter[Index]] = TypeAdapter(Index)


def parse_index(media_type: str, data: bytes, what: str) -> Index:
    """The index in ``data``; `ImageError` naming ``what`` and the first thing wrong with it."""
    if media_type == ZSTD_INDEX_TYPE:
        data = _inflate(data, what)
    elif media_type != INDEX_TYPE:
        raise ImageError(f"{what} is no weights artifact: its configuration is of type {media_type}")
    if data.count(b",") > _MAX_COMMAS:
        raise ImageError(f"the index of {what} has more values than any model needs; pack the weights in parts")
    try:
        index = _ADAPTER.validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        if where == "schema":
            raise ImageError(f"{what} is written in another version than {SCHEMA}; use a newer slimgpu") from error
        raise ImageError(f"the index of {what} is not valid: {where}: {first['msg']}") from error
    for complaint in _complaints(index):
        raise ImageError(f"the index of {what} is not valid: {complaint}")
    return index


def _inflate(data: bytes, what: str) -> bytes:
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= MAX_INDEX:
            raise ImageError(f"the index of {what} claims {size} bytes; {MAX_INDEX} are the most that is read")
        return zstandard.ZstdDecompressor().decompress(data)
    except zstandard.ZstdError as error:
        raise ImageError(f"the index of {what} cannot be decompressed ({error}); push the artifact again") from error


def _complaints(index: Index) -> Iterator[str]:
    """What no index may do, beyond what its types say."""
    yield from _chunk_complaints(index)
    yield from _file_complaints(index)
    yield from _name_complaints([file.path for file in index.files] + [link.path for link in index.links])
    for link in index.links:
        if not leads_inside(link.path, link.target):
            yield f"the link {link.path!r} leads out of the artifact"
    for tensor in index.tensors:
        if tensor.file >= len(index.files) or tensor.offset + tensor.size > index.files[tensor.file].size:
            yield f"the tensor {tensor.name!r} lies outside of its file"
    parts = sum(map(index.count_parts, index.tensors))
    if parts > _OVERLAPS * (len(index.tensors) + sum(len(file.chunks) for file in index.files)):
        yield f"its tensors overlap so much that they have {parts} parts"


def _chunk_complaints(index: Index) -> Iterator[str]:
    places = []
    for number, chunk in enumerate(index.chunks):
        if chunk.blob >= len(index.blobs) or chunk.offset + chunk.stored > index.blobs[chunk.blob].size:
            yield f"chunk {number} lies outside of its blob"
        if chunk.stored > chunk.size:
            yield f"chunk {number} is stored in more bytes than it has"
        if not is_known(chunk.transform, chunk.packed):
            yield f"chunk {number} has the unknown transform {chunk.transform!r} ({chunk.packed}); use a newer slimgpu"
        elif chunk.transform in TRANSFORMS and chunk.size % TRANSFORMS[chunk.transform].width:
            yield f"chunk {number} has {chunk.size} bytes, which are no numbers of {chunk.transform}"
        places.append((chunk.blob, chunk.offset, chunk.offset + chunk.stored))
    places.sort()
    for (blob, _, end), (next_blob, start, _) in pairwise(places):
        if blob == next_blob and start < end:
            yield f"two chunks overlap in blob {blob}"


def _file_complaints(index: Index) -> Iterator[str]:
    for file in index.files:
        if any(number >= len(index.chunks) for number in file.chunks):
            yield f"{file.path!r} names a chunk that is not there"
        elif sum(index.chunks[number].size for number in file.chunks) != file.size:
            yield f"{file.path!r} has {file.size} bytes, but not its chunks"


def _name_complaints(names: Sequence[str]) -> Iterator[str]:
    known = set(names)
    if len(known) != len(names):
        yield "two files have the same path"
    for name in names:
        if not is_safe(name):
            yield f"{name!r} is not a path inside the artifact"
        elif (above := occupied_above(name, known)) is not None:
            yield f"{name!r} lies below {above!r}, which is no directory"


def occupied_above(path: str, known: Container[str]) -> str | None:
    """Which of the ``known`` files and links is in the way of the directories that ``path`` lies in."""
    at = path.find("/")
    while at >= 0:
        if path[:at] in known:
            return path[:at]
        at = path.find("/", at + 1)
    return None


def leads_inside(path: str, target: str) -> bool:
    """Whether the link ``path`` stays in the artifact, even when names in its target are links themselves."""
    down = dropwhile("..".__eq__, target.split("/"))
    return (
        bool(target)
        and ".." not in down
        and is_safe(posixpath.normpath(posixpath.join(posixpath.dirname(path), target)))
    )


def is_safe(path: str) -> bool:
    """Whether a relative path stays where it is put."""
    parts = path.split("/")
    return bool(path) and "\0" not in path and not any(part in ("", ".", "..") for part in parts)
