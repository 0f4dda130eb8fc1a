"""The one entry to every store: open an image or artifact to read, open a place to write one.

What a reference does not need is not imported: the Docker SDK only for ``docker-daemon:``, requests only for
``docker://``.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

from slimgpu.errors import NotFoundError, UsageError
from slimgpu.oci.reference import DaemonReference, PathTransport, RegistryReference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from slimgpu.oci.image import Artifact, Blob, Image
    from slimgpu.oci.manifest import Descriptor, Platform
    from slimgpu.oci.reference import PathReference, Reference
    from slimgpu.progress import Progress, Task
    from slimgpu.store.archive_writer import OciArchiveWriter
    from slimgpu.store.cache import Cache
    from slimgpu.store.documents import Documents
    from slimgpu.store.layout import Blobs, LayoutWriter
    from slimgpu.store.ranges import RangeSource


class Sink(Protocol):
    """A destination that is locked, reachable and writable, as far as can be known beforehand."""

    @property
    def workspace(self) -> Path:
        """A directory, mostly on the destination's disk, that goes when the sink closes.

        Layers staged as ``workspace/blobs/sha256/<hex>`` are moved into a layout, not copied again.
        """

    @property
    def stores(self) -> Literal["compressed", "plain"]:
        """Whether layers are best handed over compressed, or as the plain tars that a Docker archive holds."""

    def write(self, image: Image, task: Task) -> str:
        """Store the image; gives the digest by which the destination knows it.

        That is the manifest's digest, and the configuration's where Docker keeps no manifests (archives and the
        engine). ``task`` advances by the layers' stored bytes.
        """


class ArtifactSink(Protocol):
    """A destination for artifacts of any type, which knows blobs by digest."""

    @property
    def workspace(self) -> Path:
        """See `Sink.workspace`."""

    def has(self, blob: Descriptor) -> bool:
        """Whether the destination holds the blob already."""

    def put(self, blob: Blob, task: Task) -> None:
        """Store a blob ahead of the manifest that will name it, where that saves time."""

    def write(self, artifact: Artifact, task: Task) -> str:
        """Store the artifact; gives its digest. ``task`` advances by the blobs' stored bytes."""


@contextmanager
def open_image(reference: Reference, platform: Platform, cache: Cache, progress: Progress) -> Iterator[Image]:
    """The image that ``reference`` names, for ``platform``; its layers can be opened until the block ends.

    Raises `NotFoundError`, `ImageError`, `RegistryError` or `MissingComponentError`.
    """
    if isinstance(reference, RegistryReference):
        from slimgpu.store.registry import open_registry_image  # noqa: PLC0415

        with open_registry_image(reference, platform) as (image, _):
            yield image
        return
    with _local_image(reference, platform, cache, progress) as image:
        yield image


@contextmanager
def open_image_ranges(
    reference: Reference, platform: Platform, cache: Cache, progress: Progress
) -> Iterator[tuple[Image, RangeSource]]:
    """The image that ``reference`` names, and its blobs by position, until the block ends.

    Raises as `open_image` does, and `UsageError` for a transport that keeps no compressed layers.
    """
    if isinstance(reference, RegistryReference):
        from slimgpu.store.registry import open_registry_image  # noqa: PLC0415

        with open_registry_image(reference, platform) as opened:
            yield opened
        return
    from slimgpu.store.layout import read_layout  # noqa: PLC0415
    from slimgpu.store.ranges import LayoutRanges  # noqa: PLC0415

    reference = _layout_path(reference, "keeps no compressed layers", "the image")
    with _layout_blobs(reference, cache, progress) as blobs:
        name = str(reference)
        yield read_layout(name, blobs, reference.identifier, platform), LayoutRanges(name, blobs)


def _local_image(
    reference: DaemonReference | PathReference, platform: Platform, cache: Cache, progress: Progress
) -> AbstractContextManager[Image]:
    if isinstance(reference, DaemonReference):
        from slimgpu.store.daemon import open_daemon_image  # noqa: PLC0415

        return open_daemon_image(reference, platform, cache, progress)
    return _path_image(reference, platform, cache, progress)


@contextmanager
def _path_image(reference: PathReference, platform: Platform, cache: Cache, progress: Progress) -> Iterator[Image]:
    _require_path(reference)
    if reference.transport is PathTransport.OCI:
        from slimgpu.store.layout import BlobFiles, read_layout  # noqa: PLC0415

        yield read_layout(str(reference), BlobFiles(reference.path), reference.identifier, platform)
        return
    from slimgpu.store.archive import open_archive  # noqa: PLC0415

    with open_archive(reference, platform, cache, progress) as image:
        yield image


@contextmanager
def open_artifact(
    reference: Reference, cache: Cache, progress: Progress, kept: Documents | None = None
) -> Iterator[tuple[Artifact, RangeSource]]:
    """The artifact that ``reference`` names, and its blobs by position, until the block ends.

    A registry is not asked for what is ``kept``.

    Raises as `open_image` does, and `UsageError` for a transport that holds images only.
    """
    if isinstance(reference, RegistryReference):
        from slimgpu.store.registry import open_registry_artifact  # noqa: PLC0415

        with open_registry_artifact(reference, kept) as opened:
            yield opened
        return
    from slimgpu.store.layout import read_layout_artifact  # noqa: PLC0415
    from slimgpu.store.ranges import LayoutRanges  # noqa: PLC0415

    reference = _artifact_path(reference)
    with _layout_blobs(reference, cache, progress) as blobs:
        name = str(reference)
        yield read_layout_artifact(name, blobs, reference.identifier), LayoutRanges(name, blobs)


