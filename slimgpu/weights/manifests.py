"""Manifests of what the local disk has blobs of, so that this machine can hand them out to its neighbours.

::

    <root>/manifests/<hex>               a manifest
    <root>/names/<repository>/<tag>      the digest that the tag meant when it was last asked for
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from slimgpu.oci.digest import digest_bytes, is_digest
from slimgpu.store.files import atomic_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slimgpu.oci.reference import RegistryReference

FOLDER: Final = "weights"
"""Of the cache's directory, where the disk tier and its manifests lie."""


class ManifestKeeper:
    """A folder of manifests that any number of processes share."""

    def __init__(self, root: Path) -> None:
        self._manifests = root / "manifests"
        self._names = root / "names"

    def keep(self, reference: RegistryReference, data: bytes) -> None:
        """Remember the manifest and what it is called; on a disk that is full, nothing."""
        digest = digest_bytes(data)
        folder = self._folder(reference.repository)
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            path = self._path(digest)
            if not path.exists():
                _write(path, data)
            if reference.tag and not reference.digest:
                _write(folder / reference.tag, digest.encode())

    def _path(self, digest: str) -> Path:
        return self._manifests / digest.partition(":")[2]

    def _folder(self, repository: str) -> Path:
        return self._names / quote(repository, safe="")

    def find(self, repository: str, identifier: str) -> bytes | None:
        """The manifest with this tag or digest; None when it is not there, or torn."""
        try:
            folder = self._folder(repository)
            if not is_digest(identifier):
                identifier = (folder / identifier).read_text()
            data = self._path(identifier).read_bytes() if folder.is_dir() else b""
        except (OSError, UnicodeDecodeError):
            return None
        return data if digest_bytes(data) == identifier else None

    def with_config(self, digest: str) -> bytes | None:
        """A manifest whose configuration has this digest."""
        for path, data in self._read():
            is_whole = digest_bytes(data) == f"sha256:{path.name}"
            if is_whole and json.loads(data)["config"]["digest"] == digest:
                return data
        return None

    def tags(self, repository: str) -> list[str] | None:
        """All tags of a repository; None when nothing of it is here."""
        try:
            return sorted(path.name for path in self._folder(repository).iterdir() if not path.name.startswith("."))
        except OSError:
            return None

    def all(self) -> Iterator[bytes]:
        """Every manifest."""
        for _, data in self._read():
            yield data

    def _read(self) -> Iterator[tuple[Path, bytes]]:
        with suppress(OSError):
            for path in self._manifests.iterdir():
                if not path.name.startswith("."):  # what is being written may go meanwhile
                    yield path, path.read_bytes()

    @property
    def changed(self) -> int:
        """A number that is another one when manifests have come or gone."""
        try:
            return self._manifests.stat().st_mtime_ns
        except OSError:
            return 0


def _write(path: Path, data: bytes) -> None:
    with atomic_file(path, sync=False) as file:
        file.write(data)
