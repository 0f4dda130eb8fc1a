"""The memory of a region: its files' bytes, and which chunks are there; all that it takes to fill it.

It knows no index, so that the processes which unpack chunks (`slimgpu.weights.unpacker`) start without reading one.
"""

from __future__ import annotations

import mmap
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from slimgpu.errors import DestinationError
from slimgpu.weights.stripes import Stripes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MISSING: Final = 0
WHOLE: Final = 1
PLANES: Final = 2
"""The chunk's planes one after another, for a GPU to merge (`slimgpu.weights.codec.decode_planes`)."""


class Buffer:
    """``total`` bytes and the states of ``chunks`` chunks, which are open in any number of threads and processes."""

    def __init__(self, folder: Path, total: int, chunks: int) -> None:
        self.folder = folder
        self.total = total
        self.chunks = chunks
        self._open = ExitStack()
        try:
            self._data = Stripes(folder, total)
            self._data.open(self._open)
            self._state = self._open.enter_context((folder / "state").open("r+b", buffering=0))
            self.state = self._open.enter_context(mmap.mmap(self._state.fileno(), max(chunks, 1)))
            """A byte for each chunk."""
        except BaseException:
            self._open.close()
            raise

    def fill(self, chunk: int, places: Iterable[int], data: memoryview, state: int) -> None:
        """Fill in a chunk at all of its places; `DestinationError` when the memory or the disk is full."""
        try:
            for place in places:
                self._data.write(data, place)
        except OSError as error:
            raise full(self.folder, error) from error
        self.state[chunk] = state

    def view(self) -> memoryview:
        """All bytes, in this process alone: what is written to them, nobody else sees.

        Only what `state` says is there is what it should be. The view stays valid when the buffer is closed.
        """
        return self._data.view()

    def close(self) -> None:
        """Let go of the files."""
        self._open.close()


def full(folder: Path, error: OSError) -> DestinationError:
    """What to tell when a region's ``folder`` takes no more."""
    return DestinationError(
        f"{folder.parent} is full ({error.strerror}); set SLIMGPU_MEMORY_DIR to a larger file system"
    )


def create(folder: Path, total: int, chunks: int) -> None:
    """Make the files of a buffer in an empty folder; raises OSError."""
    Stripes(folder, total).create()
    # Not sparse: where there is no room for a page, touching it in a mapping kills the process.
    (folder / "state").write_bytes(bytes(max(chunks, 1)))
