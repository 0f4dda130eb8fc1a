"""What commands on weights come to, for reports; nothing here reads or writes anything."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.weights.index import Index

PACK_SCHEMA: Final = "slimgpu.weights.pack.v1"
LIST_SCHEMA: Final = "slimgpu.weights.list.v1"
VERIFY_SCHEMA: Final = "slimgpu.weights.verify.v1"
LOAD_SCHEMA: Final = "slimgpu.weights.load.v1"
PULL_SCHEMA: Final = "slimgpu.weights.pull.v1"
PUSH_SCHEMA: Final = "slimgpu.weights.push.v1"
PREFETCH_SCHEMA: Final = "slimgpu.prefetch.v1"
DROP_SCHEMA: Final = "slimgpu.prefetch.drop.v1"


@dataclass(frozen=True, slots=True)
class DtypeTotal:
    """The tensors of one type; a tensor that several files hold counts once."""

    dtype: str
    tensors: int
    parameters: int
    bytes: int
    stored: int


@dataclass(frozen=True, slots=True)
class TransformTotal:
    """The chunks that are stored in one way."""

    transform: str
    chunks: int
    bytes: int
    stored: int


@dataclass(frozen=True, slots=True)
class PackResult:
    """What packing came to."""

    schema: str
    reference: str
    digest: str
    artifact_type: str
    annotations: dict[str, str]
    values: str
    files: int
    tensors: int
    bytes: int
    """Of all files."""
    stored: int
    """Of all chunks, each once."""
    new: int
    """Bytes of blobs that the destination had to take, since no base has them."""
    dtypes: tuple[DtypeTotal, ...]
    transforms: tuple[TransformTotal, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class ListedTensor:
    """A tensor of the artifact."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    file: str
    digest: str


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file of the artifact."""

    path: str
    bytes: int
    digest: str
    executable: bool


@dataclass(frozen=True, slots=True)
class ListedLink:
    """A symbolic link of the artifact."""

    path: str
    target: str


@dataclass(frozen=True, slots=True)
class ListedBlob:
    """A blob of the artifact."""

    digest: str
    bytes: int
    chunks: int


@dataclass(frozen=True, slots=True)
class Listing:
    """All that an artifact holds."""

    schema: str
    reference: str
    digest: str
    artifact_type: str
    annotations: dict[str, str]
    index_version: str
    values: str
    bytes: int
    stored: int
    files: tuple[ListedFile, ...]
    links: tuple[ListedLink, ...]
    dtypes: tuple[DtypeTotal, ...]
    transforms: tuple[TransformTotal, ...]
    blobs: tuple[ListedBlob, ...]
    tensors: tuple[ListedTensor, ...]
    """In load order."""


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What was found to be right."""

    schema: str
    reference: str
    digest: str
    directory: str | None
    """The written tree that was compared; None when the artifact's own bytes were checked."""
    values: str
    files: int
    tensors: int
    chunks: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What loading came to."""

    schema: str
    reference: str
    device: str
    tensors: int
    bytes: int
    first: float
    """Seconds until the first tensor was there."""
    seconds: float
    values: str | None
    """The digest of the tensors as they were delivered; None unless asked for."""


@dataclass(frozen=True, slots=True)
class PullResult:
    """What writing the packed files came to."""

    schema: str
    reference: str
    """The artifact's, also where an image or a cache's key led to it."""
    digest: str
    directory: str
    files: int
    bytes: int
    """Of all files, those included that the directory had already."""
    fetched: int
    """Stored bytes that this took, less than the artifact's where something was there already."""
    seconds: float


@dataclass(frozen=True, slots=True)
class PushResult:
    """What copying an artifact came to."""

    schema: str
    source: str
    destination: str
    digest: str
    bytes: int
    """Of all blobs, those included that the destination had already."""
    seconds: float


@dataclass(frozen=True, slots=True)
class PrefetchResult:
    """What is in this machine's memory now, or on its disk."""

    schema: str
    reference: str
    index: str
    """The digest of the artifact's index, by which programs find what was fetched."""
    folder: str
    on_disk: bool
    """Whether memory had no room for it."""
    bytes: int
    """Of all files, once decoded."""
    fetched: int
    """Stored bytes that this brought, or waited for."""
    seconds: float


@dataclass(frozen=True, slots=True)
class DropResult:
    """What an earlier prefetch kept and no longer does."""

    schema: str
    reference: str
    bytes: int
    """What it took, of memory or disk; 0 when nothing was there."""
    used: bool
    """Whether a process has it open; it goes when that one ends."""


def dtype_totals(index: Index) -> tuple[DtypeTotal, ...]:
    """Tensors by type, the largest type first."""
    shares = _shares(index)
    tensors: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    stored: dict[str, float] = {}
    seen: set[str] = set()
    for number, tensor in enumerate(index.tensors):
        stored[tensor.dtype] = stored.get(tensor.dtype, 0.0) + shares[number]
        if tensor.name not in seen:
            seen.add(tensor.name)
            tensors[tensor.dtype] += 1
            parameters[tensor.dtype] += prod(tensor.shape)
            sizes[tensor.dtype] += tensor.size
    found = (DtypeTotal(d, tensors[d], parameters[d], sizes[d], round(stored[d])) for d in tensors)
    return tuple(sorted(found, key=lambda total: (-total.bytes, total.dtype)))


def _shares(index: Index) -> list[float]:
    """For each tensor its share of the stored bytes; what several hold counts for the first."""
    taken: set[tuple[int, int]] = set()
    found = []
    for tensor in index.tensors:
        share = 0.0
        for part in index.parts(tensor):
            if (part.chunk, part.skip) not in taken:
                taken.add((part.chunk, part.skip))
                share += index.chunks[part.chunk].stored * part.length / index.chunks[part.chunk].size
        found.append(share)
    return found


def transform_totals(index: Index) -> tuple[TransformTotal, ...]:
    """Chunks by the way in which they are stored."""
    return tuple(sorted(_transforms(index), key=lambda total: (-total.bytes, total.transform)))


def _transforms(index: Index) -> Iterator[TransformTotal]:
    for name in {chunk.transform for chunk in index.chunks}:
        chunks = [chunk for chunk in index.chunks if chunk.transform == name]
        yield TransformTotal(
            name, len(chunks), sum(chunk.size for chunk in chunks), sum(chunk.stored for chunk in chunks)
        )
