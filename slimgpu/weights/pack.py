"""Packing files to a weights artifact: cut, encode, and write blobs, with every core."""

from __future__ import annotations

import hashlib
import posixpath
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from slimgpu.oci.image import Artifact, Blob
from slimgpu.oci.mutate import compose_artifact
from slimgpu.parallel import Workers, ordered_map
from slimgpu.weights.blobs import BlobWriter, blob_writer
from slimgpu.weights.codec import Encoded, encode
from slimgpu.weights.cut import PIECE, Cut, cut
from slimgpu.weights.digests import sha256, tensor_digest, values_digest
from slimgpu.weights.formats import read_tensors
from slimgpu.weights.formats.onnx import external_data
from slimgpu.weights.formats.tensor import Tensor
from slimgpu.weights.index import ARTIFACT_TYPE, SCHEMA, Chunk, File, Index, Link, TensorEntry
from slimgpu.weights.index import Blob as BlobEntry
from slimgpu.weights.order import rank
from slimgpu.weights.sources import Reader, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from slimgpu.oci.manifest import Descriptor
    from slimgpu.progress import Task
    from slimgpu.store.context import Context

_HASHED: Final = 16 * 1024 * 1024
_AHEAD: Final = 2
"""Chunks under way for each worker."""


@dataclass(frozen=True, slots=True)
class Base:
    """An artifact of the destination, whose chunks need not be stored again."""

    index: Index
    blobs: Sequence[Blob]


@dataclass(frozen=True, slots=True)
class Packed:
    """What packing gave; the artifact's new blobs lie in the folder that was named."""

    artifact: Artifact
    index: Index
    stored: int
    """Bytes of new blobs."""


@dataclass(frozen=True, slots=True)
class _Input:
    source: Source
    reader: Reader
    tensors: Sequence[Tensor]
    cuts: Sequence[Cut]


@dataclass(frozen=True, slots=True)
class _Work:
    """One chunk to be made: number ``cut`` of file number ``file``."""

    file: int
    cut: int


@dataclass(frozen=True, slots=True)
class _Made:
    work: _Work
    raw: str
    size: int
    digest: str
    encoded: Encoded
    tensors: Mapping[int, str]
    """Digests of tensors that are whole in the chunk, by offset in the file."""


def pack(  # noqa: PLR0913 - the parts of an artifact
    sources: Sequence[Source],
    links: Sequence[Link],
    folder: Path,
    context: Context,
    *,
    bases: Sequence[Base] = (),
    finish: Callable[[Blob], None] = lambda _: None,
    artifact_type: str = ARTIFACT_TYPE,
    annotations: Mapping[str, str] | None = None,
    subject: Descriptor | None = None,
) -> Packed:
    """Pack ``sources`` and ``links``; new blobs go to ``folder/sha256/<hex>``, and each to ``finish`` once complete.

    The same files give the same artifact on every machine and with any number of workers. Raises `ImageError` for a
    weights file that breaks its format.
    """
    with ExitStack() as stack:
        readers = [stack.enter_context(source.open()) for source in sources]
        inputs = _inputs(sources, readers)
        task = stack.enter_context(context.progress.task("packing", sum(one.reader.size for one in inputs)))
        writer = stack.enter_context(blob_writer(folder, finish))
        workers = stack.enter_context(Workers(context.jobs, "pack"))
        packer = _Packer(inputs, writer, bases)
        packer.run(workers, workers.watch(task), _AHEAD * context.jobs)
    index = packer.index(links)
    name = ", ".join(source.path for source in sources[:3])
    artifact = compose_artifact(
        name, artifact_type, index.dump(), packer.blobs(), subject=subject, annotations=annotations
    )
    return Packed(artifact, index, sum(future.result().descriptor.size for future in writer.finished))


def _inputs(sources: Sequence[Source], readers: Sequence[Reader]) -> list[_Input]:
    outside = dict(_outside(sources, readers))
    inputs = []
    for source, reader in zip(sources, readers, strict=True):
        tensors: Sequence[Tensor] | None = read_tensors(source.path, reader)
        if tensors is None:
            named = outside.get(source.path, ())
            tensors = named if all(each.offset + each.size <= reader.size for each in named) else ()
        inputs.append(_Input(source, reader, tensors, cut(reader.size, tensors)))
    return inputs


def _outside(sources: Sequence[Source], readers: Sequence[Reader]) -> Iterator[tuple[str, Sequence[Tensor]]]:
    """Paths of files in which ONNX models keep tensors, and those tensors."""
    for source, reader in zip(sources, readers, strict=True):
        if source.path.endswith(".onnx"):
            for external in external_data(source.path, reader):
                path = posixpath.join(posixpath.dirname(source.path), external.location)
                yield posixpath.normpath(path), external.tensors


