"""The merged tree against an independent model: layers applied to a real directory by plain system calls."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import given

from slimgpu.errors import ImageError
from slimgpu.rootfs.entry import Entry, Kind
from slimgpu.rootfs.tree import merge
from tests.support.fuzz import examples
from tests.support.stacks import in_tree, layers, on_disk


class Refused(Exception):  # noqa: N818 - no error, but an answer
    """The model cannot apply an entry."""


class Model:
    """A directory that layers are unpacked into, as runtimes do it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root.chmod(0o755)

    def inside(self, path: str, depth: int = 0) -> Path:
        """The real directory for ``path``, symlinks followed as in a chroot; made where there is nothing."""
        if depth > 40:
            raise Refused(path)
        here: list[str] = []
        parts = [part for part in path.split("/") if part not in ("", ".")]
        for number, part in enumerate(parts):
            if part == "..":
                del here[-1:]
                continue
            real = self.root.joinpath(*here, part)
            if real.is_symlink():
                text = str(real.readlink())
                rest = "/".join(parts[number + 1 :])
                base = "" if text.startswith("/") else "/".join(here)
                return self.inside(f"{base}/{text}/{rest}", depth + 1)
            if not real.is_dir():
                raise Refused(path)
            here.append(part)
        return self.root.joinpath(*here)

    def parent(self, path: str) -> Path:
        """The directory for an entry; missing ones are made, what a symlink leads to is not."""
        here = self.root
        walked: list[str] = []
        for part in path.split("/")[:-1]:
            walked.append(part)
            real = here / part
            if real.is_symlink():
                here = self.inside("/".join(walked))
                continue
            if not real.exists():
                real.mkdir()
                real.chmod(0o755)
            if not real.is_dir():
                raise Refused(path)
            here = real
        return here

    def apply(self, layer: list[Entry]) -> None:
        hiding = [entry for entry in layer if entry.name.startswith(".wh.")]
        for entry in hiding:
            try:
                folder = self.inside(entry.parent)
            except Refused:
                continue
            names = [path.name for path in folder.iterdir()] if entry.name == ".wh..wh..opq" else [entry.name[4:]]
            for name in names:
                remove(folder / name)
        for entry in layer:
            if entry not in hiding:
                self.add(entry)

    def add(self, entry: Entry) -> None:
        real = self.parent(entry.path) / entry.name
        if entry.kind is Kind.DIRECTORY:
            if real.is_symlink() or not real.is_dir():
                remove(real)
                real.mkdir()
            real.chmod(entry.mode)
            return
        if entry.kind is Kind.HARDLINK:
            folder, _, name = entry.link.rpartition("/")
            target = self.inside(folder) / name
            if not os.path.lexists(target) or (target.is_dir() and not target.is_symlink()):
                raise Refused(entry.path)
            if os.path.lexists(real) and os.path.samestat(real.lstat(), target.lstat()):
                return
            if real.is_dir() and not real.is_symlink() and real in target.parents:
                raise Unlike
            remove(real)
            os.link(target, real, follow_symlinks=False)
            return
        remove(real)
        if entry.kind is Kind.SYMLINK:
            real.symlink_to(entry.link)
        else:
            real.write_bytes(bytes(entry.size))
            real.chmod(entry.mode)


class Unlike(Exception):  # noqa: N818 - no error, but a case where the model has no answer
    """A directory replaced by a hard link to a file inside it."""


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def expected(stack: list[list[Entry]]) -> dict[str, tuple[object, ...]] | None:
    """What the model makes of the layers; None where it refuses."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as root:
        model = Model(Path(root))
        try:
            for layer in stack:
                model.apply(layer)
        except Refused:
            return None
        return on_disk(model.root)


@examples(300)
@given(layers)
def test_the_tree_is_what_unpacking_gives(stack: list[list[Entry]]) -> None:
    try:
        wanted = expected(stack)
    except Unlike:
        return
    names = [f"layer {number}" for number in range(len(stack))]
    try:
        tree = merge(stack, names)
    except ImageError as error:
        message = str(error)
        assert wanted is None, message
        assert "layer " in message
        return
    assert in_tree(tree) == wanted


@examples(200)
@given(layers)
def test_every_byte_is_seen_or_hidden(stack: list[list[Entry]]) -> None:
    try:
        tree = merge(stack, [f"layer {number}" for number in range(len(stack))])
    except ImageError:
        return
    brought = sum(e.size for layer in stack for e in layer if e.kind is Kind.FILE and not e.name.startswith(".wh."))
    inodes = {id(node.inode): node.inode for _, node in tree.walk()}
    seen = sum(inode.entry.size for inode in inodes.values() if inode.entry.kind is Kind.FILE)
    assert seen + sum(hidden.size for hidden in tree.hidden) == brought
    links: dict[int, int] = {}
    for _, node in tree.walk():
        links[id(node.inode)] = links.get(id(node.inode), 0) + 1
    for key, inode in inodes.items():
        if inode.entry.kind is not Kind.DIRECTORY:
            assert inode.links == links[key]


@examples(100)
@given(layers)
def test_walking_finds_every_path_sorted_and_parents_first(stack: list[list[Entry]]) -> None:
    try:
        tree = merge(stack, [f"layer {number}" for number in range(len(stack))])
    except ImageError:
        return
    paths = [path for path, _ in tree.walk()]
    assert paths == sorted(paths, key=lambda path: path.split("/"))
    for path, node in tree.walk():
        assert tree.find(path) is node
        assert path.rpartition("/")[0] in ("", *paths)
