from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from slimgpu.store.files import atomic_file, write_blob

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def mask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def test_many_threads_leave_the_umask_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting the mask to read it, as the only call for it does, is a race between threads."""
    before = mask()
    real = os.umask

    def slow(value: int) -> int:
        found = real(value)
        time.sleep(0.001)  # lets another thread run between setting the mask and setting it back
        return found

    monkeypatch.setattr(os, "umask", slow)

    def write(number: int) -> int:
        with atomic_file(tmp_path / str(number), sync=False) as file:
            file.write(b"x")
        return (tmp_path / str(number)).stat().st_mode & 0o777

    with ThreadPoolExecutor(8) as pool:
        modes = set(pool.map(write, range(100)))
    monkeypatch.undo()
    assert mask() == before
    assert modes == {0o666 & ~before}


def test_a_blob_is_named_by_its_content(tmp_path: Path) -> None:
    digest, size, path = write_blob(tmp_path, [b"ab", b"", b"c" * 3_000_000])
    content = b"ab" + b"c" * 3_000_000
    assert (digest, size) == (f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))
    assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == [digest.removeprefix("sha256:")]


def test_a_blob_whose_source_fails_leaves_nothing(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"x"
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_blob(tmp_path, chunks())
    assert list((tmp_path / "sha256").iterdir()) == []