class _Packer:
    def __init__(self, inputs: Sequence[_Input], writer: BlobWriter, bases: Sequence[Base]) -> None:
        self._inputs = inputs
        self._writer = writer
        self._known = {chunk.digest: (blob, chunk) for base in bases for blob, chunk in _there(base)}
        self._base_blobs: dict[str, Blob] = {}
        self._chunks: list[tuple[str | int, Chunk]] = []
        """With the digest of a base's blob, or the number of one of our own."""
        self._numbers: dict[str, int] = {}
        self._files = [[0] * len(one.cuts) for one in inputs]
        self._small: dict[tuple[int, int], str] = {}
        self._digests: list[Future[str]] = []

    def run(self, workers: Workers, task: Task, window: int) -> None:
        """Make all chunks, in load order."""
        works = [_Work(file, number) for file, one in enumerate(self._inputs) for number in range(len(one.cuts))]
        works.sort(key=lambda work: (self._inputs[work.file].cuts[work.cut].rank, work.file, work.cut))
        self._digests = [workers.submit(_digest, one.reader) for one in self._inputs]
        for made in ordered_map(workers, self._make, works, window):
            self._place(made)
            task.advance(made.size)
        self._writer.close()
        for digest in self._digests:
            digest.result()

    def _make(self, work: _Work) -> _Made:
        one = self._inputs[work.file]
        piece = one.cuts[work.cut]
        data = memoryview(one.reader.read(piece.offset, piece.size))
        raw = sha256(data)
        encoded = encode(data, piece.dtype)
        digest = sha256(encoded.data)
        small = _small_tensors(one, piece, data) if piece.whole else {}
        return _Made(work, raw, piece.size, digest, encoded, small)

    def _place(self, made: _Made) -> None:
        number = self._numbers.get(made.raw)
        if number is None:
            number = self._numbers[made.raw] = len(self._chunks)
            self._chunks.append(self._store(made))
        self._files[made.work.file][made.work.cut] = number
        self._small |= {(made.work.file, offset): digest for offset, digest in made.tensors.items()}

    def _store(self, made: _Made) -> tuple[str | int, Chunk]:
        encoded, size = made.encoded, len(made.encoded.data)
        chunk = Chunk(0, 0, size, made.size, encoded.transform, encoded.packed, made.digest, made.raw)
        blob, known = self._known.get(made.digest, (None, None))
        # What a base says of the bytes that it stores is not believed: they are the ones that we would store.
        if blob is None or known is None or replace(known, blob=0, offset=0, raw=made.raw) != chunk:
            number, offset = self._writer.append(encoded.data)
            return number, replace(chunk, offset=offset)
        self._base_blobs[blob.descriptor.digest] = blob
        return blob.descriptor.digest, replace(known, raw=made.raw)

    def blobs(self) -> list[Blob]:
        """All blobs that the chunks lie in: new ones, then those of bases."""
        return [*(future.result() for future in self._writer.finished), *self._base_blobs.values()]

    def index(self, links: Sequence[Link]) -> Index:
        """The index of what was made."""
        blobs = [BlobEntry(blob.descriptor.digest, blob.descriptor.size) for blob in self.blobs()]
        numbers: dict[str | int, int] = {blob.digest: number for number, blob in enumerate(blobs)}
        chunks = [
            replace(chunk, blob=numbers[place] if isinstance(place, str) else place) for place, chunk in self._chunks
        ]
        tensors = [tensor for file in range(len(self._inputs)) for tensor in self._tensors(file, chunks)]
        tensors.sort(key=lambda tensor: (rank(tensor.name), tensor.file, tensor.offset))
        files = [
            File(one.source.path, one.reader.size, digest.result(), tuple(numbers_), executable=one.source.executable)
            for one, digest, numbers_ in zip(self._inputs, self._digests, self._files, strict=True)
        ]
        return Index(
            SCHEMA, values_digest(tensors), tuple(blobs), tuple(chunks), tuple(files), tuple(links), tuple(tensors)
        )

    def _tensors(self, file: int, chunks: Sequence[Chunk]) -> list[TensorEntry]:
        one = self._inputs[file]
        pieces = {piece.offset: chunks[number].raw for piece, number in zip(one.cuts, self._files[file], strict=True)}
        found = []
        for tensor in one.tensors:
            offsets = range(tensor.offset, tensor.offset + tensor.size, PIECE)
            digest = self._small.get((file, tensor.offset)) if tensor.size else None
            digest = digest or tensor_digest(pieces[offset] for offset in offsets)
            found.append(TensorEntry(tensor.name, tensor.dtype, tensor.shape, file, tensor.offset, tensor.size, digest))
        return found


def _there(base: Base) -> Iterator[tuple[Blob, Chunk]]:
    """The chunks whose blob the base really has, with it."""
    blobs = {blob.descriptor.digest: blob for blob in base.blobs}
    for chunk in base.index.chunks:
        blob = blobs.get(base.index.blobs[chunk.blob].digest)
        if blob is not None:
            yield blob, chunk


def _small_tensors(one: _Input, piece: Cut, data: memoryview) -> dict[int, str]:
    first = bisect_left(one.tensors, piece.offset, key=lambda tensor: tensor.offset)
    last = bisect_left(one.tensors, piece.offset + piece.size, key=lambda tensor: tensor.offset)
    found = {}
    for tensor in one.tensors[first:last]:
        start = tensor.offset - piece.offset
        if tensor.size:
            found[tensor.offset] = tensor_digest([sha256(data[start : start + tensor.size])])
    return found


def _digest(reader: Reader) -> str:
    hasher = hashlib.sha256()
    for at in range(0, reader.size, _HASHED):
        hasher.update(reader.read(at, min(_HASHED, reader.size - at)))
    return f"sha256:{hasher.hexdigest()}"
