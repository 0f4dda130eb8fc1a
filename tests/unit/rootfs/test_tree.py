from __future__ import annotations

import subprocess
import sys

import pytest

from slimgpu.errors import ImageError
from slimgpu.rootfs.entry import Entry, Kind
from slimgpu.rootfs.tree import Hidden, Tree, merge


def file(path: str, size: int = 1, digest: str = "") -> Entry:
    return Entry(path, Kind.FILE, 0o644, size=size, digest=digest)


def directory(path: str, mode: int = 0o755) -> Entry:
    return Entry(path, Kind.DIRECTORY, mode)


def symlink(path: str, target: str) -> Entry:
    return Entry(path, Kind.SYMLINK, 0o777, link=target)


def hardlink(path: str, target: str) -> Entry:
    return Entry(path, Kind.HARDLINK, 0o644, link=target)


def stacked(*layers: list[Entry]) -> Tree:
    return merge(layers, [f"layer {number}" for number in range(1, len(layers) + 1)])


def paths(tree: Tree) -> list[str]:
    return [path for path, _ in tree.walk()]


def test_a_whiteout_hides_what_lower_layers_brought() -> None:
    tree = stacked([file("a/x", 5), file("a/y")], [file("a/.wh.x", 0)])
    assert paths(tree) == ["a", "a/y"]
    assert tree.hidden == [Hidden("a/x", 5, 0, 1, deleted=True, same_content=False)]


def test_a_whiteout_hides_nothing_of_its_own_layer_whatever_the_order() -> None:
    for layer in ([file(".wh.x", 0), file("x", 2)], [file("x", 2), file(".wh.x", 0)]):
        tree = stacked([file("x", 1)], layer)
        assert paths(tree) == ["x"]
        assert [(hidden.size, hidden.deleted) for hidden in tree.hidden] == [(1, True)]


def test_a_whiteout_of_a_directory_hides_all_below() -> None:
    tree = stacked([file("d/a/x", 3), file("d/y", 4)], [file(".wh.d", 0)])
    assert paths(tree) == []
    assert [(hidden.path, hidden.size) for hidden in tree.hidden] == [("d/a/x", 3), ("d/y", 4)]


def test_an_opaque_directory_keeps_only_its_own_layers_files() -> None:
    tree = stacked([file("d/old", 3), file("d/sub/x")], [file("d/new"), file("d/.wh..wh..opq", 0)])
    assert paths(tree) == ["d", "d/new"]


def test_whiteouts_of_nothing_do_nothing() -> None:
    tree = stacked([file("x")], [file(".wh.y", 0), file("none/.wh.z", 0), file("x/.wh.z", 0), file(".wh.", 0)])
    assert paths(tree) == ["x"]
    assert tree.hidden == []


def test_a_whiteout_never_reaches_out_of_its_directory() -> None:
    tree = stacked([file("x"), file("d/y")], [file("d/.wh..", 0), file("d/.wh...", 0), file("d/.wh../x", 0)])
    assert "x" in paths(tree)
    assert "d/y" in paths(tree)


def test_bookkeeping_of_aufs_is_left_out() -> None:
    assert paths(stacked([file(".wh..wh.aufs", 0), directory(".wh..wh.plnk")])) == []


def test_a_whiteout_through_a_symlink_hides_in_the_real_directory() -> None:
    tree = stacked([directory("usr/lib"), symlink("lib", "usr/lib"), file("usr/lib/x")], [file("lib/.wh.x", 0)])
    assert paths(tree) == ["lib", "usr", "usr/lib"]
    assert [hidden.path for hidden in tree.hidden] == ["usr/lib/x"]


def test_replaced_files_are_hidden_with_their_fate() -> None:
    tree = stacked([file("x", 5, "sha256:1"), file("y", 6, "sha256:2")], [file("x", 5, "sha256:1"), file("y", 7, "z")])
    assert tree.hidden == [
        Hidden("x", 5, 0, 1, deleted=False, same_content=True),
        Hidden("y", 6, 0, 1, deleted=False, same_content=False),
    ]


