"""From a first document (a manifest or an index) to an image or artifact, for every store of blobs by digest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from slimgpu.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from slimgpu.oci.image import Artifact, Image
    from slimgpu.oci.manifest import Descriptor, Platform
    from slimgpu.oci.mutate import OpenBlob
    from slimgpu.oci.reference import RegistryReference

MAX_DOCUMENT: Final = 64 * 1024 * 1024
"""Bytes of a document that is read into memory: the index of 2 TB of weights, compressed, is as long."""
_MAX_DEPTH: Final = 3
_WEIGHTS: Final = "application/vnd.slimgpu.weights.index."
_SCHEMA1_KEY: Final = b'"fsLayers"'


class Documents(Protocol):
    """Manifests and indexes that are on this machine, and known to be right."""

    def manifest(self, reference: RegistryReference) -> bytes | None:
        """The manifest that the reference can only mean."""

    def document(self, descriptor: Descriptor) -> bytes | None:
        """What ``descriptor`` names."""


def check_document_size(size: int, what: str) -> None:
    """`ImageError` naming ``what`` when a document is too long to be read into memory."""
    if size > MAX_DOCUMENT:
        raise ImageError(f"{what} is {size} bytes long; a document of an image has at most {MAX_DOCUMENT}")


def resolve_image(
    name: str,
    media_type: str | None,
    data: bytes,
    platform: Platform,
    *,
    fetch: Callable[[Descriptor], bytes],
    open_blob: Callable[[Descriptor], OpenBlob],
    origin: RegistryReference | None = None,
) -> Image:
    """The image that the document ``data`` leads to, for ``platform``.

    ``fetch`` gives a document checked against its digest. Raises `ImageError` for schema 1, weights and what
    is no image, and what ``choose`` and ``fetch`` raise.
    """
    from slimgpu.oci.manifest import choose, is_index, parse_index, parse_manifest  # noqa: PLC0415 - pydantic: not
    from slimgpu.oci.mutate import parse_image  # noqa: PLC0415 - before the first answer

    for _ in range(_MAX_DEPTH):
        if not is_index(media_type, data):
            break
        descriptor = choose(parse_index(data, f"an index of {name}"), platform, name)
        data, media_type = fetch(descriptor), descriptor.media_type
    if _SCHEMA1_KEY in data:
        raise ImageError(f"{name} is a schema 1 image, which engines no longer read; build and push it again")
    manifest = parse_manifest(data, f"the manifest of {name}")
    if manifest.config.media_type.startswith(_WEIGHTS):
        raise ImageError(f"{name} is a weights artifact, no image; slimgpu weights list {name} shows what it holds")
    return parse_image(name, data, fetch(manifest.config), open_blob, origin=origin)


def resolve_artifact(
    name: str,
    data: bytes,
    *,
    fetch: Callable[[Descriptor], bytes],
    open_blob: Callable[[Descriptor], OpenBlob],
    origin: RegistryReference | None = None,
) -> Artifact:
    """The artifact with the manifest ``data``; an image is one, too.

    Raises `ImageError` for what is no manifest, and what ``fetch`` raises.
    """
    from slimgpu.oci.manifest import parse_manifest  # noqa: PLC0415 - pydantic: not before the first answer
    from slimgpu.oci.mutate import ArtifactValue, CheckedBlob  # noqa: PLC0415

    manifest = parse_manifest(data, f"the manifest of {name}")
    blobs = [CheckedBlob(layer, open_blob(layer), origin=origin) for layer in manifest.layers]
    return ArtifactValue(name, manifest, data, fetch(manifest.config), blobs)
