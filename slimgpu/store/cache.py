"""The local cache: layers unpacked to plain tar files, and facts derived from them.

::

    <root>/layers/<hex>.tar      an uncompressed layer, named by its diff id
    <root>/layers/<hex>.seen     the boot during which it was last known to be right
    <root>/derived/<kind>/<hex>  what some computation made of it, behind its sha256 and a newline
    <root>/tmp/                  what running processes need

Content is written to a temporary name and renamed, so a killed process leaves nothing wrong behind; its temporary
files go when the same layer, or what was derived under a lock, is next asked for. Spooled layers are not fsynced (a
multi-gigabyte wait for what can be fetched again); instead a layer that was written before the last boot is hashed
once more before it is used, since only a power loss can have torn it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
from filelock import FileLock

from slimgpu.oci.digest import verified
from slimgpu.parallel import readahead
from slimgpu.store.files import atomic_file, remove_partials
from slimgpu.store.inflate import inflate
from slimgpu.store.workspace import workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from slimgpu.oci.image import Layer
    from slimgpu.progress import Task

_DIRECTORY_VARIABLE = "SLIMGPU_CACHE_DIR"


def default_cache_directory() -> Path:
    """``SLIMGPU_CACHE_DIR``, else the platform's cache directory for slimgpu."""
    chosen = os.environ.get(_DIRECTORY_VARIABLE)
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("slimgpu"))


class Cache:
    """A cache directory; any number of processes may use one at the same time."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_cache_directory()
        self._layers = self.root / "layers"

    def temporary_directory(self, purpose: str) -> AbstractContextManager[Path]:
        """A directory on the cache's disk for what a single run needs; ``purpose`` is a part of its name."""
        return workspace(self.root / "tmp", purpose)

    def layer(self, layer: Layer, task: Task) -> Path:
        """The layer's uncompressed tar as a file, spooled now if it is not there yet.

        ``task`` advances by the stored bytes (those of the compressed blob). Raises `DigestError` when the
        blob or the tar does not match its digest.
        """
        path = self._layers / f"{_hex(layer.diff_id)}.tar"
        self._layers.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            remove_partials(path)
            if self._is_sound(path, layer.diff_id):
                task.advance(layer.descriptor.size)
            else:
                _spool(layer, path, task)
                self._mark_seen(path)
        return path

    def _is_sound(self, path: Path, diff_id: str) -> bool:
        if not path.exists():
            return False
        if _read_text(path.with_suffix(".seen")) == _boot_id():
            return True
        if _hash_file(path) != diff_id:
            return False
        self._mark_seen(path)
        return True

    @staticmethod
    def _mark_seen(path: Path) -> None:
        with atomic_file(path.with_suffix(".seen"), sync=False) as file:
            file.write(_boot_id().encode())

    def derived(self, kind: str, digest: str, compute: Callable[[], bytes]) -> bytes:
        """``compute()``'s result, kept under ``kind`` (which names its version) and ``digest``."""
        path = self._derived(kind, digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(path.name + ".lock")):
            remove_partials(path)
            data = self.recall(kind, digest)
            if data is None:
                data = compute()
                self.keep(kind, digest, data)
            return data

    def recall(self, kind: str, digest: str) -> bytes | None:
        """What was kept; None when nothing was, or when it is damaged."""
        return _read_checked(self._derived(kind, digest))

    def keep(self, kind: str, digest: str, data: bytes) -> None:
        """Keep what follows from ``digest`` alone; processes that keep the same at once do no harm."""
        with atomic_file(self._derived(kind, digest), sync=False) as file:
            file.write(_checksum(data) + b"\n" + data)  # tells what a power loss has torn

    def _derived(self, kind: str, digest: str) -> Path:
        return self.root / "derived" / kind / _hex(digest)


def _hex(digest: str) -> str:
    return digest.partition(":")[2]


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _read_checked(path: Path) -> bytes | None:
    """What follows the checksum in the first line; None when the file is missing or damaged."""
    try:
        checksum, _, data = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    return data if checksum == _checksum(data) else None


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def _boot_id() -> str:
    return _read_text(Path("/proc/sys/kernel/random/boot_id")) or "unknown boot"


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _spool(layer: Layer, path: Path, task: Task) -> None:
    """Fetch and check, inflate, check, and write, each in a thread of its own."""
    what = f"layer {layer.descriptor.digest}"
    with layer.open() as stored, atomic_file(path, sync=False) as file:
        tar = unpacked(_counted(stored, task), what)
        for chunk in readahead(verified(tar, layer.diff_id, None, f"the unpacked {what}")):
            file.write(chunk)


def unpacked(stored: Iterable[bytes], what: str) -> Iterator[bytes]:
    """A blob's uncompressed bytes, with reading and inflating in a thread each."""
    return readahead(inflate(readahead(stored), what))


def _counted(chunks: Iterable[bytes], task: Task) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        task.advance(len(chunk))
