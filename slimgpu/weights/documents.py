"""Manifests and indexes of the disk tier: what is named by digest is loaded although its registry is out of reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slimgpu.oci.digest import digest_bytes
from slimgpu.store.documents import MAX_DOCUMENT
from slimgpu.weights.manifests import FOLDER, ManifestKeeper
from slimgpu.weights.tiers import disk_tier

if TYPE_CHECKING:
    from slimgpu.oci.manifest import Descriptor
    from slimgpu.oci.reference import RegistryReference
    from slimgpu.store.cache import Cache


class KeptDocuments:
    """See `slimgpu.store.transport.Documents`."""

    def __init__(self, cache: Cache, index: str | None) -> None:
        """``index`` is the digest of the only index that will do, whatever manifest names it."""
        self._cache = cache
        self._index = index
        self._manifests = ManifestKeeper(cache.root / FOLDER)

    def manifest(self, reference: RegistryReference) -> bytes | None:
        """See `Documents.manifest`."""
        if reference.digest:
            return self._manifests.find(reference.repository, reference.digest)
        return self._manifests.with_config(self._index) if self._index else None

    def document(self, descriptor: Descriptor) -> bytes | None:
        """See `Documents.document`."""
        if not 0 < descriptor.size <= MAX_DOCUMENT:
            return None
        try:
            blobs = disk_tier(self._cache)
        except OSError:
            return None
        data = bytearray(descriptor.size)
        is_there = blobs.read_into(descriptor.digest, 0, memoryview(data))
        return bytes(data) if is_there and digest_bytes(bytes(data)) == descriptor.digest else None
