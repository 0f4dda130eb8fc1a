"""Descriptors, manifests and indexes, with pydantic only where JSON comes in and goes out.

Sources: https://github.com/opencontainers/image-spec/blob/v1.1.0/manifest.md and image-index.md,
https://distribution.github.io/distribution/spec/manifest-v2-2/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, alias_generators

from slimgpu.errors import ImageError
from slimgpu.oci import media
from slimgpu.oci.digest import Digest, digest_bytes

_CAMEL = ConfigDict(alias_generator=alias_generators.to_camel, populate_by_name=True)
_MAX_DOCUMENT = 4 * 1024 * 1024  # what registries accept as a manifest

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on; ``os.version`` and ``os.features`` play no part on Linux."""

    __pydantic_config__: ClassVar[ConfigDict] = _CAMEL
    architecture: str
    os: str
    variant: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    @classmethod
    def parse(cls, text: str) -> Platform:
        """``'linux/arm64/v8'``; ValueError when it is not of that form."""
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(parts):
            raise ValueError(f"{text!r} is not a platform; write it like linux/amd64")
        return cls(os=parts[0], architecture=parts[1], variant=parts[2] if len(parts) > 2 else None)  # noqa: PLR2004


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A pointer to content: its type, digest and size in bytes."""

    __pydantic_config__: ClassVar[ConfigDict] = _CAMEL
    media_type: str
    digest: Digest
    size: Annotated[int, Field(ge=0)]
    urls: tuple[str, ...] | None = None
    annotations: Mapping[str, str] | None = None
    platform: Platform | None = None
    artifact_type: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image (or artifact): a configuration and layers, lowest first."""

    __pydantic_config__: ClassVar[ConfigDict] = _CAMEL
    schema_version: Annotated[int, Field(ge=2, le=2)]
    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str | None = None
    artifact_type: str | None = None
    subject: Descriptor | None = None
    annotations: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Index:
    """Several manifests under one name, mostly one per platform."""

    __pydantic_config__: ClassVar[ConfigDict] = _CAMEL
    schema_version: Annotated[int, Field(ge=2, le=2)]
    manifests: tuple[Descriptor, ...] = field(default=())
    media_type: str | None = None
    annotations: Mapping[str, str] | None = None


_MANIFEST: TypeAdapter[Manifest] = TypeAdapter(Manifest)
_INDEX: TypeAdapter[Index] = TypeAdapter(Index)


def parse_manifest(data: bytes, what: str) -> Manifest:
    """The manifest in ``data``; `ImageError` naming ``what`` and the first thing wrong with it."""
    return _parse(_MANIFEST, data, what)


def parse_index(data: bytes, what: str) -> Index:
    """The index in ``data``; `ImageError` naming ``what`` and the first thing wrong with it."""
    return _parse(_INDEX, data, what)


def _parse(adapter: TypeAdapter[T], data: bytes, what: str) -> T:
    if len(data) > _MAX_DOCUMENT:
        raise ImageError(f"{what} is {len(data)} bytes long; a manifest has at most {_MAX_DOCUMENT}")
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ImageError(f"{what} is not a valid manifest: {where}: {first['msg']}") from error


def dump(document: Manifest | Index) -> bytes:
    """The document as JSON, always the same bytes for the same value."""
    adapter: TypeAdapter[Any] = _MANIFEST if isinstance(document, Manifest) else _INDEX
    return adapter.dump_json(document, by_alias=True, exclude_none=True, indent=2)


def choose(index: Index, wanted: Platform, what: str) -> Descriptor:
    """The image in ``index`` for ``wanted``.

    Attestations (platform ``unknown/unknown``) are skipped; an index of a single image without a platform
    gives that image, as layouts written by skopeo and umoci have it.
    """
    images = [m for m in index.manifests if not _is_attestation(m) and m.artifact_type is None]
    fitting = [m for m in images if m.platform is not None and _fits(m.platform, wanted)]
    if fitting:
        return fitting[0]
    if len(images) == 1 and images[0].platform is None:
        return images[0]
    offered = ", ".join(str(m.platform) for m in images if m.platform is not None) or "none"
    raise ImageError(f"{what} has no image for {wanted}; it offers {offered} (choose with --platform)")


def _is_attestation(manifest: Descriptor) -> bool:
    if (manifest.annotations or {}).get("vnd.docker.reference.type") == "attestation-manifest":
        return True
    return manifest.platform is not None and manifest.platform.os == "unknown"


def _fits(offered: Platform, wanted: Platform) -> bool:
    same = (offered.os, offered.architecture) == (wanted.os, wanted.architecture)
    return same and (wanted.variant is None or offered.variant in (None, wanted.variant))


def referrer(manifest: Manifest, data: bytes) -> Descriptor:
    """The artifact with this manifest (parsed, and its bytes) as a list of what is attached to its subject names it.

    Source: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#pushing-manifests-with-subject
    """
    return Descriptor(
        manifest.media_type or media.OCI_MANIFEST,
        digest_bytes(data),
        len(data),
        annotations=manifest.annotations,
        artifact_type=manifest.artifact_type or manifest.config.media_type,
    )


def referrers_of_type(found: Iterable[Descriptor], artifact_type: str | None) -> tuple[Descriptor, ...]:
    """Those of one type (None: of any), each once."""
    unique = {entry.digest: entry for entry in found if artifact_type in (None, entry.artifact_type)}
    return tuple(unique.values())


def is_index(media_type: str | None, data: bytes) -> bool:
    """Whether a document fetched as ``media_type`` (None: unknown) is an index rather than a manifest."""
    if media_type in media.INDEXES:
        return True
    if media_type in media.MANIFESTS:
        return False
    return b'"manifests"' in data and b'"layers"' not in data