@contextmanager
def _layout_blobs(reference: PathReference, cache: Cache, progress: Progress) -> Iterator[Blobs]:
    _require_path(reference)
    if reference.transport is PathTransport.OCI:
        from slimgpu.store.layout import BlobFiles  # noqa: PLC0415

        yield BlobFiles(reference.path)
        return
    from slimgpu.store.archive import open_archived_layout  # noqa: PLC0415

    with open_archived_layout(reference, cache, progress) as blobs:
        yield blobs


def _artifact_path(reference: DaemonReference | PathReference) -> PathReference:
    return _layout_path(reference, "can hold images only", "the artifact")


def _layout_path(reference: DaemonReference | PathReference, lack: str, what: str) -> PathReference:
    if isinstance(reference, DaemonReference) or reference.transport is PathTransport.DOCKER_ARCHIVE:
        raise UsageError(
            f"{reference} {lack}; name {what} as docker://host/repo:tag, oci:dir[:tag] or oci-archive:file[:tag]"
        )
    return reference


def _require_path(reference: PathReference) -> None:
    if not reference.path.exists():
        raise NotFoundError(f"{reference.path} does not exist; check the path in {reference}")


@contextmanager
def open_sink(reference: Reference, cache: Cache) -> Iterator[Sink]:
    """The place that ``reference`` names, locked and checked so that writing will not fail for what is known now.

    Raises `DestinationError`, `RegistryError` or `MissingComponentError`.
    """
    with _sink(reference, cache) as sink:
        yield sink


def _sink(reference: Reference, cache: Cache) -> AbstractContextManager[Sink]:
    if isinstance(reference, RegistryReference):
        from slimgpu.store.registry_push import RegistryWriter  # noqa: PLC0415

        return RegistryWriter(reference, cache).opened()
    if isinstance(reference, DaemonReference):
        from slimgpu.store.daemon import DaemonWriter  # noqa: PLC0415

        return DaemonWriter(reference, cache).opened()
    if reference.transport is PathTransport.DOCKER_ARCHIVE:
        from slimgpu.store.archive_writer import DockerArchiveWriter  # noqa: PLC0415

        return DockerArchiveWriter(reference, cache).opened()
    return _layout_sink(reference)


@contextmanager
def open_artifact_sink(reference: Reference, cache: Cache, *, check: bool = False) -> Iterator[ArtifactSink]:
    """The place that ``reference`` names, for an artifact.

    What is there already is believed unless ``check`` is set: then it is read, and stored again where it is damaged.
    Raises as `open_sink` and `open_artifact` do.
    """
    with _artifact_sink(reference, cache, check=check) as sink:
        yield sink


def _artifact_sink(reference: Reference, cache: Cache, *, check: bool) -> AbstractContextManager[ArtifactSink]:
    if isinstance(reference, RegistryReference):
        from slimgpu.store.registry_push import RegistryWriter  # noqa: PLC0415

        return RegistryWriter(reference, cache, check=check).opened()
    return _layout_sink(_artifact_path(reference), check=check)


def _layout_sink(
    reference: PathReference, *, check: bool = False
) -> AbstractContextManager[LayoutWriter | OciArchiveWriter]:
    if reference.digest:
        raise UsageError(f"{reference} names what is there by its digest; name what is written by a tag")
    if reference.transport is PathTransport.OCI:
        from slimgpu.store.layout import LayoutWriter  # noqa: PLC0415

        return LayoutWriter(reference.path, reference.tag, check=check).opened()
    from slimgpu.store.archive_writer import OciArchiveWriter  # noqa: PLC0415

    return OciArchiveWriter(reference).opened()


def find_referrers(
    reference: Reference, digest: str, artifact_type: str | None, cache: Cache, progress: Progress
) -> tuple[Descriptor, ...]:
    """What is attached to the manifest ``digest`` where ``reference`` lies, of one type (None: of any).

    `slimgpu.oci.reference.by_digest` names it then. Nothing can be attached in a Docker archive or engine. Raises as
    `open_image` does.
    """
    if isinstance(reference, RegistryReference):
        from slimgpu.store.referrers import registry_referrers  # noqa: PLC0415
        from slimgpu.store.registry import Repository  # noqa: PLC0415

        with Repository(reference).opened() as repository:
            return registry_referrers(repository, digest, artifact_type)
    if isinstance(reference, DaemonReference) or reference.transport is PathTransport.DOCKER_ARCHIVE:
        return ()
    from slimgpu.store.layout import layout_referrers  # noqa: PLC0415

    with _layout_blobs(reference, cache, progress) as blobs:
        return layout_referrers(str(reference), blobs, digest, artifact_type)
