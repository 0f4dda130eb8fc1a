from __future__ import annotations

import errno
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from slimgpu.errors import DestinationError, DigestError, ImageError, NotFoundError, RegistryError
from slimgpu.store.cache import Cache
from slimgpu.store.context import Context
from slimgpu.weights import cut, fetch
from slimgpu.weights import schedule as scheduling
from slimgpu.weights.buffer import PLANES, WHOLE
from slimgpu.weights.fetch import Fetcher
from slimgpu.weights.keep import BlobKeeper
from slimgpu.weights.pack import pack
from slimgpu.weights.sources import collect
from tests.support.weights import Shelf, Silence, Store, blobs_of, content, noise, opened, pack_into, write_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from slimgpu.weights.index import Index

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "_HEDGE_AFTER", 0.2)
    monkeypatch.setattr(scheduling, "_PAUSE", 0.01)
    monkeypatch.setattr(scheduling, "RANGE", 40_000)
    monkeypatch.setattr(fetch, "RANGE", 40_000)
    monkeypatch.setattr(cut, "PIECE", 20_000)


@pytest.fixture
def model(tmp_path: Path) -> tuple[Index, Mapping[str, bytes], Path]:
    """An index of many small chunks, its blobs, and the files."""
    write_model(tmp_path / "model")
    (tmp_path / "model" / "noise").write_bytes(noise(500_000))
    sources, links = collect([tmp_path / "model"])
    packed = pack(sources, links, tmp_path / "packed", Context(Cache(), 2))
    assert len(packed.index.chunks) > 60
    return packed.index, blobs_of(tmp_path / "packed"), tmp_path / "model"


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 20
    while left := [one.name for one in threading.enumerate() if one.name.startswith(("fetch-", "decode"))]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def check(index: Index, target: Shelf, root: Path) -> None:
    found = {file.path: target.file(file.path) for file in index.files}
    assert found == {name: data for name, (kind, data, _) in content(root).items() if kind == "file"}


def fail_with(error: Exception) -> Callable[[Store, int, memoryview], bool]:
    def behave(store: Store, number: int, buffer: memoryview) -> bool:
        del store, number, buffer
        raise error

    return behave


def fail_until(count: int) -> Callable[[Store, int, memoryview], bool]:
    def behave(store: Store, number: int, buffer: memoryview) -> bool:
        del store, buffer
        if number < count:
            raise RegistryError("try again")
        return False

    return behave


def lie(store: Store, number: int, buffer: memoryview) -> bool:
    del store
    buffer[:] = noise(len(buffer), number)
    return True


def fetched(index: Index, *sources: Store, planes: bool = False) -> tuple[Shelf, Silence]:
    target, task = Shelf(index), Silence()
    Fetcher(index, sources, target, planes=planes).run(range(len(index.chunks)), task)
    return target, task


def test_everything_comes_and_is_counted(model: tuple[Index, Mapping[str, bytes], Path]) -> None:
    index, blobs, root = model
    source = Store("one", blobs)
    target, task = fetched(index, source)
    check(index, target, root)
    assert sum(target.states.values()) == len(index.chunks)
    assert task.done == sum(chunk.stored for chunk in index.chunks) == sum(map(len, blobs.values()))
    assert len(source.asked) < len(index.chunks)
    assert max(size for _, size in source.asked) <= 40_000


def test_only_what_is_missing_is_fetched(model: tuple[Index, Mapping[str, bytes], Path]) -> None:
    index, blobs, root = model
    full, _ = fetched(index, Store("one", blobs))
    target = Shelf(index, {number: data for number, data in full.chunks.items() if number % 20})
    source = Store("one", blobs)
    Fetcher(index, [source], target).run(range(len(index.chunks)), Silence())
    check(index, target, root)
    assert sum(size for _, size in source.asked) < sum(map(len, blobs.values())) / 2
    Fetcher(index, [Store("none", {})], target).run(range(len(index.chunks)), Silence())


