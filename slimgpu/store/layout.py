"""OCI image layouts: a directory with ``oci-layout``, ``index.json`` and ``blobs/``.

Source: https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

from slimgpu.errors import DestinationError, ImageError, NotFoundError
from slimgpu.oci import media
from slimgpu.oci.digest import check_bytes, digest_bytes, is_whole
from slimgpu.oci.manifest import (
    Descriptor,
    Index,
    choose,
    dump,
    parse_index,
    parse_manifest,
    referrer,
    referrers_of_type,
)
from slimgpu.oci.mutate import open_file
from slimgpu.store.documents import MAX_DOCUMENT, check_document_size, resolve_artifact, resolve_image
from slimgpu.store.files import atomic_file, exclusive, sync_directory, write_blob

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.oci.image import Artifact, Blob, Image
    from slimgpu.oci.manifest import Platform
    from slimgpu.oci.mutate import OpenBlob
    from slimgpu.progress import Task

REF_NAME: Final = "org.opencontainers.image.ref.name"
MARKER: Final = b'{"imageLayoutVersion":"1.0.0"}'
_OURS: Final = "application/vnd.slimgpu."


@dataclass(frozen=True, slots=True)
class BlobFile:
    """Where a blob lies: a whole file, or a part of one (an archive's member)."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """The whole blob, for documents."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def covers(self, offset: int, length: int) -> bool:
        """See `slimgpu.store.shelf.ShelvedBlob.covers`."""
        return offset + length <= self.size


class Blobs(Protocol):
    """Where a layout's documents and blobs are: a directory, or an archive of one."""

    def document(self, name: str) -> bytes:
        """``index.json`` or ``oci-layout``; FileNotFoundError when it is missing."""

    def find(self, digest: str) -> BlobFile:
        """The blob's place; FileNotFoundError when it is missing."""


class BlobFiles:
    """The blobs of a layout directory by digest."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def document(self, name: str) -> bytes:
        """See `Blobs.document`; no more is read than tells that it is too long."""
        with (self._root / name).open("rb") as file:
            return file.read(MAX_DOCUMENT + 1)

    def find(self, digest: str) -> BlobFile:
        """See `Blobs.find`."""
        path = self._root / "blobs" / digest.replace(":", "/")
        return BlobFile(path, 0, path.stat().st_size)


def read_layout(name: str, blobs: Blobs, identifier: str | None, platform: Platform) -> Image:
    """The image with this tag or digest (None: the only one), for ``platform``."""
    index = read_index(name, blobs)
    ours = _is_ours(index)  # then `resolve_image` says what it is
    if identifier is None and not ours:
        index = replace(index, manifests=tuple(m for m in index.manifests if m.artifact_type is None))
    named = identifier is not None or ours or has_names(index)
    descriptor = _select(index, identifier, name) if named else choose(index, platform, name)
    return resolve_image(
        name,
        descriptor.media_type,
        read_document(blobs, descriptor, name),
        platform,
        fetch=lambda document: read_document(blobs, document, name),
        open_blob=lambda layer: _open(blobs, layer, name),
    )


def _is_ours(index: Index) -> bool:
    """Whether the layout holds nothing but one artifact that slimgpu packed."""
    return len(index.manifests) == 1 and (index.manifests[0].artifact_type or "").startswith(_OURS)


def read_layout_artifact(name: str, blobs: Blobs, identifier: str | None) -> Artifact:
    """The artifact with this tag or digest (None: the only one)."""
    return resolve_artifact(
        name,
        read_document(blobs, _select(read_index(name, blobs), identifier, name), name),
        fetch=lambda document: read_document(blobs, document, name),
        open_blob=lambda layer: _open(blobs, layer, name),
    )


def layout_referrers(name: str, blobs: Blobs, digest: str, artifact_type: str | None = None) -> tuple[Descriptor, ...]:
    """What is attached to the manifest ``digest``, of one type (None: of any)."""
    return referrers_of_type(_attached(name, blobs, digest), artifact_type)


def _attached(name: str, blobs: Blobs, digest: str) -> Iterator[Descriptor]:
    for entry in read_index(name, blobs).manifests:
        if entry.media_type in media.MANIFESTS:
            data = read_document(blobs, entry, name)
            manifest = parse_manifest(data, f"{entry.digest} of {name}")
            if manifest.subject is not None and manifest.subject.digest == digest:
                yield referrer(manifest, data)


def read_index(name: str, blobs: Blobs) -> Index:
    """What the layout holds; `NotFoundError` naming ``name`` when it is none."""
    try:
        return parse_index(blobs.document("index.json"), f"the index of {name}")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"{name} is not an OCI layout: index.json is missing") from error


def _select(index: Index, identifier: str | None, name: str) -> Descriptor:
    chosen = [m for m in index.manifests if identifier is None or is_called(m, identifier)]
    if len(chosen) == 1 or (chosen and len({m.digest for m in chosen}) == 1):
        return chosen[0]
    tags = ", ".join(sorted(n for n in map(name_in_layout, index.manifests) if n)) or "none"
    if identifier is not None:
        raise NotFoundError(f"{name} is not in the layout; its tags are: {tags}")
    raise NotFoundError(f"{name} holds several images; add one of its tags: {tags}")


def has_names(index: Index) -> bool:
    """Without any name, several manifests are one image for several platforms, as buildx exports it."""
    return any(name_in_layout(manifest) is not None for manifest in index.manifests)


def name_in_layout(manifest: Descriptor) -> str | None:
    """What the index of a layout calls the manifest: mostly its tag, sometimes the whole name."""
    return (manifest.annotations or {}).get(REF_NAME)


def is_called(manifest: Descriptor, identifier: str) -> bool:
    """Whether a tag or digest means the manifest of a layout."""
    name = name_in_layout(manifest)
    return identifier in (name, manifest.digest) or (name is not None and name.endswith(f":{identifier}"))


def read_document(blobs: Blobs, descriptor: Descriptor, name: str) -> bytes:
    """The document that ``descriptor`` names, checked; ``name`` is the layout's, for messages."""
    blob = _find(blobs, descriptor, name)
    what = f"{descriptor.media_type} in {name}"
    check_document_size(blob.size, what)
    return check_bytes(blob.read(), descriptor.digest, what)


def _find(blobs: Blobs, descriptor: Descriptor, name: str) -> BlobFile:
    try:
        return blobs.find(descriptor.digest)
    except FileNotFoundError as error:
        raise ImageError(f"{name} lacks the blob {descriptor.digest} ({descriptor.media_type})") from error


def _open(blobs: Blobs, layer: Descriptor, name: str) -> OpenBlob:
    blob = _find(blobs, layer, name)
    return open_file(blob.path, blob.offset, blob.size)


def layout_entry(artifact: Artifact, tag: str | None) -> Descriptor:
    """The image or artifact as the index of a layout names it."""
    return Descriptor(
        artifact.manifest.media_type or media.OCI_MANIFEST,
        digest_bytes(artifact.raw_manifest),
        len(artifact.raw_manifest),
        annotations={REF_NAME: tag} if tag else None,
        platform=artifact.platform,
        artifact_type=artifact.manifest.artifact_type,
    )


class LayoutWriter:
    """Writes images and artifacts into a layout directory, which is locked as long as the writer is open."""

    stores: Literal["compressed", "plain"] = "compressed"

    def __init__(self, root: Path, tag: str | None, *, check: bool = False) -> None:
        """``check`` writes again what is there and damaged."""
        self._root = root
        self._tag = tag
        self._check = check
        self.workspace = root.parent / f".{root.name}.slimgpu.partial"

    @contextmanager
    def opened(self) -> Iterator[LayoutWriter]:
        """Lock the destination and prepare the workspace; what is left in it at the end goes."""
        if self._is_foreign():
            raise DestinationError(f"{self._root} is in use by something else; choose another destination")
        with exclusive(self._root):
            shutil.rmtree(self.workspace, ignore_errors=True)
            self.workspace.mkdir(parents=True)
            try:
                yield self
            finally:
                shutil.rmtree(self.workspace, ignore_errors=True)

    def _is_foreign(self) -> bool:
        if not self._root.is_dir():
            return self._root.exists()
        return not (self._root / "oci-layout").exists() and any(self._root.iterdir())

    def put(self, blob: Blob, task: Task) -> None:
        """See `slimgpu.store.transport.ArtifactSink.put`; what lies in the workspace is where it has to be."""
        if not self.has(blob.descriptor):
            with blob.open() as chunks:
                write_blob(self.workspace / "blobs", chunks)
        task.advance(blob.descriptor.size)

    def has(self, blob: Descriptor) -> bool:
        """See `slimgpu.store.transport.ArtifactSink.has`."""
        part = blob.digest.replace(":", "/")
        present = self._root / "blobs" / part
        if (self.workspace / "blobs" / part).exists():
            return True
        if not self._check or not present.exists():
            return present.exists()
        with open_file(present)() as chunks:
            return is_whole(chunks, blob.digest, blob.size)

    def write(self, artifact: Artifact, task: Task) -> str:
        """Add the image or artifact; gives its digest. ``task`` advances by the layers' stored bytes."""
        staged = self.workspace
        (staged / "oci-layout").write_bytes(MARKER)
        for layer in artifact.layers:
            self.put(layer, task)
        write_blob(staged / "blobs", [artifact.raw_config])
        write_blob(staged / "blobs", [artifact.raw_manifest])
        entry = layout_entry(artifact, self._tag)
        present = self._present_index()
        kept = (m for m in present.manifests if not self._replaces(m, entry, attached=artifact.manifest.subject))
        self._publish(replace(present, manifests=(*kept, entry)))
        return entry.digest

    def _replaces(self, present: Descriptor, entry: Descriptor, attached: Descriptor | None) -> bool:
        """Of what has no tag, one of a kind stays; but any number may be attached to something."""
        if name_in_layout(present) != self._tag:
            return False
        if self._tag is not None or present.digest == entry.digest:
            return True
        return attached is None and present.artifact_type == entry.artifact_type

    def _publish(self, index: Index) -> None:
        """Make what is staged visible: by one rename for a new layout, else by its index."""
        with atomic_file(self.workspace / "index.json") as file:
            file.write(dump(index))
        if not self._root.exists() or not any(self._root.iterdir()):
            self.workspace.replace(self._root)
            sync_directory(self._root.parent)
            return
        for blob in (self.workspace / "blobs").glob("*/*"):
            final = self._root / "blobs" / blob.parent.name / blob.name
            final.parent.mkdir(parents=True, exist_ok=True)
            blob.replace(final)
        (self.workspace / "index.json").replace(self._root / "index.json")
        sync_directory(self._root)

    def _present_index(self) -> Index:
        try:
            data = (self._root / "index.json").read_bytes()
        except FileNotFoundError:
            return Index(schema_version=2, media_type=media.OCI_INDEX)
        return parse_index(data, f"the index of {self._root}")
