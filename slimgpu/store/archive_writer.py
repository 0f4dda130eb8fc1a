"""Writing images to tar archives, always the same bytes for the same image.

A Docker archive is written as skopeo does: ``manifest.json``, ``<config>.json`` and one plain ``<diff id>.tar`` a
layer, which ``docker load`` and every reader of ``docker save`` understand.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Self

from slimgpu.errors import DestinationError, UsageError
from slimgpu.oci import media
from slimgpu.oci.digest import digest_bytes, verified
from slimgpu.oci.manifest import Index, dump
from slimgpu.oci.mutate import OpenBlob, open_file
from slimgpu.oci.reference import RegistryReference, parse_reference
from slimgpu.parallel import readahead
from slimgpu.store.files import atomic_file, exclusive
from slimgpu.store.layout import MARKER, layout_entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from slimgpu.oci.image import Artifact, Blob, Image, Layer
    from slimgpu.oci.manifest import Descriptor
    from slimgpu.oci.reference import PathReference
    from slimgpu.progress import Task
    from slimgpu.store.cache import Cache

_BLOCK: Final = 512
_END: Final = bytes(2 * _BLOCK)


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive to be written."""

    name: str
    size: int
    content: OpenBlob


def document(name: str, data: bytes) -> Member:
    """A member whose bytes are in memory."""
    return Member(name, len(data), lambda: nullcontext(iter([data])))


def tar_chunks(members: Iterable[Member]) -> Iterator[bytes]:
    """The members as a tar archive without any owner or time."""
    for member in members:
        info = tarfile.TarInfo(member.name)
        info.size = member.size
        yield info.tobuf(tarfile.GNU_FORMAT)
        with member.content() as chunks:
            yield from chunks
        yield bytes(-member.size % _BLOCK)
    yield _END


def layout_members(artifact: Artifact, tag: str | None, task: Task) -> Iterator[Member]:
    """An OCI layout that holds the artifact; ``task`` advances by the layers' stored bytes."""
    index = Index(schema_version=2, media_type=media.OCI_INDEX, manifests=(layout_entry(artifact, tag),))
    yield document("oci-layout", MARKER)
    yield document("index.json", dump(index))
    blobs = {digest_bytes(data): document("", data) for data in (artifact.raw_config, artifact.raw_manifest)}
    for layer in artifact.layers:
        present = layer.descriptor.digest in blobs
        blobs[layer.descriptor.digest] = Member("", layer.descriptor.size, _counted(layer, task))
        if present:
            task.advance(layer.descriptor.size)
    for digest, blob in sorted(blobs.items()):
        yield Member(f"blobs/{digest.replace(':', '/')}", blob.size, blob.content)


def docker_members(image: Image, repo_tag: str | None, cache: Cache, task: Task) -> Iterator[Member]:
    """What ``docker load`` takes; compressed layers are unpacked to the cache on their way."""
    config = f"{_hex(digest_bytes(image.raw_config))}.json"
    names = [f"{_hex(layer.diff_id)}.tar" for layer in image.layers]
    entry = {"Config": config, "RepoTags": [repo_tag] if repo_tag else None, "Layers": names}
    yield document("manifest.json", json.dumps([entry], separators=(",", ":")).encode())
    yield document(config, image.raw_config)
    written = set()
    for name, layer in zip(names, image.layers, strict=True):
        if name in written:
            task.advance(layer.descriptor.size)
        else:
            written.add(name)
            yield _plain_layer(name, layer, cache, task)


def _plain_layer(name: str, layer: Layer, cache: Cache, task: Task) -> Member:
    if layer.descriptor.digest == layer.diff_id:
        return Member(name, layer.descriptor.size, _counted(layer, task))
    path = cache.layer(layer, task)

    @contextmanager
    def opened() -> Iterator[Iterator[bytes]]:
        with open_file(path)() as chunks:
            yield verified(chunks, layer.diff_id, None, f"layer {layer.diff_id} in the cache")

    return Member(name, path.stat().st_size, opened)


def _counted(layer: Blob, task: Task) -> OpenBlob:
    @contextmanager
    def opened() -> Iterator[Iterator[bytes]]:
        with layer.open() as chunks:
            yield _advancing(chunks, task)

    return opened


def _advancing(chunks: Iterable[bytes], task: Task) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        task.advance(len(chunk))


def _hex(digest: str) -> str:
    return digest.partition(":")[2]


class _ArchiveWriter:
    """A new archive file, whose name is locked as long as the writer is open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.workspace = path.parent / f".{path.name}.slimgpu.partial"

    @contextmanager
    def opened(self) -> Iterator[Self]:
        """Lock the destination, which must not exist, and prepare the workspace."""
        with exclusive(self._path):
            if self._path.exists() or self._path.is_symlink():
                raise DestinationError(f"{self._path} exists; remove it or choose another destination")
            shutil.rmtree(self.workspace, ignore_errors=True)
            self.workspace.mkdir()
            try:
                yield self
            finally:
                shutil.rmtree(self.workspace, ignore_errors=True)

    def _save(self, members: Iterable[Member]) -> None:
        with atomic_file(self._path) as file:
            for chunk in readahead(tar_chunks(members)):
                file.write(chunk)


class OciArchiveWriter(_ArchiveWriter):
    """Writes one image or artifact as a layout in a tar file."""

    stores: Literal["compressed", "plain"] = "compressed"

    def __init__(self, reference: PathReference) -> None:
        super().__init__(reference.path)
        self._tag = reference.tag

    def has(self, blob: Descriptor) -> bool:
        """See `slimgpu.store.transport.ArtifactSink.has`: the archive is new."""
        del blob
        return False

    def put(self, blob: Blob, task: Task) -> None:
        """See `slimgpu.store.transport.ArtifactSink.put`: the archive is written in one piece, in the end."""

    def write(self, artifact: Artifact, task: Task) -> str:
        """Write the archive; gives the manifest's digest."""
        self._save(layout_members(artifact, self._tag, task))
        return digest_bytes(artifact.raw_manifest)


class DockerArchiveWriter(_ArchiveWriter):
    """Writes one image as ``docker save`` does."""

    stores: Literal["compressed", "plain"] = "plain"

    def __init__(self, reference: PathReference, cache: Cache) -> None:
        super().__init__(reference.path)
        self._cache = cache
        self._tag = _repo_tag(reference)

    def write(self, image: Image, task: Task) -> str:
        """Write the archive; gives the configuration's digest (Docker's image id)."""
        self._save(docker_members(image, self._tag, self._cache, task))
        return digest_bytes(image.raw_config)


def _repo_tag(reference: PathReference) -> str | None:
    """The name that the image gets, with a tag; `UsageError` when it is none."""
    if reference.tag is None:
        return None
    try:
        parsed = parse_reference(f"docker://{reference.tag}")
    except UsageError as error:
        raise UsageError(f"{reference} gives the image no valid name; write docker-archive:FILE:repo:tag") from error
    if not isinstance(parsed, RegistryReference) or parsed.digest:
        raise UsageError(f"{reference} names the image by a digest; write docker-archive:FILE:repo:tag")
    return reference.tag if reference.tag.endswith(f":{parsed.tag}") else f"{reference.tag}:{parsed.tag}"