class Device:
    """A target that merges planes itself, later."""

    def __init__(self) -> None:
        self.chunks: dict[int, tuple[int, bytes]] = {}

    def has(self, chunk: int) -> bool:
        return chunk in self.chunks

    def write(self, chunk: int, data: memoryview, state: int) -> None:
        self.chunks[chunk] = state, bytes(data)


def test_planes_are_left_to_who_wants_them(model: tuple[Index, Mapping[str, bytes], Path]) -> None:
    index, blobs, _ = model
    target = Device()
    Fetcher(index, [Store("one", blobs)], target, planes=True).run(range(len(index.chunks)), Silence())
    for number, chunk in enumerate(index.chunks):
        state, data = target.chunks[number]
        assert state == (PLANES if chunk.transform not in ("raw", "zstd") else WHOLE)
        assert len(data) == chunk.size
    assert PLANES in {state for state, _ in target.chunks.values()}


@pytest.mark.parametrize(
    "behave",
    [lie, fail_with(RegistryError("500")), fail_with(NotFoundError("404")), fail_with(ImageError("short"))],
    ids=["lies", "fails", "has nothing", "is short"],
)
def test_a_bad_source_beside_a_good_one_does_no_harm(
    model: tuple[Index, Mapping[str, bytes], Path], behave: Callable[[Store, int, memoryview], bool]
) -> None:
    index, blobs, root = model
    for order in (0, 1):
        bad, good = Store("bad", blobs, behave), Store("good", blobs)
        target, _ = fetched(index, *[(bad, good), (good, bad)][order])
        check(index, target, root)


def test_a_source_that_lies_once_delivers_nothing_wrong(model: tuple[Index, Mapping[str, bytes], Path]) -> None:
    index, blobs, root = model

    def flip(store: Store, number: int, buffer: memoryview) -> bool:
        offset, size = store.asked[number]
        if store.asked[:number].count((offset, size)):
            return False
        buffer[:] = next(iter(blobs.values()))[offset : offset + size]
        buffer[number % len(buffer)] ^= 1
        return True

    target, _ = fetched(index, Store("odd", blobs, flip))
    check(index, target, root)


def test_a_source_that_is_gone_in_the_middle(model: tuple[Index, Mapping[str, bytes], Path]) -> None:
    index, blobs, root = model

    def vanish(store: Store, number: int, buffer: memoryview) -> bool:
        del store, buffer
        if number > 5:
            raise RegistryError("cannot be reached")
        return False

    target, _ = fetched(index, Store("first", blobs, vanish), Store("second", blobs))
    check(index, target, root)


def test_a_source_with_half_of_the_blob(model: tuple[Index, Mapping[str, bytes], Path]) -> None:
    index, blobs, root = model

    def half(store: Store, number: int, buffer: memoryview) -> bool:
        del buffer
        if store.asked[number][0] > 300_000:
            raise NotFoundError("not that far")
        return False

    target, _ = fetched(index, Store("half", blobs, half), Store("all", blobs))
    check(index, target, root)


def test_passing_failures_of_the_only_source(model: tuple[Index, Mapping[str, bytes], Path]) -> None:
    index, blobs, root = model
    target, _ = fetched(index, Store("one", blobs, fail_until(12)))
    check(index, target, root)


@pytest.mark.parametrize(
    ("behave", "error"),
    [
        (lie, DigestError),
        (fail_with(RegistryError("500")), RegistryError),
        (fail_with(NotFoundError("404")), NotFoundError),
        (fail_with(OSError(errno.EIO, "broken disk")), OSError),
        (fail_with(MemoryError()), MemoryError),
    ],
)
def test_when_nobody_has_it_the_error_is_raised(
    model: tuple[Index, Mapping[str, bytes], Path],
    behave: Callable[[Store, int, memoryview], bool],
    error: type[Exception],
) -> None:
    index, blobs, _ = model
    for count in (1, 3):
        with pytest.raises(error):
            fetched(index, *(Store(f"bad {number}", blobs, behave) for number in range(count)))


