from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.weights.keep import BlobKeeper
from tests.support.weights import child, ended, noise

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(60)
_DIGESTS = [f"sha256:{number:064x}" for number in range(20)]


def recalled(keeper: BlobKeeper, digest: str, offset: int, size: int) -> bytes | None:
    buffer = bytearray(size)
    return bytes(buffer) if keeper.read_into(digest, offset, memoryview(buffer)) else None


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), max_size=8),
    st.integers(0, 70),
    st.integers(1, 40),
)
def test_what_is_there_is_given_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, int]], offset: int, size: int
) -> None:
    keeper = BlobKeeper(tmp_path_factory.mktemp("disk"), 10**6)
    blob = noise(200)
    for start, length in parts:
        keeper.keep(_DIGESTS[0], start, memoryview(blob)[start : start + length])
    there = {at for start, length in parts for at in range(start, start + length)}
    wanted = set(range(offset, offset + size))
    assert recalled(keeper, _DIGESTS[0], offset, size) == (blob[offset : offset + size] if wanted <= there else None)
    assert keeper.covers(_DIGESTS[0], offset, size) == (wanted <= there)
    assert recalled(keeper, _DIGESTS[1], offset, size) is None


def test_what_is_forgotten_is_gone_and_can_come_again(tmp_path: Path) -> None:
    keeper = BlobKeeper(tmp_path, 10**6)
    keeper.keep(_DIGESTS[0], 0, memoryview(b"abc"))
    keeper.forget(_DIGESTS[0])
    keeper.forget(_DIGESTS[0])
    assert recalled(keeper, _DIGESTS[0], 0, 3) is None
    assert not list(tmp_path.rglob("*.parts"))
    keeper.keep(_DIGESTS[0], 0, memoryview(b"abc"))
    assert recalled(keeper, _DIGESTS[0], 0, 3) == b"abc"


@pytest.mark.parametrize("left", [b"", b"12345", b"\0" * 15])
def test_a_torn_record_is_none(tmp_path: Path, left: bytes) -> None:
    keeper = BlobKeeper(tmp_path, 10**6)
    keeper.keep(_DIGESTS[0], 0, memoryview(b"abc"))
    path = keeper.path(_DIGESTS[0]).with_suffix(".parts")
    path.write_bytes(path.read_bytes() + left)
    assert recalled(keeper, _DIGESTS[0], 0, 3) == b"abc"
    assert recalled(keeper, _DIGESTS[0], 0, 4) is None


def test_a_record_beyond_the_file_gives_nothing(tmp_path: Path) -> None:
    keeper = BlobKeeper(tmp_path, 10**6)
    keeper.keep(_DIGESTS[0], 0, memoryview(b"abc"))
    os.truncate(keeper.path(_DIGESTS[0]), 2)
    assert recalled(keeper, _DIGESTS[0], 0, 3) is None


def test_records_without_their_blob_are_replaced(tmp_path: Path) -> None:
    """Another process made room between a write and its record."""
    keeper = BlobKeeper(tmp_path, 10**6)
    keeper.keep(_DIGESTS[0], 0, memoryview(b"abc"))
    keeper.path(_DIGESTS[0]).unlink()
    assert recalled(keeper, _DIGESTS[0], 0, 3) is None
    keeper.keep(_DIGESTS[0], 0, memoryview(b"abc"))
    assert recalled(keeper, _DIGESTS[0], 0, 3) == b"abc"


def used(keeper: BlobKeeper) -> int:
    return sum(path.stat().st_blocks * 512 for path in keeper._root.iterdir() if not path.suffix)


def aged(keeper: BlobKeeper, number: int) -> None:
    os.utime(keeper.path(_DIGESTS[number]), ns=(number, number))


def test_the_least_recently_used_go(tmp_path: Path) -> None:
    wide = BlobKeeper(tmp_path, 10**9)
    for number in range(10):
        wide.keep(_DIGESTS[number], 0, memoryview(noise(100_000)))
        aged(wide, number)
    assert recalled(wide, _DIGESTS[3], 0, 5) is not None
    narrow = BlobKeeper(tmp_path, 450_000)
    narrow.make_room()
    left = [number for number in range(10) if narrow.path(_DIGESTS[number]).exists()]
    assert left == [3, 7, 8, 9]
    assert sorted(path.suffix for path in narrow._root.iterdir()) == [""] * 4 + [".lock"] + [".parts"] * 4


def test_the_bound_holds_while_much_is_kept(tmp_path: Path) -> None:
    keeper = BlobKeeper(tmp_path, 1_000_000)
    for number in range(20):
        keeper.keep(_DIGESTS[number], 0, memoryview(noise(200_000, number)))
        assert used(keeper) <= 1_000_000 * 9 / 8 + 200_000
        aged(keeper, number)
    assert recalled(keeper, _DIGESTS[19], 0, 200_000) == noise(200_000, 19)


def test_what_a_killed_process_began_counts_and_goes(tmp_path: Path) -> None:
    keeper = BlobKeeper(tmp_path, 300_000)
    keeper.keep(_DIGESTS[0], 0, memoryview(b"a"))
    keeper.path(_DIGESTS[1]).write_bytes(noise(400_000))  # killed before its record
    aged(keeper, 1)
    keeper.make_room()
    assert not keeper.path(_DIGESTS[1]).exists()
    assert keeper.path(_DIGESTS[0]).exists()


def test_no_room_at_all_keeps_nothing(tmp_path: Path) -> None:
    keeper = BlobKeeper(tmp_path, 0)
    keeper.keep(_DIGESTS[0], 0, memoryview(noise(100_000)))
    assert recalled(keeper, _DIGESTS[0], 0, 100) is None


@pytest.mark.parametrize("size", ["4k", "8k", "40k"])
def test_a_full_disk_keeps_nothing_wrong(tmp_path: Path, size: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], check=True)
    try:
        keeper = BlobKeeper(disk, 10**9)
        for number in range(10):
            keeper.keep(_DIGESTS[number], 0, memoryview(noise(9000, number)))
        for number in range(10):
            assert recalled(keeper, _DIGESTS[number], 0, 9000) in (None, noise(9000, number))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_disk_that_cannot_be_used_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    keeper = BlobKeeper(tmp_path / "file", 10**9)
    keeper.keep(_DIGESTS[0], 0, memoryview(b"abc"))
    assert recalled(keeper, _DIGESTS[0], 0, 3) is None


def test_many_processes_share_it(tmp_path: Path) -> None:
    for process in [child("churn-keeper", tmp_path, number) for number in range(4)]:
        ended(process)
    keeper = BlobKeeper(tmp_path, 400_000)
    keeper.make_room()
    assert used(keeper) <= 400_000
