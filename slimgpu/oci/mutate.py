"""Concrete images, artifacts and blobs, and the changes that make a new image from one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slimgpu.errors import ImageError
from slimgpu.oci import media
from slimgpu.oci.config import ImageConfig
from slimgpu.oci.digest import digest_bytes, verified
from slimgpu.oci.image import CHUNK, Artifact, Blob, Image, Layer
from slimgpu.oci.manifest import Descriptor, Manifest, Platform, dump, parse_manifest
from slimgpu.oci.reference import RegistryReference

if TYPE_CHECKING:
    from pathlib import Path

OpenBlob = Callable[[], AbstractContextManager[Iterator[bytes]]]


@dataclass(frozen=True, slots=True)
class CheckedBlob:
    """A blob over anything that can be opened; the check of its digest happens here, for every store.

    ``origin`` is what it was read for in a registry, which can lend the blob to its other repositories.
    """

    descriptor: Descriptor
    open_blob: OpenBlob
    origin: RegistryReference | None = field(default=None, kw_only=True)

    @contextmanager
    def open(self) -> Iterator[Iterator[bytes]]:
        """See `slimgpu.oci.image.Blob.open`."""
        wanted = self.descriptor
        with self.open_blob() as chunks:
            yield verified(chunks, wanted.digest, wanted.size, f"layer {wanted.digest}")


@dataclass(frozen=True, slots=True)
class BlobLayer(CheckedBlob):
    """A blob that is a file system layer."""

    diff_id: str


@dataclass(frozen=True, slots=True)
class ImageValue:
    """An image whose documents are in memory."""

    name: str
    manifest: Manifest
    raw_manifest: bytes
    config: ImageConfig
    raw_config: bytes
    layers: Sequence[Layer]

    @property
    def platform(self) -> Platform:
        """What the image runs on."""
        return self.config.platform


@dataclass(frozen=True, slots=True)
class ArtifactValue:
    """An artifact whose documents are in memory."""

    name: str
    manifest: Manifest
    raw_manifest: bytes
    raw_config: bytes
    layers: Sequence[Blob]
    platform: None = None


def open_file(path: Path, offset: int = 0, size: int | None = None) -> OpenBlob:
    """Open ``size`` bytes of the file from ``offset`` on (None: to its end), in chunks."""

    @contextmanager
    def opened() -> Iterator[Iterator[bytes]]:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            yield _chunks(file.read, size)

    return opened


def _chunks(read: Callable[[int], bytes | None], size: int | None) -> Iterator[bytes]:
    left = size
    while left is None or left > 0:
        chunk = read(CHUNK if left is None else min(CHUNK, left))
        if not chunk:
            return
        if left is not None:
            left -= len(chunk)
        yield chunk


def parse_image(
    name: str,
    raw_manifest: bytes,
    raw_config: bytes,
    open_blob: Callable[[Descriptor], OpenBlob],
    *,
    origin: RegistryReference | None = None,
) -> Image:
    """An image from its two documents (already checked against their digests)."""
    manifest = parse_manifest(raw_manifest, f"the manifest of {name}")
    config = ImageConfig.parse(raw_config, name)
    if len(config.diff_ids) != len(manifest.layers):
        raise ImageError(
            f"{name} has {len(manifest.layers)} layers in its manifest but {len(config.diff_ids)} in its "
            "configuration; push or save it again"
        )
    layers = [
        BlobLayer(descriptor, open_blob(descriptor), diff_id, origin=origin)
        for descriptor, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
    ]
    return ImageValue(name, manifest, raw_manifest, config, raw_config, layers)


def compose(
    name: str, config: ImageConfig, layers: Sequence[Layer], annotations: Mapping[str, str] | None = None
) -> Image:
    """An OCI image of this configuration and these layers."""
    raw_config = config.dump()
    manifest = Manifest(
        schema_version=2,
        media_type=media.OCI_MANIFEST,
        config=Descriptor(media.OCI_CONFIG, digest_bytes(raw_config), len(raw_config)),
        layers=tuple(layer.descriptor for layer in layers),
        annotations=annotations or None,
    )
    return ImageValue(name, manifest, dump(manifest), config, raw_config, layers)


def compose_artifact(
    name: str,
    artifact_type: str,
    config: tuple[str, bytes],
    blobs: Sequence[Blob],
    *,
    subject: Descriptor | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Artifact:
    """An OCI artifact of this type, configuration (media type and bytes) and these blobs.

    ``subject`` is the manifest that it is attached to.
    """
    config_type, raw_config = config
    manifest = Manifest(
        schema_version=2,
        media_type=media.OCI_MANIFEST,
        artifact_type=artifact_type,
        config=Descriptor(config_type, digest_bytes(raw_config), len(raw_config)),
        layers=tuple(blob.descriptor for blob in blobs),
        subject=subject,
        annotations=annotations or None,
    )
    return ArtifactValue(name, manifest, dump(manifest), raw_config, blobs)
