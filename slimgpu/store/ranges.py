"""Parts of blobs by position, from whatever store holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from slimgpu.errors import ImageError

if TYPE_CHECKING:
    from pathlib import Path

    from slimgpu.store.layout import Blobs


class RangeSource(Protocol):
    """Where parts of an artifact's blobs can be read; any number of threads may do so."""

    @property
    def name(self) -> str:
        """For messages."""

    def read_into(self, digest: str, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` of the blob on.

        The bytes are not checked against anything. Raises `SlimgpuError` when the source lacks them.
        """


class LayoutRanges:
    """The blobs of an OCI layout, in a directory or an archive."""

    def __init__(self, name: str, blobs: Blobs) -> None:
        self.name = name
        self._blobs = blobs

    def read_into(self, digest: str, offset: int, buffer: memoryview) -> None:
        """See `RangeSource.read_into`."""
        try:
            place = self._blobs.find(digest)
        except FileNotFoundError as error:
            raise ImageError(f"{self.name} lacks the blob {digest}; copy the artifact again") from error
        try:
            whole = place.covers(offset, len(buffer)) and _fill(place.path, place.offset + offset, buffer)
        except OSError as error:
            raise ImageError(f"the blob {digest} of {self.name} cannot be read ({error.strerror})") from error
        if not whole:
            raise ImageError(
                f"the blob {digest} of {self.name} is shorter than its index says; copy the artifact again"
            )


def _fill(path: Path, offset: int, buffer: memoryview) -> bool:
    filled = 0
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while filled < len(buffer):
            count = file.readinto(buffer[filled:])
            if not count:
                return False
            filled += count
    return True
