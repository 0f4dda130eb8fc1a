"""The page cache, of files and whole trees."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slimgpu.bench import pages

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 1 << 20


@pytest.fixture
def folder() -> Iterator[Path]:
    """On a disk: a tmpfs keeps its pages."""
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as temporary:
        yield Path(temporary)


def written(path: Path, size: int = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    return path


def test_pages_leave_the_cache_and_come_back(folder: Path) -> None:
    file = written(folder / "file")
    assert pages.resident([file]) == 1
    pages.evict([file])
    assert pages.resident([file]) == 0
    pages.warm([file])
    assert pages.resident([file]) == 1


def test_a_folder_stands_for_all_below_it(folder: Path) -> None:
    tree = folder / "tree"
    first, second = written(tree / "first"), written(tree / "deep/down/second", SIZE + 1)
    written(tree / "empty", 0)
    (tree / "pipe").mkdir()
    os.mkfifo(tree / "pipe/fifo")
    outside = written(folder / "outside")
    (tree / "link").symlink_to(outside)
    (tree / "lost").symlink_to("nowhere")
    (tree / "up").symlink_to(folder)
    os.link(first, tree / "again")
    pages.evict([tree])
    assert pages.resident([tree]) == 0
    assert pages.resident([outside]) == 1
    pages.warm([second])
    assert pages.resident([tree]) == pytest.approx(257 / 513)
    pages.warm([tree])
    assert pages.resident([tree]) == 1


def test_nothing_is_nowhere(folder: Path) -> None:
    assert pages.resident([]) == 0
    assert pages.resident([folder, written(folder / "empty", 0)]) == 0
    pages.evict([])


def test_what_is_missing_is_an_error(folder: Path) -> None:
    for function in (pages.warm, pages.evict, pages.resident):
        with pytest.raises(FileNotFoundError):
            function([folder / "missing"])  # type: ignore[operator]