def test_what_lies_is_named(model: tuple[Index, Mapping[str, bytes], Path]) -> None:
    index, blobs, _ = model
    with pytest.raises(DigestError, match=r"chunk \d+ .* from a liar does not have the digest"):
        fetched(index, Store("a liar", blobs, lie))


def test_a_chunk_that_does_not_decode_is_named_and_never_delivered(
    model: tuple[Index, Mapping[str, bytes], Path],
) -> None:
    """Its stored bytes have their digest, so no source can mend it."""
    index, blobs, _ = model
    number = next(n for n, chunk in enumerate(index.chunks) if chunk.transform == "float2")
    chunks = list(index.chunks)
    chunks[number] = replace(chunks[number], packed=0b11)
    target = Shelf(replace(index, chunks=tuple(chunks)))
    with pytest.raises(ImageError, match=rf"chunk {number} \(of .*damaged"):
        Fetcher(target.index, [Store("one", blobs)], target).run(range(len(chunks)), Silence())
    assert number not in target.chunks


def test_a_stalled_range_is_had_elsewhere(model: tuple[Index, Mapping[str, bytes], Path]) -> None:
    index, blobs, root = model
    wake = threading.Event()

    def stall(store: Store, number: int, buffer: memoryview) -> bool:
        del store, number, buffer
        wake.wait(30)
        raise RegistryError("timed out")

    stalled, good = Store("stalled", blobs, stall), Store("good", blobs)
    try:
        target, _ = fetched(index, stalled, good)
        check(index, target, root)
        assert stalled.inside  # still waits, and nobody waits for it
        before = dict(target.chunks)
    finally:
        wake.set()
    assert target.chunks == before


def test_one_stalled_answer_of_the_only_source_is_asked_for_again(
    model: tuple[Index, Mapping[str, bytes], Path],
) -> None:
    index, blobs, root = model
    wake = threading.Event()

    def stall(store: Store, number: int, buffer: memoryview) -> bool:
        del store, buffer
        if number == 3:
            wake.wait(30)
        return False

    try:
        target, _ = fetched(index, Store("one", blobs, stall))
        check(index, target, root)
    finally:
        wake.set()


class Full(Shelf):
    """A target with room for a few chunks."""

    error: Exception = OSError(errno.ENOSPC, "No space left on device")

    def write(self, chunk: int, data: memoryview, state: int) -> None:
        if len(self.chunks) > 4:
            raise self.error
        super().write(chunk, data, state)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), DestinationError("it is full")])
def test_a_full_target_ends_the_fetch(
    model: tuple[Index, Mapping[str, bytes], Path], error: Exception, tmp_path: Path
) -> None:
    """And neither source nor cache is blamed for it."""
    index, blobs, _ = model
    keeper = BlobKeeper(tmp_path / "disk", 10**9)
    fetch_until_kept(index, blobs, keeper)
    kept = {path.name for path in (tmp_path / "disk").rglob("*")}
    for cached in (keeper, None):
        target = Full(index)
        target.error = error
        source = Store("one", blobs)
        with pytest.raises(type(error)):
            Fetcher(index, [source], target, keeper=cached).run(range(len(index.chunks)), Silence())
        assert len(set(source.asked)) == len(source.asked)
        assert {path.name for path in (tmp_path / "disk").rglob("*")} == kept


def test_stopping_ends_it_early(model: tuple[Index, Mapping[str, bytes], Path]) -> None:
    index, blobs, _ = model
    stop, wake = threading.Event(), threading.Event()

    def behave(store: Store, number: int, buffer: memoryview) -> bool:
        del store, buffer
        if number == 5:
            stop.set()
        if number >= 5:
            wake.wait(30)
        return False

    target = Shelf(index)
    try:
        Fetcher(index, [Store("one", blobs, behave)], target, stop=stop).run(range(len(index.chunks)), Silence())
        before = len(target.chunks)
        assert before < len(index.chunks)
    finally:
        wake.set()
    threading.Event().wait(0.1)
    assert len(target.chunks) == before  # the target may be gone by then


