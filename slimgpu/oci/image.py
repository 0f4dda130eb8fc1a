"""What an image is to the rest of slimgpu: two small read-only protocols.

Every store reads to an `Image` and writes from one; a change makes a new value (`slimgpu.oci.mutate`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from slimgpu.oci.config import ImageConfig
    from slimgpu.oci.manifest import Descriptor, Manifest

CHUNK = 1024 * 1024
"""Bytes in which blobs are passed around: large enough that Python's cost a chunk vanishes."""


class Layer(Protocol):
    """One file system layer: a tar archive, mostly compressed."""

    @property
    def descriptor(self) -> Descriptor:
        """Type, digest and size of the blob as it is stored."""

    @property
    def diff_id(self) -> str:
        """Digest of the uncompressed tar."""

    def open(self) -> AbstractContextManager[Iterator[bytes]]:
        """The stored blob in chunks. The last one is followed by a check of digest and size."""


class Image(Protocol):
    """One image of one platform."""

    @property
    def name(self) -> str:
        """How the user named it, for messages."""

    @property
    def manifest(self) -> Manifest:
        """The parsed manifest."""

    @property
    def raw_manifest(self) -> bytes:
        """The manifest's bytes; their digest is the image's."""

    @property
    def config(self) -> ImageConfig:
        """The parsed configuration."""

    @property
    def raw_config(self) -> bytes:
        """The configuration's bytes, which ``manifest.config`` describes."""

    @property
    def layers(self) -> Sequence[Layer]:
        """The layers, lowest first."""
