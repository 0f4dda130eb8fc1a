"""Where weights are kept on this machine, and how much of it: memory first, then the disk.

The memory tier holds decoded files (`slimgpu.weights.region`) in a tmpfs that processes share; the disk tier holds
blobs as they are stored (`slimgpu.weights.keep`). Each has a bound, and what was used longest ago goes first.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
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
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_SHARE: Final = 0.5
"""Of a file system that a tier may take unless a size is set."""


def claim_folder(cache: Cache, digest: str, needed: int) -> Path:
    """The folder of the region for the index with this ``digest``, where ``needed`` bytes of it have room.

    That is where a process began it, as long as the rest fits there, too; else shared memory, or the cache's disk when
    it doesn't fit there.
    """
    present = present_folders(cache, digest)
    for folder in present:
        if _may_grow(folder, needed, _DISK_SIZE if is_on_disk(folder, cache) else _MEMORY_SIZE):
            return folder
    name, tier, disk = digest.partition(":")[2], _memory(), _disk(cache)
    if not present and _has_room(tier, needed) and _is_ours(tier):  # which somebody else may have made meanwhile
        return tier / name
    _forget_boots(disk)
    make_room(disk, needed, _DISK_SIZE)
    return disk / name


def _may_grow(folder: Path, needed: int, variable: str) -> bool:
    """Whether the region can become ``needed`` bytes, which takes what others have that nobody uses."""
    with suppress(OSError):
        os.utime(folder)  # it is not what goes
        more = needed - _taken(folder)
        return more <= 0 or make_room(folder.parent, more, variable)
    return False


def _has_room(tier: Path, needed: int) -> bool:
    return _is_ours(tier) and needed <= _bound(_nearest(tier), _MEMORY_SIZE) and make_room(tier, needed, _MEMORY_SIZE)


def present_folders(cache: Cache, digest: str) -> list[Path]:
    """The regions that there are for the index with this ``digest``, memory first."""
    tiers = [*([_memory()] if _is_ours(_memory()) else []), _disk(cache)]
    folders = [tier / digest.partition(":")[2] for tier in tiers]
    return [folder for folder in folders if (folder / "index").exists()]


def is_on_disk(folder: Path, cache: Cache) -> bool:
    """Whether a region lies where those go that have no room in memory."""
    return folder.parent == _disk(cache)


def _disk(cache: Cache) -> Path:
    return cache.root / "weights" / "regions" / _boot()


def _memory() -> Path:
    chosen = os.environ.get(_MEMORY_DIRECTORY)
    return Path(chosen) if chosen else _SHARED_MEMORY / f"slimgpu-{os.getuid()}"


def _is_ours(memory: Path) -> bool:
    """Whether nobody else can put anything there: anyone may make a directory in shared memory, by any name."""
    if os.environ.get(_MEMORY_DIRECTORY):
        return _nearest(memory).is_dir()
    try:
        found = memory.lstat()
    except FileNotFoundError:
        return memory.parent.is_dir()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & _OTHERS_WRITE


def _nearest(tier: Path) -> Path:
    return tier if tier.is_dir() else tier.parent


def _boot() -> str:
    """Regions on a disk are not synced, so what an earlier boot left may be torn."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _forget_boots(disk: Path) -> None:
    for other in disk.parent.glob("*"):
        if other != disk:
            for region in other.glob("*/"):
                remove_unused(region)
            with suppress(OSError):
                (other / "lock").unlink(missing_ok=True)
                other.rmdir()


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


def make_room(folder: Path, needed: int, variable: str) -> bool:
    """Make the tier's folder, and remove regions that nobody uses until ``needed`` more bytes are within bounds.

    Those that nobody wanted to keep go first: their processes were killed. Then the least recently used go. Gives
    whether there is room now; ``variable`` names the bound.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return False
    limit = _bound(folder, variable) - needed
    used = 0
    for region, _, size in sorted(_regions(folder), key=lambda found: found[1], reverse=True):
        if not (is_kept(region) and (region / "index").exists()) and remove_unused(region):
            continue
        if used + size > limit and remove_unused(region):
            continue
        used += size
    free = os.statvfs(folder)
    return used <= limit and needed <= free.f_bavail * free.f_frsize


def _regions(folder: Path) -> list[tuple[Path, float, int]]:
    """Path, time of last use and bytes in use of each region, and of what is left of one."""
    found = []
    for region in folder.glob("*/"):
        with suppress(OSError):
            found.append((region, region.stat().st_mtime, _taken(region)))
    return found


def _taken(region: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in region.iterdir())


def remove_unused(region: Path) -> bool:
    """Remove a region unless a process has it open; whether it went."""
    with suppress(OSError), tier_lock(region.parent):
        if (region / "index").exists():
            with (region / "state").open("rb") as state:
                fcntl.flock(state, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(region)
        else:  # its process was killed while it was made or removed
            shutil.rmtree(region, ignore_errors=True)
        return not region.exists()
    return False


def _remove(region: Path) -> None:
    (region / "index").unlink()  # without it, it is no region, whenever we are killed
    shutil.rmtree(region, ignore_errors=True)


def disk_tier(cache: Cache) -> BlobKeeper:
    """Blobs on the cache's disk."""
    root = cache.root / "weights"
    root.mkdir(parents=True, exist_ok=True)
    return BlobKeeper(root, _bound(root, _DISK_SIZE))
