"""Writing to a registry: blobs that it lacks, then the configuration, then the manifest.

A blob that lies in another repository of the same registry is mounted from there. What breaks off is tried again.
What is there already is believed, unless it is to be checked: then all is read back, and sent again where it is wrong.

Source: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#push
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Final, Literal, TypeVar
from urllib.parse import urlencode, urlsplit

from slimgpu.errors import DestinationError, ImageError, RegistryError
from slimgpu.oci import media
from slimgpu.oci.digest import digest_bytes, is_whole
from slimgpu.oci.manifest import referrer
from slimgpu.oci.mutate import CheckedBlob
from slimgpu.progress import SILENT
from slimgpu.store.http_session import resolve_location
from slimgpu.store.referrers import attach
from slimgpu.store.registry import PassingError, Repository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
_PARALLEL: Final = 4
_RESTARTS: Final = 3
_BACKOFF: Final = 1.0

T = TypeVar("T")


class _Body:
    """A blob as the body of a request: its length is known, and it can be sent again; only news are progress."""

    def __init__(self, content: OpenBlob, size: int, task: Task, stop: Event) -> None:
        self._content = content
        self._size = size
        self._task = task
        self._stop = stop
        self._told = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        sent = 0
        with self._content() as chunks:
            for chunk in chunks:
                if self._stop.is_set():
                    raise RegistryError("the push was given up because another of its uploads failed")
                yield chunk
                sent += len(chunk)
                self._tell(sent)

    def _tell(self, position: int) -> None:
        if position > self._told:
            self._task.advance(position - self._told)
            self._told = position

    def finish(self) -> None:
        """The blob is there, sent or not."""
        self._tell(self._size)


class RegistryWriter:
    """Writes an image or artifact into a repository, by tag or by digest."""

    stores: Literal["compressed", "plain"] = "compressed"

    def __init__(self, reference: RegistryReference, cache: Cache, *, check: bool = False) -> None:
        self._reference = reference
        self._check = check
        self._checked: set[str] = set()
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
        return self._repository.has("blobs", blob.digest)

    def put(self, blob: Blob, task: Task) -> None:
        """See `slimgpu.store.transport.ArtifactSink.put`."""
        origin = blob.origin if isinstance(blob, CheckedBlob) else None
        self._push_blob(blob.descriptor, blob.open, task, origin)

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
        self._persist(lambda: self._push_manifest(artifact, self._reference.tag or digest, digest))
        return digest

    def _push_blob(
        self, blob: Descriptor, content: OpenBlob, task: Task, origin: RegistryReference | None = None
    ) -> None:
        body = _Body(content, blob.size, task, self._stop)
        self._persist(lambda: self._push_once(blob, body, origin))
        body.finish()

    def _persist(self, work: Callable[[], T]) -> T:
        """What ``work`` gives, which starts again when it breaks off."""
        for attempt in range(_RESTARTS):
            try:
                return work()
            except PassingError:
                if self._stop.wait(_BACKOFF * 2**attempt):
                    raise
        return work()

    def _push_once(self, blob: Descriptor, body: _Body, origin: RegistryReference | None) -> None:
        location = None if self.has(blob) else self._begin_upload(blob.digest, origin)
        if location is not None:
            self._upload(location, blob, body)
        if not self._check or blob.digest in self._checked:
            return
        if not self._is_whole(blob):
            self._upload(self._start_upload(), blob, body)
            if not self._is_whole(blob):
                raise self._damaged(blob.digest)
        self._checked.add(blob.digest)

    def _is_whole(self, blob: Descriptor) -> bool:
        try:
            with self._repository.open_blob(blob)() as chunks:
                return is_whole(chunks, blob.digest, blob.size)
        except ImageError:  # it lacks what it has just said that it has
            return False

    def _damaged(self, digest: str) -> RegistryError:
        """Docker's registry takes a blob whose digest it has for the same, and throws away what is sent."""
        return RegistryError(
            f"{self._reference.host} holds a damaged {digest} and does not replace it; have it deleted from the "
            "registry's storage (by docker-registry garbage-collect, once no manifest lists it), then push again"
        )

    def _upload(self, location: str, blob: Descriptor, body: _Body) -> None:
        separator = "&" if urlsplit(location).query else "?"
        self._repository.send(
            "PUT",
            f"{location}{separator}{urlencode({'digest': blob.digest})}",
            f"the upload of {blob.digest}",
            good=(_CREATED, _NO_CONTENT),
            headers={"Content-Type": "application/octet-stream"},
            body=body,
        ).close()

    def _begin_upload(self, digest: str, origin: RegistryReference | None) -> str | None:
        """Where to send the blob; None when the registry took it over from another of its repositories."""
        if origin is not None and origin.host == self._reference.host:
            query = urlencode({"mount": digest, "from": origin.repository})
            target = self._repository.path("blobs", f"uploads/?{query}")
            with suppress(RegistryError):  # not every registry mounts, nor may every user read there
                self._repository.may_read(origin.repository)
                with self._repository.send("POST", target, "a mount", good=(_CREATED, _ACCEPTED)) as response:
                    return None if response.status_code == _CREATED else resolve_location(response)
        return self._start_upload()

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
        answer = self._repository.put_manifest(identifier, media_type, artifact.raw_manifest)
        stored = answer.get("Docker-Content-Digest", digest)
        if stored != digest:
            raise RegistryError(f"{self._reference} was stored as {stored}, not {digest}; push it again")
        if self._check:
            try:
                self._repository.manifest(digest)
            except ImageError as error:
                raise self._damaged(digest) from error
        if artifact.manifest.subject is not None and "OCI-Subject" not in answer:
            attach(
                self._repository, referrer(artifact.manifest, artifact.raw_manifest), artifact.manifest.subject.digest
            )
