from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from slimgpu.errors import UsageError
from slimgpu.store.cache import Cache
from slimgpu.weights.index import Chunk, File, Index
from slimgpu.weights.region import mark_kept, opened
from slimgpu.weights.tiers import claim_folder, disk_tier
from tests.support.weights import noise

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SIZE = 200_000
_D = "sha256:" + "0" * 64
_INDEX = Index("slimgpu.weights.v1", _D, (), (Chunk(0, 0, _SIZE, _SIZE, "raw", 0, _D, _D),),
               (File("f", _SIZE, _D, (0,)),))  # fmt: skip


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLIMGPU_MEMORY_DIR", str(tmp_path / "memory"))
    monkeypatch.setenv("SLIMGPU_MEMORY_SIZE", "1MB")
    return tmp_path / "memory"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@contextmanager
def used(cache: Cache, number: int, *, keep: bool = True) -> Iterator[Path]:
    """A full region."""
    folder = claim_folder(cache, digest(number), _SIZE)
    with opened(folder, *_INDEX.dump(), _INDEX) as region:
        if keep:
            mark_kept(folder)
        region.write(0, memoryview(noise(_SIZE, number)))
        yield folder
    os.utime(folder, ns=(number * 10**9, number * 10**9))


def in_memory(memory: Path) -> list[int]:
    return sorted(int(path.name, 16) for path in memory.glob("*/"))


def test_memory_comes_first(memory: Path, cache: Cache) -> None:
    with used(cache, 1) as folder:
        assert folder.parent == memory
        assert claim_folder(cache, digest(1), _SIZE) == folder


def test_what_is_there_grows_within_the_bound(memory: Path, cache: Cache) -> None:
    for number in range(1, 5):
        with used(cache, number):
            pass
    with used(cache, 1) as folder:
        assert claim_folder(cache, digest(1), 700_000) == folder
        assert in_memory(memory) == [1, 4]  # those that nobody uses made room
        elsewhere = claim_folder(cache, digest(1), 1_000_001)
        assert elsewhere.is_relative_to(cache.root)
        with opened(elsewhere, *_INDEX.dump(), _INDEX):
            assert claim_folder(cache, digest(1), 1_000_001) == elsewhere
            assert claim_folder(cache, digest(1), _SIZE) == folder


def test_what_does_not_fit_goes_to_the_disk(memory: Path, cache: Cache) -> None:
    folder = claim_folder(cache, digest(1), 1_000_001)
    assert folder.is_relative_to(cache.root / "weights" / "regions")
    assert in_memory(memory) == []


def test_the_least_recently_used_make_room(memory: Path, cache: Cache) -> None:
    for number in range(1, 9):
        with used(cache, number):
            pass
    assert in_memory(memory) == [5, 6, 7, 8] or in_memory(memory) == [4, 5, 6, 7, 8]
    with used(cache, 5):
        os.utime(memory / digest(5).partition(":")[2])
    claim_folder(cache, digest(9), 700_000)
    assert in_memory(memory) == [8]  # 5 was given the time of its number when it was closed


def test_what_is_in_use_stays_and_others_go_to_the_disk(memory: Path, cache: Cache) -> None:
    with ExitStack() as stack:
        for number in range(1, 5):
            assert stack.enter_context(used(cache, number)).parent == memory
        with used(cache, 5) as folder:
            assert folder.is_relative_to(cache.root)
        assert in_memory(memory) == [1, 2, 3, 4]
    with used(cache, 6) as folder:
        assert folder.parent == memory
    assert 1 not in in_memory(memory)


def test_what_nobody_kept_goes_with_the_next_start(memory: Path, cache: Cache) -> None:
    with used(cache, 1, keep=False):
        pass  # as if it had been killed
    with used(cache, 2), used(cache, 3):
        assert in_memory(memory) == [2, 3]


