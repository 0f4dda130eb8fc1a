"""Writing chunks one after another into blobs of 256 MiB."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Final

from slimgpu.oci.manifest import Descriptor
from slimgpu.oci.mutate import CheckedBlob, open_file
from slimgpu.weights.index import CHUNKS_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from slimgpu.oci.image import Blob

BLOB: Final = 256 * 1024 * 1024
"""Bytes from which on a blob is full: clients pull several at once, and a manifest has room for their list."""
_FINISHING: Final = 4


class BlobWriter:
    """Appends chunks; a full blob is hashed, named by its digest and handed on while the next one is written."""

    def __init__(self, folder: Path, finish: Callable[[Blob], None], finishers: ThreadPoolExecutor) -> None:
        self._folder = folder / "sha256"
        self._finish = finish
        self._finishers = finishers
        self._file: IO[bytes] | None = None
        self.finished: list[Future[Blob]] = []

    def append(self, data: bytes | memoryview) -> tuple[int, int]:
        """Write a chunk; gives the number of its blob and its offset in it."""
        if self._file is None:
            self._notice_failures()
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = self._partial().open("wb")
        place = len(self.finished), self._file.tell()
        self._file.write(data)
        if self._file.tell() >= BLOB:
            self.close()
        return place

    def _notice_failures(self) -> None:
        """Raise what a blob failed with, before more of them are made in vain."""
        for blob in self.finished:
            if blob.done():
                blob.result()

    def _partial(self) -> Path:
        return self._folder / f".chunks.{len(self.finished)}.partial"

    def close(self) -> None:
        """End the present blob; `finished` then has an entry for it."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self.finished.append(self._finishers.submit(self._name, self._partial()))

    def abandon(self) -> None:
        """Let go of the present blob, which nobody will name."""
        if self._file is not None:
            self._file.close()
            self._partial().unlink(missing_ok=True)

    def _name(self, partial: Path) -> Blob:
        with partial.open("rb") as file:
            hexadecimal = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        path = self._folder / hexadecimal
        partial.replace(path)
        digest = Descriptor(CHUNKS_TYPE, f"sha256:{hexadecimal}", path.stat().st_size)
        blob = CheckedBlob(digest, open_file(path))
        self._finish(blob)
        return blob


@contextmanager
def blob_writer(folder: Path, finish: Callable[[Blob], None]) -> Iterator[BlobWriter]:
    """A writer to ``folder/sha256/<hex>``; ``finish`` is called, in a thread, with each blob that is complete."""
    with ThreadPoolExecutor(_FINISHING, thread_name_prefix="blob") as finishers:
        writer = BlobWriter(folder, finish, finishers)
        try:
            yield writer
        except BaseException:
            writer.abandon()
            finishers.shutdown(wait=False, cancel_futures=True)
            raise