def test_a_file_over_a_directory_and_back() -> None:
    tree = stacked([file("d/x", 3)], [file("d", 2)], [directory("d"), file("d/z", 1)])
    assert paths(tree) == ["d", "d/z"]
    assert [(hidden.path, hidden.size) for hidden in tree.hidden] == [("d/x", 3), ("d", 2)]


def test_a_directory_over_a_directory_keeps_what_is_in_it() -> None:
    tree = stacked([directory("d", 0o700), file("d/x")], [directory("d", 0o755)])
    assert paths(tree) == ["d", "d/x"]
    node = tree.find("d")
    assert node is not None
    assert node.inode.entry.mode == 0o755


def test_a_directory_over_a_symlink_replaces_it() -> None:
    tree = stacked([directory("usr/lib"), file("usr/lib/x"), symlink("lib", "usr/lib")], [directory("lib")])
    assert paths(tree) == ["lib", "usr", "usr/lib", "usr/lib/x"]
    node = tree.find("lib")
    assert node is not None
    assert node.inode.entry.kind is Kind.DIRECTORY


def test_an_entry_through_a_symlink_lands_in_the_real_directory() -> None:
    tree = stacked([directory("usr/lib"), symlink("lib", "/usr/lib")], [file("lib/x", 9)])
    assert paths(tree) == ["lib", "usr", "usr/lib", "usr/lib/x"]


def test_what_an_entry_through_a_symlink_replaces_is_named_by_its_real_path() -> None:
    tree = stacked([directory("usr/lib"), symlink("lib", "usr/lib"), file("usr/lib/x", 3)], [file("lib/x", 9)])
    assert [hidden.path for hidden in tree.hidden] == ["usr/lib/x"]


@pytest.mark.parametrize("target", ["../../../usr", "/../usr", "/usr", "a/../../usr"])
def test_links_that_leave_the_root_stay_inside(target: str) -> None:
    tree = stacked([directory("usr"), directory("d/a"), symlink("d/link", target)], [file("d/link/x")])
    assert "usr/x" in paths(tree)


@pytest.mark.parametrize(
    "links",
    [
        {"l": "l"},
        {"l": "m", "m": "l"},
        {"l": "/l/x"},
        {"l": "nowhere"},
        {"l": "m/../l"},
        {"l": "file"},
        {"l": "file/.."},
    ],
)
def test_a_parent_that_is_no_directory_names_layer_and_path(links: dict[str, str]) -> None:
    with pytest.raises(ImageError, match=r"layer 2: 'l/x' cannot be unpacked"):
        stacked([file("file"), *(symlink(path, target) for path, target in links.items())], [file("l/x")])


def test_a_file_as_a_parent_names_layer_and_path() -> None:
    with pytest.raises(ImageError, match=r"layer 1: 'f/x' cannot be unpacked: its parent 'f' is a file"):
        stacked([file("f"), file("f/x")])


def test_forty_links_are_followed_and_no_more() -> None:
    chain = [symlink(f"l{number}", f"l{number + 1}") for number in range(41)]
    tree = stacked([*chain, file("l41")])
    assert tree.resolve("l1") == "l41"
    assert tree.resolve("l0") is None


def test_links_that_multiply_end() -> None:
    """Each link names the one before it twice: 2**30 steps if every one were taken."""
    links = [symlink(f"l{number}", f"l{number - 1}/l{number - 1}") for number in range(1, 30)]
    assert stacked([symlink("l0", "."), *links]).resolve("l29") is None


def test_resolving() -> None:
    tree = stacked(
        [file("usr/bin/python3.11"), symlink("usr/bin/python3", "python3.11"), symlink("bin", "usr/bin")],
        [symlink("usr/bin/python", "/bin/python3"), symlink("dangling", "none"), directory("tmp")],
    )
    assert tree.resolve("/bin/python") == "usr/bin/python3.11"
    assert tree.trail("bin/python") == ["bin", "usr/bin/python", "bin", "usr/bin/python3", "usr/bin/python3.11"]
    assert tree.resolve("bin/python", follow_last=False) == "usr/bin/python"
    assert tree.resolve("dangling") is None
    assert tree.resolve("dangling", follow_last=False) == "dangling"
    assert tree.resolve("usr/bin/../../tmp/.") == "tmp"
    assert tree.resolve("../../bin/python3") == "usr/bin/python3.11"
    assert tree.resolve("") == ""
    assert tree.resolve("usr/bin/python3.11/x") is None
    assert tree.resolve("usr/bin/python3.11/..") is None, "a file has no parent to go to"