@pytest.mark.parametrize("left", [("data.0",), ("data.0", "state"), ("state", "fetch", "keep")])
def test_what_is_left_of_a_region_goes_with_the_next_start(memory: Path, cache: Cache, left: tuple[str, ...]) -> None:
    """Its process was killed while it was made or removed; nobody will ask for it again."""
    with used(cache, 1) as folder:
        pass
    for path in folder.iterdir():
        if path.name not in left:
            path.unlink()
    with used(cache, 2):
        assert in_memory(memory) == [2]


def test_memory_that_is_full_of_other_things_is_not_used(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMGPU_MEMORY_DIR", str(tmp_path / "small" / "tier"))
    (tmp_path / "small").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path / "small"], check=True)
    try:
        with used(cache, 1) as folder:
            assert folder.parent == tmp_path / "small" / "tier"
        (tmp_path / "small" / "other").write_bytes(bytes(700_000))
        with used(cache, 2) as folder:
            assert folder.is_relative_to(cache.root)
    finally:
        subprocess.run(["umount", tmp_path / "small"], check=True)


def test_half_of_a_file_system_is_the_bound_by_itself(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMGPU_MEMORY_DIR", str(tmp_path / "small" / "tier"))
    (tmp_path / "small").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path / "small"], check=True)
    try:
        assert claim_folder(cache, digest(1), 2**19).parent == tmp_path / "small" / "tier"
        assert claim_folder(cache, digest(1), 2**19 + 1).is_relative_to(cache.root)
    finally:
        subprocess.run(["umount", tmp_path / "small"], check=True)


@pytest.mark.parametrize("harm", ["another's", "open to all", "a link", "a file"])
def test_shared_memory_that_others_can_write_is_not_used(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    """In /dev/shm anyone may have made our directory before us, and put anything there."""
    monkeypatch.setattr("slimgpu.weights.tiers._SHARED_MEMORY", tmp_path / "shm")
    (tmp_path / "shm").mkdir()
    ours = tmp_path / "shm" / f"slimgpu-{os.getuid()}"
    assert claim_folder(cache, digest(1), 10).parent == ours
    ours.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    if harm == "a link":
        ours.symlink_to(tmp_path / "elsewhere")
    elif harm == "a file":
        ours.write_text("")
    else:
        ours.mkdir(mode=0o700)
        ours.chmod(0o777 if harm == "open to all" else 0o700)
        os.chown(ours, 0 if harm == "open to all" else 12345, 0)
    assert claim_folder(cache, digest(1), 10).is_relative_to(cache.root)


@pytest.mark.usefixtures("memory")
def test_regions_on_the_disk_are_those_of_this_boot(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not synced: after a power loss their state may say more than their data holds."""
    monkeypatch.setenv("SLIMGPU_MEMORY_SIZE", "0")
    old = cache.root / "weights" / "regions" / "another-boot" / digest(1).partition(":")[2]
    with opened(old, *_INDEX.dump(), _INDEX) as region:
        region.write(0, memoryview(noise(_SIZE)))
        mark_kept(old)
    with used(cache, 1) as folder:
        assert folder.name == old.name
        assert folder != old
    assert not old.parent.exists()


@pytest.mark.usefixtures("memory")
def test_regions_on_the_disk_have_the_bound_of_the_disk(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMGPU_MEMORY_SIZE", "0")
    monkeypatch.setenv("SLIMGPU_WEIGHTS_CACHE_SIZE", "500kB")
    for number in range(1, 5):
        with used(cache, number) as folder:
            pass
    assert [int(path.name, 16) for path in sorted(folder.parent.glob("*/"))] == [3, 4]


@pytest.mark.parametrize("variable", ["SLIMGPU_MEMORY_SIZE", "SLIMGPU_WEIGHTS_CACHE_SIZE"])
@pytest.mark.usefixtures("memory")
def test_a_size_that_is_none_is_a_usage_error(cache: Cache, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "much")
    use = disk_tier if "CACHE" in variable else claim_folder
    with pytest.raises(UsageError, match=f"{variable}: 'much' is not a size"):
        use(*(cache, digest(1), 10)[: 1 if use is disk_tier else 3])
