"""What an image, or any other artifact, is to the rest of slimgpu: small read-only protocols.

Every store reads to an `Image` or an `Artifact` and writes from one; a change makes a new value
(`slimgpu.oci.mutate`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from slimgpu.oci.config import ImageConfig
    from slimgpu.oci.manifest import Descriptor, Manifest, Platform

CHUNK = 1024 * 1024
"""Bytes in which blobs are passed around: large enough that Python's cost a chunk vanishes."""


class Blob(Protocol):
    """What a manifest lists as a layer, whatever it holds."""

    @property
    def descriptor(self) -> Descriptor:
        """Type, digest and size of the blob as it is stored."""

    def open(self) -> AbstractContextManager[Iterator[bytes]]:
        """The stored blob in chunks. The last one is followed by a check of digest and size."""


class Artifact(Protocol):
    """A manifest with what it names; an image is one of many kinds."""

    @property
    def name(self) -> str:
        """How the user named it, for messages."""

    @property
    def manifest(self) -> Manifest:
        """The parsed manifest."""

    @property
    def raw_manifest(self) -> bytes:
        """The manifest's bytes; their digest is the artifact's."""

    @property
    def raw_config(self) -> bytes:
        """The configuration's bytes, which ``manifest.config`` describes."""

    @property
    def platform(self) -> Platform | None:
        """What it runs on; None for what does not run."""

    @property
    def layers(self) -> Sequence[Blob]:
        """The blobs in the manifest's order."""


class Layer(Blob, Protocol):
    """One file system layer: a tar archive, mostly compressed."""

    @property
    def diff_id(self) -> str:
        """Digest of the uncompressed tar."""


class Image(Artifact, Protocol):
    """One image of one platform."""

    @property
    def config(self) -> ImageConfig:
        """The parsed configuration."""

    @property
    def layers(self) -> Sequence[Layer]:
        """The layers, lowest first."""
