from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from slimgpu.errors import NotFoundError, UsageError
from slimgpu.weights.index import Link
from slimgpu.weights.sources import collect
from tests.support.weights import write_hugging_face_cache, write_model

if TYPE_CHECKING:
    from pathlib import Path


def names(*paths: Path) -> tuple[list[str], list[Link]]:
    sources, links = collect(paths)
    return [source.path for source in sources], links


def test_a_directory_gives_its_files_under_their_own_names(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    sources, links = collect([tmp_path / "model"])
    assert links == []
    assert [source.path for source in sources] == [
        "code/run.sh",
        "config.json",
        "empty",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert [source.path for source in sources if source.executable] == ["code/run.sh"]


def test_a_whole_hugging_face_cache_keeps_its_links(tmp_path: Path) -> None:
    snapshot = write_hugging_face_cache(tmp_path)
    sources, links = collect([tmp_path / "models--ada--small"])
    assert {source.path.partition("/")[0] for source in sources} == {"blobs", "refs"}
    assert len(links) == 6
    assert all(link.path.startswith(f"snapshots/{snapshot.name}/") and "../../blobs/" in link.target for link in links)


def test_a_snapshot_alone_is_packed_as_files(tmp_path: Path) -> None:
    snapshot = write_hugging_face_cache(tmp_path)
    found, links = names(snapshot)
    assert links == []
    assert "code/run.sh" in found
    assert "config.json" in found


def test_links_inside_stay_links_and_those_that_lead_out_do_not(tmp_path: Path) -> None:
    root = tmp_path / "model"
    (root / "deep").mkdir(parents=True)
    (root / "file").write_text("x")
    (tmp_path / "outside").write_text("y")
    (root / "deep" / "up").symlink_to("../file")
    (root / "directory").symlink_to("deep")
    (root / "chain").symlink_to("deep/up")
    (root / "out").symlink_to("../outside")
    (root / "absolute").symlink_to(root / "file")
    (root / "through").symlink_to("directory/../file")
    found, links = names(root)
    assert found == ["absolute", "file", "out", "through"]
    assert links == [Link("chain", "deep/up"), Link("deep/up", "../file"), Link("directory", "deep")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: (root / "bad").symlink_to("nowhere"), "bad is a link to nothing"),
        (lambda root: (root / "bad").symlink_to("bad"), "bad is a link to nothing"),
        (lambda root: ((root / "bad").symlink_to("worse"), (root / "worse").symlink_to("bad")), "a link to nothing"),
        (lambda root: (root / "bad").symlink_to(".."), "bad is no regular file"),
        (lambda root: os.mkfifo(root / "bad"), "bad is no regular file"),
        (lambda root: (root / "bad").symlink_to("/dev/zero"), "bad is no regular file"),
        (lambda root: os.mknod(root / "bad", 0o600 | 0o020000, os.makedev(1, 5)), "bad is no regular file"),
        (lambda root: (root / os.fsdecode(b"b\xff")).write_text("x"), "has a name that is not UTF-8; rename it"),
    ],
)
def test_what_cannot_be_packed_is_a_usage_error(tmp_path: Path, make: object, message: str) -> None:
    root = tmp_path / "model"
    root.mkdir()
    (root / "good").write_text("x")
    make(root)  # type: ignore[operator]
    with pytest.raises(UsageError, match=message):
        collect([root])


def test_odd_names_are_names(tmp_path: Path) -> None:
    root = tmp_path / "model"
    root.mkdir()
    odd = ["a\nb", "ä", "日本", "-x", "sp ace", "back\\slash", "%2f", "*", "[x]", "..x", "x.."]
    for name in odd:
        (root / name).write_text(name)
    assert names(root)[0] == sorted(odd)


def test_several_paths_are_one_artifact(tmp_path: Path) -> None:
    write_model(tmp_path / "model", shards=1)
    (tmp_path / "a").write_text("x")
    found, _ = names(tmp_path / "model", tmp_path / "a")
    assert found == sorted([*names(tmp_path / "model")[0], "a"])
    assert collect([tmp_path / "a", tmp_path / "model"]) == collect([tmp_path / "model", tmp_path / "a"])


def test_one_name_for_two_files_is_refused(tmp_path: Path) -> None:
    for number in "12":
        (tmp_path / number).mkdir()
        (tmp_path / number / "x").write_text(number)
    with pytest.raises(UsageError, match="would be packed as x, which is there already"):
        collect([tmp_path / "1", tmp_path / "2"])


def test_a_file_in_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1" / "x").mkdir(parents=True)
    (tmp_path / "1" / "x" / "y").write_text("")
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "x").write_text("")
    with pytest.raises(UsageError, match="x/y would lie below x, which is no directory"):
        collect([tmp_path / "1", tmp_path / "2"])


def test_nothing_to_pack(tmp_path: Path) -> None:
    (tmp_path / "empty" / "er").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds no files"):
        collect([tmp_path / "empty"])
    with pytest.raises(NotFoundError, match="does not exist"):
        collect([tmp_path / "nothing"])
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(NotFoundError, match="does not exist"):
        collect([tmp_path / "loop"])


def test_a_file_is_read_by_position(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(range(100)))
    [source], _ = collect([tmp_path / "x"])
    with source.open() as reader:
        assert (reader.size, reader.read(10, 5), reader.read(100, 0)) == (100, bytes(range(10, 15)), b"")


def test_a_file_that_shrinks_is_told(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(100))
    [source], _ = collect([tmp_path / "x"])
    with source.open() as reader, pytest.raises(UsageError, match="became shorter while it was read"):
        reader.read(0, 101)


@pytest.mark.parametrize("how", ["written", "replaced"])
def test_a_file_that_changes_is_told(tmp_path: Path, how: str) -> None:
    """Else its digest would be that of other bytes than its chunks."""
    (tmp_path / "x").write_bytes(bytes(100))
    (tmp_path / "new").write_bytes(bytes(100))
    os.utime(tmp_path / "x", ns=(1, 1))
    os.utime(tmp_path / "new", ns=(1, 1))
    [source], _ = collect([tmp_path / "x"])

    def change() -> None:
        if how == "written":
            (tmp_path / "x").write_bytes(b"y" * 100)
        else:
            (tmp_path / "new").replace(tmp_path / "x")

    with pytest.raises(UsageError, match="was changed while it was read"), source.open():
        change()
