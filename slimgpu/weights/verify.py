"""Checking an artifact, or the files written from it, against every digest of its index."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from slimgpu.errors import DigestError, ImageError, NotFoundError
from slimgpu.oci.digest import digest_bytes
from slimgpu.parallel import Workers, ordered_map
from slimgpu.weights.artifact import open_weights
from slimgpu.weights.cut import PIECE
from slimgpu.weights.digests import sha256, tensor_digest, values_digest
from slimgpu.weights.fetch import Fetcher
from slimgpu.weights.results import VERIFY_SCHEMA, VerifyResult

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slimgpu.oci.reference import Reference
    from slimgpu.progress import Task
    from slimgpu.store.context import Context
    from slimgpu.weights.artifact import Weights
    from slimgpu.weights.index import File, Index, Part, TensorEntry

_READ: Final = 1024 * 1024


def verify_artifact(weights: Weights, context: Context) -> None:
    """Fetch all chunks and check them as they are stored and as they were, all tensors, and all values.

    Raises `DigestError` naming the file or tensor and the chunk that is wrong first.
    """
    index = weights.index
    _check_blobs(weights)
    checker = _Checker(index)
    total = sum(chunk.stored for chunk in index.chunks)
    with context.progress.task("verifying", total) as task:
        Fetcher(index, [weights.source], checker, jobs=context.jobs).run(range(len(index.chunks)), task)
    for number, tensor in enumerate(index.tensors):
        if checker.digest(number) != tensor.digest:
            raise DigestError(_wrong_tensor(tensor, index))
    if values_digest(index.tensors) != index.values:
        raise DigestError(
            f"the tensors of {weights.artifact.name} do not have the digest {index.values} that the index names; "
            "pack the weights again"
        )


def _check_blobs(weights: Weights) -> None:
    """What only the index names, no registry keeps."""
    listed = {layer.digest: layer.size for layer in weights.artifact.manifest.layers}
    for blob in weights.index.blobs:
        if listed.get(blob.digest) != blob.size:
            raise ImageError(
                f"the manifest of {weights.artifact.name} does not list the blob {blob.digest} that the index names; "
                "pack the weights again"
            )


def _wrong_tensor(tensor: TensorEntry, index: Index) -> str:
    return (
        f"the tensor {tensor.name} in {index.files[tensor.file].path} does not have the digest {tensor.digest} that "
        "the index names, although its chunks do; pack the weights again"
    )


class _Checker:
    """Takes chunks, see `slimgpu.weights.fetch.Target`, and hashes the pieces of tensors in them."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._seen = [False] * len(index.chunks)
        self._parts: dict[int, list[tuple[int, Part]]] = defaultdict(list)
        self._pieces: list[list[str]] = []
        self._open: dict[tuple[int, int], _Piece] = {}
        self._lock = threading.Lock()
        for number, tensor in enumerate(index.tensors):
            self._pieces.append([""] * -(-tensor.size // PIECE))
            for part in index.parts(tensor):
                self._parts[part.chunk].append((number, part))

    def has(self, chunk: int) -> bool:
        """See `Target.has`."""
        return self._seen[chunk]

    def write(self, chunk: int, data: memoryview, state: int) -> None:
        """See `Target.write`."""
        del state
        raw = sha256(data)
        if raw != self._index.chunks[chunk].raw:
            raise DigestError(
                f"{self._index.describe(chunk)} does not decode to the bytes whose digest the index names; pack the "
                "weights again"
            )
        for number, part in self._parts[chunk]:
            for piece, at, inner in _pieces(part):
                found = data[part.skip + inner.start : part.skip + inner.stop]
                self._take(number, piece, at, found, raw if len(found) == len(data) else None)
        self._seen[chunk] = True

    def _take(self, number: int, piece: int, at: int, data: memoryview, raw: str | None) -> None:
        """Bytes of a piece from ``at`` on; ``raw`` is their digest where it is known."""
        length = min(PIECE, self._index.tensors[number].size - piece * PIECE)
        if len(data) == length:
            self._pieces[number][piece] = raw or sha256(data)
            return
        with self._lock:  # a piece of several chunks, which only other packers make
            pending = self._open.setdefault((number, piece), _Piece(length))
            if pending.take(at, data):
                self._pieces[number][piece] = sha256(bytes(pending.data))
                pending.data = bytearray()

    def digest(self, number: int) -> str:
        """The digest of a tensor, all of whose chunks have come."""
        return tensor_digest(self._pieces[number])


class _Piece:
    def __init__(self, length: int) -> None:
        self.data = bytearray(length)
        self._left = length
        self._taken: set[int] = set()

    def take(self, at: int, data: memoryview) -> bool:
        """Fill in bytes; whether these were the last. The same may come twice."""
        if at in self._taken:
            return False
        self._taken.add(at)
        self.data[at : at + len(data)] = data
        self._left -= len(data)
        return not self._left


def _pieces(part: Part) -> Iterator[tuple[int, int, slice]]:
    """The pieces of a tensor that a part touches: number, where in the piece it begins, and which of its bytes."""
    at, end = part.into, part.into + part.length
    while at < end:
        stop = min(end, (at // PIECE + 1) * PIECE)
        yield at // PIECE, at % PIECE, slice(at - part.into, stop - part.into)
        at = stop


def verify_tree(index: Index, root: Path, context: Context) -> None:
    """Compare the files in ``root`` with those that were packed.

    Raises `NotFoundError` for one that is missing and `DigestError` for one that differs, naming the first chunk that
    does.
    """
    total = sum(file.size for file in index.files)
    with context.progress.task("verifying files", total) as task, Workers(context.jobs, "verify") as workers:
        watched = workers.watch(task)
        for _ in ordered_map(workers, lambda file: _check_file(index, file, root, watched), index.files, context.jobs):
            pass
    for link in index.links:
        path = root / link.path
        if not path.is_symlink() or str(path.readlink()) != link.target:
            raise DigestError(f"{path} is no link to {link.target}; pull the weights to another directory")


def _check_file(index: Index, file: File, root: Path, task: Task) -> None:
    path = root / file.path
    hasher = hashlib.sha256()
    size = 0
    try:
        with path.open("rb", buffering=0) as content:
            while data := content.read(_READ):
                hasher.update(data)
                size += len(data)
                task.advance(len(data))
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read ({error.strerror}); pull the weights again") from error
    if (size, f"sha256:{hasher.hexdigest()}") != (file.size, file.digest):
        raise DigestError(f"{path} differs from what was packed {_where(index, file, path)}; pull the weights again")


def _where(index: Index, file: File, path: Path) -> str:
    """The first chunk of a file that is wrong."""
    at = 0
    with path.open("rb") as content:
        for number in file.chunks:
            chunk = index.chunks[number]
            if sha256(content.read(chunk.size)) != chunk.raw:
                return f"from byte {at} on, in {index.describe(number)}"
            at += chunk.size
    return f"behind its {file.size} bytes"


def verify(reference: Reference, directory: Path | None, context: Context) -> VerifyResult:
    """Check the artifact, or with ``directory`` the files that were written from it.

    Raises what `verify_artifact` and `verify_tree` raise, and `NotFoundError` for a directory that is not there.
    """
    began = time.monotonic()
    if directory is not None and not directory.is_dir():
        state = "is no directory" if directory.exists() else "does not exist"
        raise NotFoundError(f"{directory} {state}; name the directory that the weights were written to")
    with open_weights(reference, context) as weights:
        if directory is None:
            verify_artifact(weights, context)
        else:
            verify_tree(weights.index, directory, context)
    index = weights.index
    return VerifyResult(
        schema=VERIFY_SCHEMA,
        reference=str(reference),
        digest=digest_bytes(weights.artifact.raw_manifest),
        directory=None if directory is None else str(directory),
        values=index.values,
        files=len(index.files),
        tensors=len(index.tensors),
        chunks=len(index.chunks),
        bytes=sum(file.size for file in index.files),
        seconds=round(time.monotonic() - began, 3),
    )
