from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from slimgpu.progress import SILENT
from slimgpu.store.cache import Cache
from tests.support.trees import digest, opened, tar_of, write_layout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DIGEST = digest(b"a layer")
_HOLD = """
import sys
from pathlib import Path
from slimgpu.store.cache import Cache
with Cache(Path(sys.argv[1])).temporary_directory("test") as directory:
    (directory / "large").write_bytes(b"x")
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def derived(cache: Cache, data: bytes) -> bytes:
    return cache.derived("kind-1", DIGEST, lambda: data)


@pytest.mark.parametrize("data", [b"", b"facts", b"\n", b"several\nlines\n", bytes(range(256)) * 999])
def test_what_is_derived_is_computed_once(cache: Cache, data: bytes) -> None:
    assert derived(cache, data) == data
    assert derived(cache, b"other") == data
    assert derived(Cache(cache.root), b"other") == data
    assert cache.derived("kind-2", DIGEST, lambda: b"other") == b"other"


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "no checksum", "no first line", "more"])
def test_what_is_damaged_is_computed_again(cache: Cache, damage: str) -> None:
    derived(cache, b"the facts")
    path = cache.root / "derived/kind-1" / DIGEST[7:]
    whole = path.read_bytes()
    changed = {"truncate": whole[:-1], "flip": whole[:-1] + b"S", "empty": b"", "no checksum": b"the facts"}
    path.write_bytes({**changed, "no first line": b"\n" + whole, "more": whole + b"\n"}[damage])
    assert derived(cache, b"new facts") == b"new facts"
    assert derived(cache, b"other") == b"new facts"


def test_a_computation_that_fails_leaves_nothing(cache: Cache) -> None:
    def fail() -> bytes:
        raise ValueError("it failed")

    with pytest.raises(ValueError, match="it failed"):
        cache.derived("kind-1", DIGEST, fail)
    assert derived(cache, b"facts") == b"facts"


def test_what_a_killed_process_half_wrote_goes_when_the_layer_is_used(cache: Cache, tmp_path: Path) -> None:
    reference = write_layout(tmp_path / "image", [tar_of({"x": b"x"})])
    layers = cache.root / "layers"
    layers.mkdir(parents=True)
    with opened(reference, cache) as image:
        layer = image.layers[0]
        name = f"{layer.diff_id[7:]}.tar"
        for left in (f".{name}.abc.partial", f".{name}.x_1.partial", f".{'0' * 64}.tar.abc.partial"):
            (layers / left).write_bytes(b"half")
        path = cache.layer(layer, SILENT.task("", 0).__enter__())
    assert path.name == name
    assert [left.name for left in layers.glob("*.partial")] == [f".{'0' * 64}.tar.abc.partial"]


def test_what_a_killed_process_half_derived_goes(cache: Cache) -> None:
    folder = cache.root / "derived/kind-1"
    folder.mkdir(parents=True)
    (folder / f".{DIGEST[7:]}.abc.partial").write_bytes(b"half")
    derived(cache, b"facts")
    assert not list(folder.glob("*.partial"))


@contextmanager
def holding(cache: Cache) -> Iterator[subprocess.Popen[str]]:
    """Another process with a temporary directory."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, cache.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield other
        other.communicate()


def left(cache: Cache) -> list[str]:
    return sorted(path.name for path in (cache.root / "tmp").iterdir())


def test_temporary_directories_go_in_the_end(cache: Cache) -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(cache.temporary_directory("test")) for _ in range(2))
        (first / "deep/er").mkdir(parents=True)
        assert (first.is_dir(), second.is_dir()) == (True, True)
        assert first.stat().st_mode & 0o777 == 0o700
    assert left(cache) == []


def test_temporary_directories_of_living_processes_stay(cache: Cache) -> None:
    with holding(cache):
        before = left(cache)
        with cache.temporary_directory("test"):
            assert set(before) < set(left(cache))
        assert left(cache) == before
    assert left(cache) == []


def test_temporary_directories_of_killed_processes_go(cache: Cache) -> None:
    with holding(cache) as other:
        other.kill()
    assert len(left(cache)) == 2, "the directory and its lock"
    with cache.temporary_directory("test") as directory:
        assert left(cache) == sorted([directory.name, f".{directory.name}.slimgpu.lock"])
    assert left(cache) == []


def test_what_is_not_ours_stays(cache: Cache) -> None:
    """The cache may be told to be in /, and so its temporary directories in /tmp."""
    (cache.root / "tmp/other").mkdir(parents=True)
    with cache.temporary_directory("test"):
        pass
    assert left(cache) == ["other"]
