"""Where weights are kept on this machine, and how much of it: memory first, then the disk.

The memory tier holds decoded files (`slimgpu.weights.region`) in a tmpfs that processes share; the disk tier holds
blobs as they are stored (`slimgpu.weights.keep`). Each has a bound, and what was used longest ago goes first.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slimgpu.errors import UsageError
from slimgpu.units import parse_size
from slimgpu.weights.keep import BlobKeeper
from slimgpu.weights.region import is_kept, tier_lock

if TYPE_CHECKING:
    from slimgpu.store.cache import Cache

_MEMORY_DIRECTORY: Final = "SLIMGPU_MEMORY_DIR"
_MEMORY_SIZE: Final = "SLIMGPU_MEMORY_SIZE"
_DISK_SIZE: Final = "SLIMGPU_WEIGHTS_CACHE_SIZE"
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - what processes share on Linux
_SHARE: Final = 0.5
"""Of a file system that a tier may take unless a size is set."""


def claim_folder(cache: Cache, digest: str, needed: int) -> Path:
    """The folder of the region for the index with this ``digest``, where ``needed`` bytes of it have room.

    That is where a process began it; else shared memory, or the cache's disk when it doesn't fit there.
    """
    name = digest.partition(":")[2]
    tiers = [_memory(), cache.root / "weights" / "regions"]
    for tier in tiers:
        if (tier / name / "index").exists():
            return tier / name
    fitting = [tier for tier in tiers[:-1] if _has_room(tier, needed)] or tiers[-1:]
    make_room(fitting[0], needed)
    return fitting[0] / name


def _memory() -> Path:
    chosen = os.environ.get(_MEMORY_DIRECTORY)
    return Path(chosen) if chosen else _SHARED_MEMORY / f"slimgpu-{os.getuid()}"


def _has_room(tier: Path, needed: int) -> bool:
    parent = tier if tier.is_dir() else tier.parent
    return parent.is_dir() and needed <= _bound(parent, _MEMORY_SIZE)


def _bound(folder: Path, variable: str) -> int:
    """The bytes that a tier may take."""
    text = os.environ.get(variable)
    if text is None:
        total = os.statvfs(folder)
        return int(total.f_blocks * total.f_frsize * _SHARE)
    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(f"{variable}: {error}") from error


def make_room(folder: Path, needed: int) -> None:
    """Make the tier's folder, and remove regions that nobody uses until ``needed`` more bytes are within bounds.

    Those that nobody wanted to keep go first: their processes were killed. Then the least recently used go.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    limit = _bound(folder, _MEMORY_SIZE) - needed
    used = 0
    for region, _, size in sorted(_regions(folder), key=lambda found: found[1], reverse=True):
        if not is_kept(region) and remove_unused(region):
            continue
        used += size
        if used > limit:
            remove_unused(region)


def _regions(folder: Path) -> list[tuple[Path, float, int]]:
    """Path, time of last use and bytes in use of each region."""
    found = []
    for index in folder.glob("*/index"):
        with suppress(FileNotFoundError):
            facts = (index.parent / "data").stat()
            found.append((index.parent, index.parent.stat().st_mtime, facts.st_blocks * 512))
    return found


def remove_unused(region: Path) -> bool:
    """Remove a region unless a process has it open; whether it went."""
    try:
        with tier_lock(region.parent), (region / "state").open("rb") as state:
            fcntl.flock(state, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(region, ignore_errors=True)
    except (FileNotFoundError, BlockingIOError):
        return False
    return True


def disk_tier(cache: Cache) -> BlobKeeper:
    """Blobs on the cache's disk."""
    root = cache.root / "weights"
    root.mkdir(parents=True, exist_ok=True)
    return BlobKeeper(root, _bound(root, _DISK_SIZE))
