"""Fetching weights into this machine's memory ahead of the program that will ask for them. Torch is never imported.

Of the 0.19 s until the first request, Python and click take 60 ms, requests 75 ms and our own modules the rest.
pydantic (100 ms) is imported when the manifest has come, and numpy when there is something to decode.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slimgpu.weights import region as regions
from slimgpu.weights.artifact import open_weights
from slimgpu.weights.attach import attached
from slimgpu.weights.tiers import is_on_disk, present_folders, remove_unused

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from slimgpu.oci.reference import Reference
    from slimgpu.store.context import Context
    from slimgpu.weights.index import Index

_GPU: Final = Path("/proc/driver/nvidia/version")


def has_gpu() -> bool:
    """Whether this machine has a GPU that could merge planes."""
    return _GPU.exists()


@dataclass(frozen=True, slots=True)
class Prefetched:
    """What is in memory now, or on the disk where memory has no room."""

    folder: Path
    """Where it is."""
    index: str
    """The digest of the artifact's index, which names the folder."""
    bytes: int
    """Of all files, once decoded."""
    fetched: int
    """Stored bytes that this process brought, or waited for."""
    seconds: float
    on_disk: bool
    """Whether it is in the cache's directory."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """What `drop` found."""

    bytes: int
    """What it took, of memory or disk; 0 when nothing was there."""
    used: bool
    """Whether a process has it open: it is no longer kept, and goes when that one ends."""


@contextmanager
def prefetched(
    reference: Reference, context: Context, begun: threading.Event, *, keep: bool, planes: bool
) -> Iterator[Prefetched]:
    """All of the artifact that ``reference`` names in memory, or its cache's disk where memory is too small.

    ``keep`` leaves it there when the block ends; else it goes, unless another process uses or keeps it. ``planes``
    leaves merging to the program's GPU; ``begun`` is set before anything is made that has to go again. Interrupted,
    what has been fetched stays as long as ``keep`` says, and the next start goes on. Raises what opening an artifact
    raises, and `DestinationError` when there is no room.
    """
    began = time.monotonic()

    def all_chunks(index: Index) -> range:
        begun.set()  # from now on there is something to tidy up
        return range(len(index.chunks))

    with attached(reference, context, all_chunks, keep=keep) as filling:
        index, region = filling.region.index, filling.region
        missing = sum(index.chunks[number].stored for number in filling.wanted if not region.has(number))
        with filling.running(planes=planes):
            filling.finish()
        total = sum(file.size for file in index.files)
        on_disk = is_on_disk(region.folder, context.cache)
        digest = f"sha{4 * len(region.folder.name)}:{region.folder.name}"  # sha256, or sha512 of other packers
        yield Prefetched(region.folder, digest, total, missing, time.monotonic() - began, on_disk)


def drop(reference: Reference, context: Context) -> Dropped:
    """Give back what an earlier `prefetched` kept of the artifact; raises what opening an artifact raises."""
    with open_weights(reference, context) as weights:
        digest = weights.artifact.manifest.config.digest
    size, used = 0, False
    for folder in present_folders(context.cache, digest):  # in memory, and maybe on the disk, too
        size += _taken(folder)
        regions.forget_kept(folder)
        used |= not remove_unused(folder)
    return Dropped(size, used=used)


def _taken(folder: Path) -> int:
    size = 0
    with suppress(FileNotFoundError):  # somebody else drops it, too
        for file in folder.iterdir():
            size += file.stat().st_blocks * 512
    return size
