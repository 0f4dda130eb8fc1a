from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from slimgpu.errors import NotFoundError, SlimgpuError, UsageError
from slimgpu.oci.reference import parse_reference
from slimgpu.store.context import Context
from slimgpu.weights import attach, load, stream
from slimgpu.weights.attach import attached
from tests.support.weights import child, digests, ended, go, kill, noise, pack_into, small_model, started, write_model

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def ref(tmp_path: Path) -> str:
    write_model(tmp_path / "model")
    return pack_into(tmp_path / "layout", tmp_path / "model")[0]


@pytest.fixture
def expected() -> str:
    return digests({name: memoryview(values.data) for name, values in small_model().items()})


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLIMGPU_MEMORY_DIR", str(tmp_path / "memory"))
    return tmp_path / "memory"


def left(memory: Path) -> list[str]:
    return [path.name for path in memory.glob("*/")]


def test_loading_gives_the_tensors_and_leaves_nothing(ref: str, memory: Path, expected: str) -> None:
    tensors = load(ref)
    assert digests(tensors) == expected
    assert left(memory) == []
    tensors["lm_head.weight"][:4] = b"mine"  # copied on write
    assert digests(load(ref)) == expected


def test_streaming_gives_them_in_load_order(ref: str, memory: Path) -> None:
    names = [name for name, _ in stream(ref)]
    assert (names[0], names[-1]) == ("model.embed_tokens.weight", "lm_head.weight")
    for name, data in stream(ref):
        assert data == small_model()[name].data
        break
    assert left(memory) == []


def test_a_part_is_loaded_alone(ref: str, memory: Path) -> None:
    found = load(ref, only="*.scale", rank=1, world=2)
    assert sorted(found) == ["model.layers.2.scale", "model.layers.3.scale"]
    with attached(parse_reference(ref), Context(), lambda _: [], keep=False) as filling:
        assert not any(filling.region.state[:])
    assert left(memory) == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"only": "nothing"}, NotFoundError), ({"rank": 2, "world": 2}, UsageError), ({"files": "*.bin"}, NotFoundError)],
)
def test_what_cannot_be_chosen_leaves_nothing(
    ref: str, memory: Path, arguments: dict[str, object], error: type[SlimgpuError]
) -> None:
    with pytest.raises(error):
        load(ref, **arguments)  # type: ignore[arg-type]
    assert left(memory) == []


@pytest.mark.parametrize("count", [2, 5])
def test_processes_that_load_at_once_get_the_same(ref: str, memory: Path, expected: str, count: int) -> None:
    processes = [child("load", ref, 0.002) for _ in range(count)]
    for process in processes:
        started(process)
    for process in processes:
        go(process)
    assert [ended(process).strip() for process in processes] == [expected] * count
    assert left(memory) == []


def test_processes_with_different_parts_share_a_region(ref: str, memory: Path) -> None:
    processes = [child("load", ref, 0.002, f"model.layers.{number}.*") for number in range(3)]
    for process in processes:
        started(process)
    for process in processes:
        go(process)
    for number, process in enumerate(processes):
        part = {name: memoryview(values.data) for name, values in small_model().items()
                if name.startswith(f"model.layers.{number}.")}  # fmt: skip
        assert ended(process).strip() == digests(part)
    assert left(memory) == []


@pytest.mark.parametrize("seed", range(20))
def test_killed_at_any_time_the_next_start_is_right(ref: str, memory: Path, expected: str, seed: int) -> None:
    """Alternately a process that loads, and one that fills what stays."""
    process = child("prefetch" if seed % 2 else "load", ref, 0.004)
    started(process)
    if not seed % 2:
        go(process)
    time.sleep(random.Random(seed).uniform(0.0, 0.1))  # noqa: S311
    kill(process)
    assert digests(load(ref)) == expected
    if seed % 2 == 0:
        assert left(memory) == []


def test_a_consumer_takes_over_when_the_filler_dies(ref: str, expected: str) -> None:
    consumer = child("load", ref, 0.5)
    started(consumer)
    filler = child("prefetch", ref, 0.5)
    started(filler)
    assert filler.stdout is not None
    filler.stdout.readline()  # has the first chunk
    go(consumer)
    time.sleep(0.1)  # it waits for the filler now
    assert consumer.poll() is None
    kill(filler)
    assert ended(consumer).strip() == expected


