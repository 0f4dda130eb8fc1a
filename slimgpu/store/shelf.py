"""What a read-only registry hands out, and an OCI layout as such."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, Protocol

from slimgpu.oci import media
from slimgpu.oci.digest import check_bytes, is_digest
from slimgpu.oci.manifest import is_index
from slimgpu.store.layout import BlobFiles, has_names, is_called, layout_referrers, name_in_layout, read_index

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from slimgpu.oci.manifest import Descriptor
    from slimgpu.store.layout import BlobFile

MAX_MANIFEST: Final = 4 * 1024 * 1024
_TYPES: Final = media.MANIFESTS | media.INDEXES
_LATEST: Final = "latest"


class ShelvedBlob(Protocol):
    """Where a blob lies, whole or in parts: ``size`` bytes of a file from ``offset`` on."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def offset(self) -> int:
        """Where in the file the blob begins."""

    @property
    def size(self) -> int:
        """The bytes of the whole blob, there or not."""

    def covers(self, offset: int, length: int) -> bool:
        """Whether these bytes of the blob are there."""


class Shelf(Protocol):
    """Manifests and blobs to hand out; asked by many threads at the same time.

    Names come as clients sent them, but are well-formed.
    """

    def manifest(self, repository: str, identifier: str) -> tuple[str, bytes] | None:
        """Media type and bytes of the manifest or index with this tag or digest."""

    def blob(self, digest: str) -> ShelvedBlob | None:
        """Where the blob lies, if any of it is there."""

    def tags(self, repository: str) -> Sequence[str] | None:
        """The tags of a repository; None when there is no such repository."""

    def referrers(self, repository: str, digest: str) -> Sequence[Descriptor]:
        """What is attached to a manifest."""


class LayoutShelf:
    """An OCI layout directory, which may be written meanwhile, as one repository, or under any name."""

    def __init__(self, root: Path, repository: str | None = None) -> None:
        self._name = f"oci:{root}"
        self._blobs = BlobFiles(root)
        self._repository = repository

    def _is_here(self, repository: str) -> bool:
        return self._repository in (None, repository)

    def manifest(self, repository: str, identifier: str) -> tuple[str, bytes] | None:
        """See `Shelf.manifest`. What an index of the layout leads to is there by its digest, too."""
        if not self._is_here(repository):
            return None
        if is_digest(identifier):
            return self._document(identifier)
        index = read_index(self._name, self._blobs)
        if not has_names(index):
            found = list(index.manifests) if identifier == _LATEST else []
        else:
            found = [entry for entry in index.manifests if is_called(entry, identifier)]
        return self._document(found[0].digest) if len(found) == 1 else None

    def _document(self, digest: str) -> tuple[str, bytes] | None:
        place = self.blob(digest)
        if place is None or place.size > MAX_MANIFEST:
            return None
        data = check_bytes(place.read(), digest, f"{digest} of {self._name}")
        media_type = _manifest_type(data)
        return (media_type, data) if media_type else None

    def blob(self, digest: str) -> BlobFile | None:
        """See `Shelf.blob`."""
        try:
            return self._blobs.find(digest)
        except FileNotFoundError:
            return None

    def tags(self, repository: str) -> Sequence[str] | None:
        """See `Shelf.tags`; the only manifest is the latest when it has no name."""
        if not self._is_here(repository):
            return None
        index = read_index(self._name, self._blobs)
        if not has_names(index):
            return [_LATEST] if len(index.manifests) == 1 else []
        names = (name_in_layout(entry) for entry in index.manifests)
        return sorted({name.rpartition(":")[2] for name in names if name})

    def referrers(self, repository: str, digest: str) -> Sequence[Descriptor]:
        """See `Shelf.referrers`."""
        return layout_referrers(self._name, self._blobs, digest) if self._is_here(repository) else ()


def _manifest_type(data: bytes) -> str | None:
    """The media type of a manifest or index; None for any other blob."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("schemaVersion") != 2:  # noqa: PLR2004 - of the format
        return None
    told = document.get("mediaType")
    if told is not None:
        return next((known for known in _TYPES if known == told), None)
    if is_index(None, data):
        return media.OCI_INDEX
    return media.OCI_MANIFEST if "layers" in document else None