def fetch_until_kept(index: Index, blobs: Mapping[str, bytes], keeper: BlobKeeper) -> None:
    """What is kept is not waited for: a range that came while many were being written is only kept the next time."""
    [(digest, blob)] = blobs.items()
    for _ in range(20):
        Fetcher(index, [Store("one", blobs)], Shelf(index), keeper=keeper).run(range(len(index.chunks)), Silence())
        if keeper.covers(digest, 0, len(blob)):
            break
    assert keeper.path(digest).read_bytes() == blob


def test_what_was_fetched_is_kept_and_found_again(
    model: tuple[Index, Mapping[str, bytes], Path], tmp_path: Path
) -> None:
    index, blobs, root = model
    keeper = BlobKeeper(tmp_path / "disk", 10**9)
    fetch_until_kept(index, blobs, keeper)
    target = Shelf(index)
    Fetcher(index, [Store("nothing", {})], target, keeper=keeper).run(range(len(index.chunks)), Silence())
    check(index, target, root)


def test_a_wrong_byte_on_the_disk_is_noticed_and_fetched_again(
    model: tuple[Index, Mapping[str, bytes], Path], tmp_path: Path
) -> None:
    index, blobs, root = model
    [digest] = blobs
    keeper = BlobKeeper(tmp_path / "disk", 10**9)
    fetch_until_kept(index, blobs, keeper)
    data = bytearray(blobs[digest])
    data[len(data) // 2] ^= 4
    keeper.path(digest).write_bytes(data)
    target, source = Shelf(index), Store("one", blobs)
    Fetcher(index, [source], target, keeper=keeper).run(range(len(index.chunks)), Silence())
    check(index, target, root)
    assert source.asked
    fetch_until_kept(index, blobs, keeper)


def test_nothing_wrong_is_kept(model: tuple[Index, Mapping[str, bytes], Path], tmp_path: Path) -> None:
    index, blobs, _ = model
    keeper = BlobKeeper(tmp_path / "disk", 10**9)
    with pytest.raises(DigestError):
        Fetcher(index, [Store("liar", blobs, lie)], Shelf(index), keeper=keeper).run([0], Silence())
    assert not list((tmp_path / "disk").rglob("*.parts"))


def test_an_oci_layout_is_a_source(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    name, _ = pack_into(tmp_path / "layout", tmp_path / "model")
    with opened(name) as (index, source):
        target = Shelf(index)
        Fetcher(index, [source], target).run(range(len(index.chunks)), Silence())
        check(index, target, tmp_path / "model")


@pytest.mark.parametrize("harm", ["cut", "removed", "damaged"])
def test_a_layout_that_is_broken_is_an_images_error(tmp_path: Path, harm: str) -> None:
    write_model(tmp_path / "model")
    name, packed = pack_into(tmp_path / "layout", tmp_path / "model")
    blob = tmp_path / "layout" / "blobs" / packed.index.blobs[0].digest.replace(":", "/")
    with opened(name) as (index, source):
        data = blob.read_bytes()
        blob.write_bytes(data[:-1] if harm == "cut" else noise(len(data)))
        if harm == "removed":
            blob.unlink()
        with pytest.raises(ImageError):
            Fetcher(index, [source], Shelf(index)).run(range(len(index.chunks)), Silence())


def test_a_chunk_longer_than_a_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "PIECE", 4 * 2**20)
    (tmp_path / "file").write_bytes(noise(3_000_000))
    sources, links = collect([tmp_path / "file"])
    packed = pack(sources, links, tmp_path / "packed", Context(Cache(), 1))
    target, _ = fetched(packed.index, Store("one", blobs_of(tmp_path / "packed")))
    assert target.file("file") == noise(3_000_000)