def test_who_waits_for_a_filler_that_is_stuck_is_told(ref: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "_STALLED", 0.5)
    filler = child("prefetch", ref, 0.05)
    started(filler)
    assert filler.stdout is not None
    filler.stdout.readline()  # has the first chunk
    filler.send_signal(signal.SIGSTOP)
    with pytest.raises(SlimgpuError, match=f"process {filler.pid} fetches these weights, but has brought nothing"):
        load(ref)
    kill(filler)
    assert digests(load(ref)) == expected


def test_what_was_prefetched_is_not_fetched_again(ref: str, tmp_path: Path, memory: Path, expected: str) -> None:
    filler = child("prefetch", ref)
    started(filler)
    assert filler.stdout is not None
    while filler.stdout.readline() != "full\n":
        pass
    for blob in (tmp_path / "layout" / "blobs" / "sha256").iterdir():
        if blob.stat().st_size > 100_000:
            blob.write_bytes(noise(blob.stat().st_size))
    assert digests(load(ref)) == expected
    assert len(left(memory)) == 1
    go(filler)
    ended(filler)
    assert digests(load(ref)) == expected
    assert len(left(memory)) == 1


def test_what_killed_processes_left_goes_with_the_next_start(
    ref: str, tmp_path: Path, memory: Path, expected: str
) -> None:
    process = child("load", ref, 0.05)
    started(process)
    go(process)
    while not list(memory.glob("*/state")):
        assert process.poll() is None
        time.sleep(0.005)
    kill(process)
    assert len(left(memory)) == 1
    (tmp_path / "other").write_bytes(noise(1000))
    other, _ = pack_into(tmp_path / "layout", tmp_path / "other", tag="other")
    with attached(parse_reference(other), Context(), lambda index: range(len(index.chunks)), keep=False) as filling:
        assert left(memory) == [filling.region.folder.name]
    assert left(memory) == []
    assert digests(load(ref)) == expected


@pytest.mark.parametrize("when", [0.0, 0.03, 0.1, 0.2])
def test_interrupted_it_leaves_nothing(ref: str, memory: Path, when: float) -> None:
    process = child("load", ref, 0.3)
    started(process)
    go(process)
    while not list(memory.glob("*/state")):
        assert process.poll() is None
        time.sleep(0.001)
    time.sleep(when)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode in (1, -signal.SIGINT), error
    assert error.rstrip().endswith("KeyboardInterrupt")
    assert left(memory) == []


@pytest.mark.parametrize(("how", "code"), [("end", 0), ("error", 1)])
def test_a_stream_that_a_program_ends_in_leaves_nothing(ref: str, memory: Path, how: str, code: int) -> None:
    """Nor does the program wait for threads that have died."""
    process = child("suspend", ref, 0.1, how)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "model.embed_tokens.weight\n"), error
    assert left(memory) == []


def test_a_fork_that_ends_takes_nothing_from_its_parent(ref: str, memory: Path) -> None:
    process = child("suspend", ref, 0.1, "fork")
    expected = digests({"lm_head.weight": memoryview(small_model()["lm_head.weight"].data)})
    assert ended(process).split() == ["model.embed_tokens.weight", "7", expected]
    assert left(memory) == []


def test_a_full_memory_is_one_sentence_and_leaves_nothing(
    ref: str, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size was said to be more than there is, and something else takes the room meanwhile."""
    memory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", memory], check=True)
    monkeypatch.setenv("SLIMGPU_MEMORY_SIZE", "1GB")
    try:
        process = child("load", ref, 0.05)
        started(process)
        go(process)
        while not list(memory.glob("*/state")):
            assert process.poll() is None
            time.sleep(0.005)
        with suppress(OSError):
            (memory / "other").write_bytes(bytes(3_000_000))
        out = ended(process)
        assert out.startswith("DestinationError ")
        assert "is full" in out
        assert len(out.splitlines()) == 1
        assert left(memory) == []
    finally:
        subprocess.run(["umount", memory], check=True)


def test_no_room_in_memory_is_room_on_the_disk(
    ref: str, memory: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMGPU_MEMORY_SIZE", "100kB")
    assert digests(load(ref)) == expected
    assert left(memory) == []
    cache = os.environ["SLIMGPU_CACHE_DIR"]
    assert not list(Path(cache).glob("weights/regions/*/*/"))


def test_a_layout_that_breaks_raises_and_leaves_nothing(ref: str, tmp_path: Path, memory: Path) -> None:
    for blob in (tmp_path / "layout" / "blobs" / "sha256").iterdir():
        if blob.stat().st_size > 100_000:
            blob.write_bytes(noise(blob.stat().st_size))
    with pytest.raises(SlimgpuError, match="does not have the digest"):
        load(ref)
    assert left(memory) == []
