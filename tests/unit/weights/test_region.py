from __future__ import annotations

import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from slimgpu.errors import DestinationError
from slimgpu.weights.buffer import MISSING, PLANES, WHOLE
from slimgpu.weights.fetch import Fetcher
from slimgpu.weights.region import Region, filling, is_kept, mark_kept, opened
from slimgpu.weights.tensors import tensor_bytes
from slimgpu.weights.tiers import remove_unused
from tests.support.weights import Silence, child, ended, noise, pack_into, write_model
from tests.support.weights import opened as opened_artifact

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slimgpu.weights.index import Index

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    write_model(tmp_path / "model")
    (tmp_path / "model" / "noise").write_bytes(noise(2_000_000))
    name, _ = pack_into(tmp_path / "layout", tmp_path / "model")
    with opened_artifact(name) as (found, _):
        return found


@contextmanager
def region_in(folder: Path, index: Index) -> Iterator[Region]:
    with opened(folder, *index.dump(), index) as region:
        yield region


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """A small tmpfs at the directory; mounting takes root."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def fill(region: Region) -> None:
    for number, chunk in enumerate(region.index.chunks):
        region.write(number, memoryview(noise(chunk.size, number)))


def test_a_new_region_has_nothing(tmp_path: Path, index: Index) -> None:
    with region_in(tmp_path / "tier" / "r", index) as region:
        assert not any(map(region.has, range(len(index.chunks))))
        assert (tmp_path / "tier").stat().st_mode & 0o777 == 0o700
        assert not any(file.stat().st_blocks for file in region.folder.glob("data.*"))
        assert len(region.view()) == index.total


def test_what_one_writes_others_see(tmp_path: Path, index: Index) -> None:
    with region_in(tmp_path / "r", index) as one, region_in(tmp_path / "r", index) as other:
        view = other.view()
        fill(one)
        for number, places in enumerate(index.places):
            assert other.has(number)
            for place in places:
                assert view[place : place + index.chunks[number].size] == noise(index.chunks[number].size, number)


def test_what_a_program_writes_nobody_else_sees(tmp_path: Path, index: Index) -> None:
    with region_in(tmp_path / "r", index) as region:
        fill(region)
        view, other = region.view(), region.view()
        before = bytes(other[:100])
        view[:100] = bytes(100)
        assert bytes(other[:100]) == before
        assert (region.folder / "data.0").read_bytes()[:100] == before


def test_a_view_outlives_its_region(tmp_path: Path, index: Index) -> None:
    with region_in(tmp_path / "r", index) as region:
        fill(region)
        view = region.view()
        before = bytes(view)
    assert remove_unused(tmp_path / "r")
    assert view == before


def test_a_region_in_use_is_not_removed(tmp_path: Path, index: Index) -> None:
    with region_in(tmp_path / "r", index):
        assert not remove_unused(tmp_path / "r")
        with region_in(tmp_path / "r", index):
            pass
        assert not remove_unused(tmp_path / "r")
    assert remove_unused(tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_an_opened_region_stays_what_it_was(tmp_path: Path, index: Index) -> None:
    with region_in(tmp_path / "r", index) as region:
        fill(region)
    with region_in(tmp_path / "r", index) as region:
        assert all(map(region.has, range(len(index.chunks))))
        assert not is_kept(region.folder)
        mark_kept(region.folder)
        assert is_kept(region.folder)


def test_only_one_fills(tmp_path: Path, index: Index) -> None:
    with region_in(tmp_path / "r", index), filling(tmp_path / "r") as first, filling(tmp_path / "r") as second:
        assert (first, second) == (True, False)
    with filling(tmp_path / "r") as again:
        assert again


def written(index: Index, folder: Path) -> Path:
    media_type, data = index.dump()
    (folder / "index").write_bytes(media_type.encode() + b"\n" + data)
    return folder / "index"


def test_processes_that_open_and_remove_at_once(tmp_path: Path, index: Index) -> None:
    file = written(index, tmp_path)
    for process in [child("churn-region", tmp_path / "r", file, 40) for _ in range(5)]:
        ended(process)
    assert not (tmp_path / "r").exists()


def test_what_a_killed_maker_left_is_made_again(tmp_path: Path, index: Index) -> None:
    with region_in(tmp_path / "r", index) as region:
        fill(region)
    (tmp_path / "r" / "index").unlink()
    with region_in(tmp_path / "r", index) as region:
        assert not any(map(region.has, range(len(index.chunks))))


@pytest.mark.parametrize("size", ["4k", "8k", "16k", "20k", "24k", "28k", "32k", "64k", "1m"])
def test_a_full_memory_is_one_sentence(tmp_path: Path, index: Index, size: str) -> None:
    """However little there is: a page that cannot be had would kill a process that touches it in a mapping."""
    file = written(index, tmp_path)
    with small_disk(tmp_path / "memory", size):
        [sentence] = ended(child("fill-region", tmp_path / "memory" / "r", file)).splitlines()
        assert "SLIMGPU_MEMORY_DIR" in sentence


def test_a_chunk_that_did_not_fit_is_not_there(tmp_path: Path, index: Index) -> None:
    with small_disk(tmp_path / "memory", "1m"), region_in(tmp_path / "memory" / "r", index) as region:
        with pytest.raises(DestinationError, match=r"is full .No space left on device.; set SLIMGPU_MEMORY_DIR"):
            fill(region)
        view = region.view()
        there = [number for number in range(len(index.chunks)) if region.has(number)]
        assert 0 < len(there) < len(index.chunks)
        for number in there:
            for place in index.places[number]:
                size = index.chunks[number].size
                assert view[place : place + size] == noise(size, number)
        del view


def test_a_memory_that_is_full_before_it_is_filled_is_one_sentence(tmp_path: Path, index: Index) -> None:
    """And whoever comes when there is room again may fill it."""
    with small_disk(tmp_path / "disk", "4m"), region_in(tmp_path / "disk" / "region", index) as region:
        other = tmp_path / "disk" / "other"
        with suppress(OSError):
            other.write_bytes(bytes(5_000_000))
        with pytest.raises(DestinationError, match=r"is full .No space left on device."), filling(region.folder):
            pass
        other.unlink()
        with filling(region.folder) as ours:
            assert ours


def test_a_tier_that_cannot_be_made_is_one_sentence(tmp_path: Path, index: Index) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DestinationError, match="cannot hold the weights"),
        region_in(tmp_path / "file" / "tier" / "r", index),
    ):
        pass


def test_tensors_are_whole_whatever_form_their_chunks_have(tmp_path: Path, index: Index) -> None:
    with opened_artifact(f"oci:{tmp_path / 'layout'}:v1") as (_, source):
        found = {}
        for name, planes in (("whole", False), ("planes", True)):
            with region_in(tmp_path / name, index) as region:
                Fetcher(index, [source], region, planes=planes).run(range(len(index.chunks)), Silence())
                view = region.view()
                found[name] = {tensor.name: bytes(tensor_bytes(region, view, tensor)) for tensor in index.tensors}
                states = set(region.state[: len(index.chunks)])
                assert states == ({WHOLE, PLANES} if planes else {WHOLE})
                assert MISSING not in states
    assert found["whole"] == found["planes"]
    files = {file.path: (tmp_path / "model" / file.path).read_bytes() for file in index.files}
    for tensor in index.tensors:
        data = files[index.files[tensor.file].path][tensor.offset : tensor.offset + tensor.size]
        assert found["whole"][tensor.name] == data
