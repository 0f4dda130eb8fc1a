"""Writing to a registry: blobs that it lacks, then the configuration, then the manifest.

Source: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#push
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlencode, urlsplit

from slimgpu.errors import DestinationError, RegistryError
from slimgpu.oci import media
from slimgpu.oci.digest import digest_bytes
from slimgpu.progress import SILENT
from slimgpu.store.http_session import resolve_location
from slimgpu.store.registry import Repository

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.oci.image import Artifact, Blob
    from slimgpu.oci.manifest import Descriptor
    from slimgpu.oci.mutate import OpenBlob
    from slimgpu.oci.reference import RegistryReference
    from slimgpu.progress import Task
    from slimgpu.store.cache import Cache

_OK: Final = 200
_CREATED: Final = 201
_ACCEPTED: Final = 202
_NO_CONTENT: Final = 204
_NOT_FOUND: Final = 404
_PARALLEL: Final = 4


class _Body:
    """A blob as the body of a request: its length is known, and it can be sent again."""

    def __init__(self, content: OpenBlob, size: int, task: Task, stop: Event) -> None:
        self._content = content
        self._size = size
        self._task = task
        self._stop = stop

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        with self._content() as chunks:
            for chunk in chunks:
                if self._stop.is_set():
                    raise RegistryError("the push was given up because another of its uploads failed")
                yield chunk
                self._task.advance(len(chunk))


class RegistryWriter:
    """Writes an image or artifact into a repository, by tag or by digest."""

    stores: Literal["compressed", "plain"] = "compressed"

    def __init__(self, reference: RegistryReference, cache: Cache) -> None:
        self._reference = reference
        self._repository = Repository(reference, "pull,push")
        self._cache = cache
        self._stop = Event()
        self.workspace = Path()

    @contextmanager
    def opened(self) -> Iterator[RegistryWriter]:
        """Show, by an upload that is given up at once, that we may push."""
        with (
            self._repository.opened(),
            self._cache.temporary_directory("push") as workspace,
        ):
            self.workspace = workspace
            self._cancel(self._start_upload())
            yield self

    def has(self, blob: Descriptor) -> bool:
        """See `slimgpu.store.transport.ArtifactSink.has`."""
        target = self._repository.path("blobs", blob.digest)
        with self._repository.send("HEAD", target, f"the blob {blob.digest}", good=(_OK, _NOT_FOUND)) as response:
            return response.status_code == _OK

    def put(self, blob: Blob, task: Task) -> None:
        """See `slimgpu.store.transport.ArtifactSink.put`."""
        self._push_blob(blob.descriptor, blob.open, task)

    def write(self, artifact: Artifact, task: Task) -> str:
        """Push the image or artifact; gives its digest. ``task`` advances by the layers' stored bytes."""
        digest = digest_bytes(artifact.raw_manifest)
        if self._reference.digest not in (None, digest):
            raise DestinationError(f"{self._reference} names something else than {digest}; write to a tag instead")
        unique = {layer.descriptor.digest: layer for layer in artifact.layers}
        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="push") as threads:
            pushes = [threads.submit(self.put, layer, task) for layer in unique.values()]
            try:
                for push in as_completed(pushes):
                    push.result()
            except BaseException:
                self._stop.set()
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        config = artifact.manifest.config
        with SILENT.task("configuration", config.size) as uncounted:
            self._push_blob(config, lambda: nullcontext(iter([artifact.raw_config])), uncounted)
        self._push_manifest(artifact, self._reference.tag or digest, digest)
        return digest

    def _push_blob(self, blob: Descriptor, content: OpenBlob, task: Task) -> None:
        if self.has(blob):
            task.advance(blob.size)
            return
        location = self._start_upload()
        separator = "&" if urlsplit(location).query else "?"
        self._repository.send(
            "PUT",
            f"{location}{separator}{urlencode({'digest': blob.digest})}",
            f"the upload of {blob.digest}",
            good=(_CREATED, _NO_CONTENT),
            headers={"Content-Type": "application/octet-stream"},
            body=_Body(content, blob.size, task, self._stop),
        ).close()

    def _start_upload(self) -> str:
        target = self._repository.path("blobs", "uploads/")
        with self._repository.send("POST", target, "an upload", good=(_ACCEPTED,)) as response:
            return resolve_location(response)

    def _cancel(self, location: str) -> None:
        """Not every registry can, nor does pushing always include deleting; then it drops the upload later."""
        good = (_NO_CONTENT, _OK, _ACCEPTED)
        with suppress(RegistryError):
            self._repository.send("DELETE", location, "an upload", good=good, renewals=0).close()

    def _push_manifest(self, artifact: Artifact, identifier: str, digest: str) -> None:
        media_type = artifact.manifest.media_type or media.OCI_MANIFEST
        with self._repository.send(
            "PUT",
            self._repository.path("manifests", identifier),
            "the manifest",
            good=(_CREATED, _OK, _ACCEPTED),
            headers={"Content-Type": media_type},
            body=artifact.raw_manifest,
        ) as response:
            stored = response.headers.get("Docker-Content-Digest", digest)
        if stored != digest:
            raise RegistryError(f"{self._reference} was stored as {stored}, not {digest}; push it again")
