"""What this machine has fetched, for `slimgpu.store.serve` to hand out: blobs whole or in parts, by their manifests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slimgpu.errors import ImageError
from slimgpu.oci import media
from slimgpu.oci.manifest import Manifest, parse_manifest, referrer
from slimgpu.weights.keep import BlobKeeper
from slimgpu.weights.manifests import FOLDER, ManifestKeeper
from slimgpu.weights.tiers import disk_tier

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slimgpu.oci.manifest import Descriptor
    from slimgpu.store.cache import Cache


@dataclass(frozen=True, slots=True)
class _KeptBlob:
    """See `slimgpu.store.shelf.ShelvedBlob`."""

    path: Path
    size: int
    digest: str
    keeper: BlobKeeper
    offset: int = 0

    def covers(self, offset: int, length: int) -> bool:
        """See `ShelvedBlob.covers`."""
        return self.keeper.covers(self.digest, offset, length)


class CacheShelf:
    """The disk tier of this machine, see `slimgpu.store.shelf.Shelf`; it is filled while it is served.

    Repositories are known by their names without the host, so that a neighbour finds what it would ask a registry for.
    """

    def __init__(self, cache: Cache) -> None:
        self._blobs = disk_tier(cache)
        self._manifests = ManifestKeeper(cache.root / FOLDER)
        self._known: tuple[int, dict[str, int]] = (-1, {})

    def manifest(self, repository: str, identifier: str) -> tuple[str, bytes] | None:
        """See `Shelf.manifest`."""
        data = self._manifests.find(repository, identifier)
        return None if data is None else (parse_manifest(data, identifier).media_type or media.OCI_MANIFEST, data)

    def blob(self, digest: str) -> _KeptBlob | None:
        """See `Shelf.blob`."""
        size = self._sizes().get(digest)
        path = self._blobs.path(digest)
        return None if size is None or not path.exists() else _KeptBlob(path, size, digest, self._blobs)

    def _sizes(self) -> dict[str, int]:
        """The sizes of all blobs, which a file that is there in parts doesn't tell."""
        changed = self._manifests.changed
        if self._known[0] != changed:
            found = {blob.digest: blob.size for _, each in self._all() for blob in (each.config, *each.layers)}
            self._known = (changed, found)
        return self._known[1]

    def _all(self) -> Iterator[tuple[bytes, Manifest]]:
        for data in self._manifests.all():
            try:
                yield data, parse_manifest(data, "a manifest in the cache")
            except ImageError:  # torn by a power loss
                continue

    def tags(self, repository: str) -> Sequence[str] | None:
        """See `Shelf.tags`."""
        return self._manifests.tags(repository)

    def referrers(self, repository: str, digest: str) -> Sequence[Descriptor]:
        """See `Shelf.referrers`."""
        if self._manifests.tags(repository) is None:
            return ()
        return [referrer(each, data) for data, each in self._all() if each.subject and each.subject.digest == digest]
