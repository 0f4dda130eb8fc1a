from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slimgpu.errors import DestinationError, DigestError
from slimgpu.store.cache import Cache
from slimgpu.store.context import Context
from slimgpu.weights import crew as crews
from slimgpu.weights import cut, fetch, schedule
from slimgpu.weights.crew import Crew, NobodyError
from slimgpu.weights.fetch import Fetcher
from slimgpu.weights.load import load
from slimgpu.weights.pack import pack
from slimgpu.weights.region import Region, opened
from slimgpu.weights.sources import collect
from slimgpu.weights.tensors import tensor_bytes
from tests.support.weights import (
    Silence,
    Store,
    blobs_of,
    child,
    digests,
    ended,
    go,
    kill,
    pack_into,
    small_model,
    started,
    write_model,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from slimgpu.weights.index import Index

pytestmark = pytest.mark.timeout(120)

RANGE = 40_000
SLOTS = 4


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Index, Mapping[str, bytes]]:
    monkeypatch.setattr(cut, "PIECE", 20_000)
    monkeypatch.setattr(schedule, "RANGE", RANGE)
    monkeypatch.setattr(fetch, "RANGE", RANGE)
    monkeypatch.setattr(fetch, "SLOTS", SLOTS)
    write_model(tmp_path / "model")
    packed = pack(*collect([tmp_path / "model"]), tmp_path / "packed", Context(Cache(), 2))
    return packed.index, blobs_of(tmp_path / "packed")


@contextmanager
def crew_for(region: Region, count: int = 3) -> Iterator[Crew]:
    """A crew that is ready."""
    with Crew(region, count, SLOTS, RANGE) as crew:
        wait_until(lambda: crew._ready.qsize() == count)
        yield crew
    wait_until(lambda: not processes(region.folder))  # the first one has been waited for


@contextmanager
def new_region(folder: Path, index: Index) -> Iterator[Region]:
    with opened(folder, *index.dump(), index) as region:
        yield region


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def processes(folder: Path) -> list[int]:
    """The processes that unpack to a region, or to any below a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"slimgpu.weights.unpacker" in command and str(folder).encode() in command:
            found.append(int(process.name))
    return found


def fill(region: Region, blobs: Mapping[str, bytes], crew: Crew, *, planes: bool = False) -> None:
    source = Store("one", blobs)
    Fetcher(region.index, [source], region, planes=planes, crew=crew).run(range(len(region.index.chunks)), Silence())


def is_right(region: Region) -> bool:
    view = region.view()
    found = {tensor.name: tensor_bytes(region, view, tensor) for tensor in region.index.tensors}
    return found == {name: values.data for name, values in small_model().items()}


def fail(*_: object, **__: object) -> None:
    raise AssertionError("the fetch unpacks by itself")


@pytest.mark.parametrize("planes", [False, True])
def test_processes_do_all_the_work(
    model: tuple[Index, Mapping[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, planes: bool
) -> None:
    monkeypatch.setattr(fetch, "unpack", fail)
    with new_region(tmp_path / "r", model[0]) as region, crew_for(region) as crew:
        fill(region, model[1], crew, planes=planes)
        assert is_right(region)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP])
def test_what_killed_and_stopped_processes_leave_the_fetch_does(
    model: tuple[Index, Mapping[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signal_number: int,
    count: int,
) -> None:
    monkeypatch.setattr(crews, "_ANSWER", 0.2)
    with new_region(tmp_path / "r", model[0]) as region, crew_for(region) as crew:
        for process in processes(region.folder)[:count]:
            os.kill(process, signal_number)
        fill(region, model[1], crew)
        assert is_right(region)


def test_without_processes_the_fetch_does_it(
    model: tuple[Index, Mapping[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with new_region(tmp_path / "r", model[0]) as region, Crew(region, 2, SLOTS, RANGE) as crew:
        fill(region, model[1], crew)
        assert is_right(region)
        with pytest.raises(NobodyError):
            crew.unpack([], 0, planes=False)


def test_wrong_bytes_are_named_and_not_delivered(model: tuple[Index, Mapping[str, bytes]], tmp_path: Path) -> None:
    index, blobs = model
    wrong = {digest: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:] for digest, data in blobs.items()}
    with new_region(tmp_path / "r", index) as region, crew_for(region) as crew:
        with pytest.raises(DigestError, match="from one does not have the digest"):
            fill(region, wrong, crew)
        [chunk] = [n for n, chunk in enumerate(index.chunks) if chunk.offset <= 5000 < chunk.offset + chunk.stored]
        assert not region.has(chunk)


def test_a_full_memory_is_one_sentence(model: tuple[Index, Mapping[str, bytes]], tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", tmp_path / "memory"], check=True)
    try:
        with (
            new_region(tmp_path / "memory" / "r", model[0]) as region,
            crew_for(region) as crew,
            pytest.raises(DestinationError, match="SLIMGPU_MEMORY_DIR"),
        ):
            fill(region, model[1], crew)
    finally:
        subprocess.run(["umount", "--lazy", tmp_path / "memory"], check=True)  # killed processes may go a moment later


def test_a_crew_can_end_before_it_has_begun(model: tuple[Index, Mapping[str, bytes]], tmp_path: Path) -> None:
    with new_region(tmp_path / "r", model[0]) as region:
        for pause in (0.0, 0.01, 0.05, 0.1, 0.2):
            with Crew(region, 3, SLOTS, RANGE):
                time.sleep(pause)
            wait_until(lambda: not processes(region.folder))


@pytest.mark.parametrize("seed", range(6))
def test_whoever_is_killed_the_next_start_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setenv("SLIMGPU_MEMORY_DIR", str(tmp_path / "memory"))
    write_model(tmp_path / "model")
    ref, _ = pack_into(tmp_path / "layout", tmp_path / "model")
    expected = digests({name: memoryview(values.data) for name, values in small_model().items()})
    process = child("load", ref, 0.03, CREW="1")
    started(process)
    go(process)
    time.sleep(random.Random(seed).uniform(0.0, 0.5))  # noqa: S311
    if seed % 2:
        kill(process)
        wait_until(lambda: not processes(tmp_path))
    else:
        for each in processes(tmp_path):
            os.kill(each, signal.SIGKILL)
        assert ended(process).strip() == expected
    assert digests(load(ref)) == expected
    assert not list((tmp_path / "memory").glob("*/"))
