"""The one entry to every store: open an image to read, open a place to write one.

What a reference does not need is not imported: the Docker SDK only for ``docker-daemon:``, requests only for
``docker://``.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

from slimgpu.errors import NotFoundError
from slimgpu.oci.reference import DaemonReference, PathTransport, RegistryReference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from slimgpu.oci.image import Image
    from slimgpu.oci.manifest import Platform
    from slimgpu.oci.reference import PathReference, Reference
    from slimgpu.progress import Progress, Task
    from slimgpu.store.cache import Cache


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


@contextmanager
def open_image(reference: Reference, platform: Platform, cache: Cache, progress: Progress) -> Iterator[Image]:
    """The image that ``reference`` names, for ``platform``; its layers can be opened until the block ends.

    Raises `NotFoundError`, `ImageError`, `RegistryError` or `MissingComponentError`.
    """
    with _opened(reference, platform, cache, progress) as image:
        yield image


def _opened(
    reference: Reference, platform: Platform, cache: Cache, progress: Progress
) -> AbstractContextManager[Image]:
    if isinstance(reference, RegistryReference):
        from slimgpu.store.registry import open_registry_image  # noqa: PLC0415

        return open_registry_image(reference, platform)
    if isinstance(reference, DaemonReference):
        from slimgpu.store.daemon import open_daemon_image  # noqa: PLC0415

        return open_daemon_image(reference, platform, cache, progress)
    return _path_image(reference, platform, cache, progress)


@contextmanager
def _path_image(reference: PathReference, platform: Platform, cache: Cache, progress: Progress) -> Iterator[Image]:
    if not reference.path.exists():
        raise NotFoundError(f"{reference.path} does not exist; check the path in {reference}")
    if reference.transport is PathTransport.OCI:
        from slimgpu.store.layout import BlobFiles, read_layout  # noqa: PLC0415

        yield read_layout(str(reference), BlobFiles(reference.path), reference.tag, platform)
        return
    from slimgpu.store.archive import open_archive  # noqa: PLC0415

    with open_archive(reference, platform, cache, progress) as image:
        yield image


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
    if reference.transport is PathTransport.OCI:
        from slimgpu.store.layout import LayoutWriter  # noqa: PLC0415

        return LayoutWriter(reference.path, reference.tag).opened()
    from slimgpu.store.archive_writer import ArchiveWriter  # noqa: PLC0415

    return ArchiveWriter(reference, cache).opened()
