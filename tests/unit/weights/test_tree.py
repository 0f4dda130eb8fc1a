from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from slimgpu.errors import DestinationError, ImageError
from slimgpu.oci.reference import parse_reference
from slimgpu.store.cache import Cache
from slimgpu.store.context import Context
from slimgpu.weights.artifact import open_weights
from slimgpu.weights.copy import write_tree
from slimgpu.weights.fetch import Fetcher
from slimgpu.weights.tree import writing
from tests.support.weights import (
    Silence,
    content,
    noise,
    opened,
    pack_into,
    write_hugging_face_cache,
    write_model,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(120)


def pull(name: str, root: Path) -> None:
    context = Context(Cache(), 2)
    with open_weights(parse_reference(name), context) as weights:
        write_tree(weights, root, context)


@pytest.fixture
def name(tmp_path: Path) -> str:
    write_model(tmp_path / "model")
    return pack_into(tmp_path / "layout", tmp_path / "model")[0]


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if "slimgpu" in path.name]


def test_what_was_packed_is_there_again(tmp_path: Path, name: str) -> None:
    pull(name, tmp_path / "deep" / "out")
    assert content(tmp_path / "deep" / "out") == content(tmp_path / "model")
    assert leftovers(tmp_path / "deep") == []
    pull(name, tmp_path / "deep" / "out")  # nothing to do
    assert content(tmp_path / "deep" / "out") == content(tmp_path / "model")


def test_a_hugging_face_cache_has_its_links_again(tmp_path: Path) -> None:
    snapshot = write_hugging_face_cache(tmp_path)
    model = tmp_path / "models--ada--small"
    name, _ = pack_into(tmp_path / "layout", model)
    pull(name, tmp_path / "out")
    assert content(tmp_path / "out") == content(model)
    found = tmp_path / "out" / "snapshots" / snapshot.name
    assert (found / "config.json").read_bytes() == (snapshot / "config.json").read_bytes()
    pull(name, tmp_path / "out")


def test_only_what_is_missing_is_written(tmp_path: Path, name: str) -> None:
    pull(name, tmp_path / "out")
    (tmp_path / "out" / "config.json").unlink()
    (tmp_path / "out" / "mine").write_text("mine")
    large = tmp_path / "out" / "model-00001-of-00002.safetensors"
    kept = large.stat()
    pull(name, tmp_path / "out")
    assert (large.stat().st_ino, large.stat().st_mtime_ns) == (kept.st_ino, kept.st_mtime_ns)
    (tmp_path / "out" / "mine").unlink()
    assert content(tmp_path / "out") == content(tmp_path / "model")


def test_an_empty_directory_is_filled(tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    pull(name, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "model")


@pytest.mark.parametrize("path", ["config.json", "model-00001-of-00002.safetensors", "empty", "code/run.sh"])
@pytest.mark.parametrize("what", ["other content", "the same size", "a directory", "a link"])
def test_files_in_the_way_stay_as_they_are(tmp_path: Path, name: str, path: str, what: str) -> None:
    target = tmp_path / "out" / path
    target.parent.mkdir(parents=True)
    size = (tmp_path / "model" / path).stat().st_size
    if what == "a directory":
        target.mkdir()
    elif what == "a link":
        target.symlink_to("nowhere")
    else:
        target.write_bytes(noise(size + 1 if what == "other content" or not size else size))
    before = content(tmp_path / "out")
    with pytest.raises(DestinationError, match="is there with other content"):
        pull(name, tmp_path / "out")
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize("what", ["file", "other link"])
def test_links_in_the_way_are_told_before_anything_is_fetched(tmp_path: Path, what: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "x").write_bytes(noise(100))
    (tmp_path / "model" / "link").symlink_to("x")
    name, _ = pack_into(tmp_path / "layout", tmp_path / "model")
    (tmp_path / "out").mkdir()
    if what == "file":
        (tmp_path / "out" / "link").write_text("")
    else:
        (tmp_path / "out" / "link").symlink_to("y")
    before = content(tmp_path / "out")
    with pytest.raises(DestinationError, match="link is there and no link to x"):
        pull(name, tmp_path / "out")
    assert content(tmp_path / "out") == before


def test_a_file_is_no_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(DestinationError, match="out is a file; name a directory"):
        pull(name, tmp_path / "out")
    (tmp_path / "out").unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "code").write_text("")
    with pytest.raises(DestinationError):
        pull(name, tmp_path / "out")


def test_a_failure_appears_nowhere_and_is_gone_on_from(tmp_path: Path, name: str) -> None:
    with opened(name) as (index, source):
        half = len(index.chunks) // 2

        def fail() -> None:
            with writing(tmp_path / "out", "identity", index) as tree:
                Fetcher(index, [source], tree).run(tree.wanted[:half], Silence())
                raise ImageError("no more")

        with pytest.raises(ImageError):
            fail()
        assert not (tmp_path / "out").exists()
        with writing(tmp_path / "out", "identity", index) as tree:
            assert [number for number in tree.wanted if not tree.has(number)] == tree.wanted[half:]
            Fetcher(index, [source], tree).run(tree.wanted, Silence())
    assert content(tmp_path / "out") == content(tmp_path / "model")
    assert leftovers(tmp_path) == []