def test_hard_links_across_layers_are_one_file() -> None:
    tree = stacked([file("x", 5)], [hardlink("y", "x")], [file("x", 1)])
    first, second = tree.find("x"), tree.find("y")
    assert first is not None
    assert second is not None
    assert (first.inode.entry.size, second.inode.entry.size, second.inode.layer) == (1, 5, 0)
    assert tree.hidden == [], "the bytes are still seen under the other name"


def test_the_last_name_of_a_hard_linked_file_hides_it() -> None:
    tree = stacked([file("x", 5), hardlink("y", "x")], [file(".wh.x", 0), file(".wh.y", 0)])
    assert [(hidden.path, hidden.size) for hidden in tree.hidden] == [("y", 5)]


def test_a_hard_link_to_itself_or_again_changes_nothing() -> None:
    tree = stacked([file("x", 5)], [hardlink("x", "x")], [hardlink("y", "x"), hardlink("y", "x")])
    node = tree.find("x")
    assert node is not None
    assert node.inode.links == 2
    assert tree.hidden == []


def test_a_hard_link_to_a_symlink_is_that_symlink() -> None:
    tree = stacked([symlink("l", "target"), hardlink("h", "l")])
    node = tree.find("h")
    assert node is not None
    assert node.inode.entry.link == "target"


@pytest.mark.parametrize("target", ["none", "d", "", "d/none"])
def test_a_hard_link_to_nothing_or_a_directory_is_refused(target: str) -> None:
    with pytest.raises(ImageError, match=r"layer 1: 'x' cannot be unpacked: it is a hard link to"):
        stacked([directory("d"), hardlink("x", target)])


def test_the_root_itself() -> None:
    tree = stacked([directory("", 0o700), file("x")], [directory("", 0o711)])
    assert tree.root.inode.entry.mode == 0o711
    assert tree.root.layer == 1, "the root's attributes come from a layer and have to be written again"
    assert paths(tree) == ["x"]
    with pytest.raises(ImageError, match="layer 1: the root is a symlink"):
        stacked([symlink("", "x")])


def test_directories_no_layer_names_are_there() -> None:
    tree = stacked([file("a/b/c")])
    node = tree.find("a/b")
    assert node is not None
    assert (node.inode.entry.kind, node.inode.entry.mode) == (Kind.DIRECTORY, 0o755)


def test_paths_as_deep_as_linux_allows() -> None:
    deep = "/".join(["d"] * 2047)
    tree = stacked([file(f"{deep}/x", 3)], [file(".wh.d", 0), file(f"{deep}/y", 4)])
    assert len(paths(tree)) == 2048
    assert [hidden.path for hidden in tree.hidden] == [f"{deep}/x"]


_LARGE = """
import resource
from slimgpu.rootfs.entry import Entry, Kind
from slimgpu.rootfs.tree import merge

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

layers = [
    [Entry(f"usr/lib/d{n % 997}/f{n}", Kind.FILE, 0o644, size=10) for n in range(start, start + 100_000)]
    for start in (0, 100_000)
]
before = peak()
tree = merge([*layers, [Entry("usr/lib/d0/.wh..wh..opq", Kind.FILE, 0)]], ["it"] * 3)
print(peak() - before, sum(1 for _ in tree.walk()), len(tree.hidden))
"""


def test_two_hundred_thousand_entries_take_bounded_memory() -> None:
    run = subprocess.run([sys.executable, "-c", _LARGE], capture_output=True, text=True, check=True)
    memory, count, hidden = map(int, run.stdout.split())
    assert count + hidden == 200_000 + 2 + 997
    assert hidden == 201
    assert memory < 200_000 * 600
