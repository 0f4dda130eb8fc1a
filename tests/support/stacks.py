"""Layers of few names that hit each other often, and what a tree of them holds."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from slimgpu.rootfs import tarwrite
from slimgpu.rootfs.entry import Entry, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from slimgpu.rootfs.tree import Tree

Listing = dict[str, tuple[object, ...]]
"""By path: kind, mode or text, size, and the first path of the same file."""

_NAMES = ("a", "b", "c")
_path = st.lists(st.sampled_from(_NAMES), min_size=1, max_size=3).map("/".join)
_link = st.one_of(
    _path,
    _path.map("/{}".format),
    _path.map("../{}".format),
    _path.map("../../../{}".format),
    st.just("."),
    st.just(".."),
)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    path = draw(_path)
    kind = draw(st.sampled_from(["file", "file", "directory", "symlink", "hardlink", "whiteout", "opaque"]))
    parent, _, name = path.rpartition("/")
    prefix = f"{parent}/" if parent else ""
    if kind == "whiteout":
        return Entry(f"{prefix}.wh.{name}", Kind.FILE, 0)
    if kind == "opaque":
        return Entry(f"{path}/.wh..wh..opq", Kind.FILE, 0)
    if kind == "symlink":
        return Entry(path, Kind.SYMLINK, 0o777, link=draw(_link))
    if kind == "hardlink":
        return Entry(path, Kind.HARDLINK, 0o644, link=draw(_path))
    if kind == "directory":
        return Entry(path, Kind.DIRECTORY, draw(st.sampled_from([0o755, 0o700])))
    size = draw(st.integers(1, 9))
    return Entry(path, Kind.FILE, draw(st.sampled_from([0o644, 0o600])), size=size, digest=f"sha256:{size}")


layers = st.lists(st.lists(entries(), max_size=6), min_size=1, max_size=4)


def tar_of_entries(entries: Sequence[Entry]) -> bytes:
    """The entries as a tar, files of zeros."""
    parts = [tarwrite.header(entry) + bytes(entry.size) + tarwrite.padding(entry.size) for entry in entries]
    return b"".join([*parts, tarwrite.END])


def in_tree(tree: Tree) -> Listing:
    """What a merged tree holds."""
    first: dict[int, str] = {}
    found: Listing = {}
    for path, node in tree.walk():
        entry = node.inode.entry
        if entry.kind is Kind.DIRECTORY:
            found[path] = (Kind.DIRECTORY, entry.mode)
            continue
        what = (entry.kind, entry.link) if entry.kind is Kind.SYMLINK else (entry.kind, entry.mode, entry.size)
        found[path] = (*what, first.setdefault(id(node.inode), path))
    return found


def on_disk(root: Path) -> Listing:
    """What a directory holds."""
    first: dict[int, str] = {}
    found: Listing = {}
    for path in sorted(root.rglob("*"), key=lambda p: p.relative_to(root).parts):
        name = str(path.relative_to(root))
        facts = path.lstat()
        if stat.S_ISLNK(facts.st_mode):
            what: tuple[object, ...] = (Kind.SYMLINK, str(path.readlink()))
        elif stat.S_ISDIR(facts.st_mode):
            found[name] = (Kind.DIRECTORY, stat.S_IMODE(facts.st_mode))
            continue
        else:
            what = (Kind.FILE, stat.S_IMODE(facts.st_mode), facts.st_size)
        found[name] = (*what, first.setdefault(facts.st_ino, name))
    return found