def test_another_artifact_or_boot_takes_nothing_over(tmp_path: Path, name: str) -> None:
    with opened(name) as (index, source):

        def fail() -> None:
            with writing(tmp_path / "out", "one", index) as tree:
                Fetcher(index, [source], tree).run(tree.wanted, Silence())
                raise ImageError("no more")

        with pytest.raises(ImageError):
            fail()
        with writing(tmp_path / "out", "two", index) as tree:
            assert not any(map(tree.has, tree.wanted))
        shutil.rmtree(tmp_path / "out")
        with pytest.raises(ImageError):
            fail()
        mark = tmp_path / ".out.slimgpu.partial" / "identity"
        mark.write_text("one some-other-boot")
        with writing(tmp_path / "out", "one", index) as tree:
            assert not any(map(tree.has, tree.wanted))
            Fetcher(index, [source], tree).run(tree.wanted, Silence())
    assert content(tmp_path / "out") == content(tmp_path / "model")


def test_a_file_that_went_away_between_two_starts_is_written_whole(tmp_path: Path) -> None:
    """Its chunks were there for the other file with the same content, but never written for this one."""
    (tmp_path / "model").mkdir()
    for path in ("a", "b"):
        (tmp_path / "model" / path).write_bytes(noise(3000))
    name, _ = pack_into(tmp_path / "layout", tmp_path / "model")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_bytes(noise(3000))
    with opened(name) as (index, source):

        def fail() -> None:
            with writing(tmp_path / "out", "one", index) as tree:
                Fetcher(index, [source], tree).run(tree.wanted, Silence())
                raise ImageError("no more")

        with pytest.raises(ImageError):
            fail()
        (tmp_path / "out" / "a").unlink()
        with writing(tmp_path / "out", "one", index) as tree:
            Fetcher(index, [source], tree).run(tree.wanted, Silence())
    assert content(tmp_path / "out") == content(tmp_path / "model")


def test_two_at_once_are_told(tmp_path: Path, name: str) -> None:
    with opened(name) as (index, source), writing(tmp_path / "out", "one", index) as tree:
        with pytest.raises(DestinationError, match="is being written by another slimgpu"):
            pull(name, tmp_path / "out")
        Fetcher(index, [source], tree).run(tree.wanted, Silence())
    assert content(tmp_path / "out") == content(tmp_path / "model")


def test_more_files_than_a_process_may_have_open(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for number in range(150):
        (tmp_path / "model" / f"f{number}").write_text(f"{number} " * number)
    name, _ = pack_into(tmp_path / "layout", tmp_path / "model")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, before[1]))
    try:
        pull(name, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert content(tmp_path / "out") == content(tmp_path / "model")


def mounted(path: Path, size: str) -> None:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=True)


def test_a_full_disk_is_one_sentence_and_is_gone_on_from(tmp_path: Path, name: str) -> None:
    mounted(tmp_path / "disk", "600k")
    try:
        with pytest.raises(DestinationError, match="disk that is full; free some space and start again") as caught:
            pull(name, tmp_path / "disk" / "out")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "disk" / "out").exists()
        subprocess.run(["mount", "-o", "remount,size=9m", tmp_path / "disk"], check=True)
        pull(name, tmp_path / "disk" / "out")
        assert content(tmp_path / "disk" / "out") == content(tmp_path / "model")
        assert leftovers(tmp_path / "disk") == []
    finally:
        subprocess.run(["umount", tmp_path / "disk"], check=True)


def test_a_disk_of_its_own_is_a_destination(tmp_path: Path, name: str) -> None:
    """As a container's volume: nothing can be renamed into it from beside it."""
    mounted(tmp_path / "models", "9m")
    try:
        pull(name, tmp_path / "models")
        assert content(tmp_path / "models") == content(tmp_path / "model")
        pull(name, tmp_path / "models")
        assert leftovers(tmp_path / "models") == leftovers(tmp_path) == []
    finally:
        subprocess.run(["umount", tmp_path / "models"], check=True)


def test_a_link_to_a_directory_is_followed(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    pull(name, tmp_path / "out")
    assert content(tmp_path / "real") == content(tmp_path / "model")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    pull(name, tmp_path.__class__())
    assert content(tmp_path / "here") == content(tmp_path / "model")


_PULL = """
import sys
from pathlib import Path
from slimgpu.oci.reference import parse_reference
from slimgpu.store.context import Context
from slimgpu.weights import schedule
from slimgpu.weights.artifact import open_weights
from slimgpu.weights.copy import write_tree
schedule.RANGE = 1
schedule._GAP = -1
context = Context()
print("ready", flush=True)
sys.stdin.readline()
with open_weights(parse_reference(sys.argv[1]), context) as weights:
    write_tree(weights, Path(sys.argv[2]), context)
"""


@pytest.mark.parametrize("seed", range(8))
def test_killed_at_any_time_the_next_start_finishes(tmp_path: Path, name: str, seed: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _PULL, name, tmp_path / "out"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()
    process.stdin.write(b"\n")
    process.stdin.flush()
    time.sleep(random.Random(seed).uniform(0.0, 0.08))  # noqa: S311
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for path, found in content(tmp_path / "out").items():
        assert found == content(tmp_path / "model")[path]
    pull(name, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "model")
    assert leftovers(tmp_path) == []


def test_errors_of_the_system_are_one_sentence(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(DestinationError, match=r"out cannot be written \(Input/output error\)"):
        pull(name, tmp_path / "out")
