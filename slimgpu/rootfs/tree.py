"""Layers stacked to the tree that a container sees, and what of each layer it no longer sees.

The rules are those of the image specification as containerd applies them: whiteouts hide what lower
layers brought and nothing of their own layer; an opaque directory hides all that lower layers put into it;
an entry of another kind replaces; a parent that is a symlink is followed inside the root, never out of it.

Source: https://github.com/opencontainers/image-spec/blob/v1.1.0/layer.md
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from slimgpu.errors import ImageError
from slimgpu.rootfs.entry import Entry, Kind
from slimgpu.rootfs.splice import Splice
from slimgpu.rootfs.whiteouts import EVERYTHING, hidden_by, is_whiteout

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MAX_LINKS: Final = 40
_IMPLICIT: Final = Entry(path="", kind=Kind.DIRECTORY, mode=0o755)


@dataclass(slots=True, eq=False)
class Inode:
    """A file itself; several paths share one when they are hard links."""

    entry: Entry
    """As the path that brought the content names it; other links differ in nothing but the path."""
    layer: int
    """Which layer holds the content."""
    links: int = 0
    splice: Splice | None = None
    """How the content is made from what the layer holds, where the two differ; the entry's size and digest are new."""


@dataclass(slots=True, eq=False)
class Node:
    """A path of the tree."""

    inode: Inode
    layer: int
    """Which layer brought this path."""
    children: dict[str, Node] | None = None
    """Of a directory, by name."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """A file that a later layer deleted or replaced: its bytes are still pulled."""

    path: str
    size: int
    layer: int
    by: int
    deleted: bool
    """Whether nothing took its place."""
    same_content: bool
    """Whether what took its place has the same bytes: only the metadata changed."""


@dataclass(slots=True)
class Tree:
    """The merged file system."""

    root: Node
    hidden: list[Hidden] = field(default_factory=list)

    def walk(self, below: str = "") -> Iterator[tuple[str, Node]]:
        """Every path and its node below a directory, sorted by path components, parents before children."""
        start = self.find(below)
        pending = [] if start is None else _children(f"{below}/" if below else "", start)
        while pending:
            path, node = pending.pop()
            yield path, node
            if node.children:
                pending += _children(f"{path}/", node)

    def find(self, path: str) -> Node | None:
        """The node at exactly this path; symlinks are not followed."""
        node: Node | None = self.root
        for part in path.split("/") if path else ():
            if node is None or node.children is None:
                return None
            node = node.children.get(part)
        return node

    def resolve(self, path: str, *, follow_last: bool = True) -> str | None:
        """The path that ``path`` leads to, symlinks followed inside the root; None when it leads nowhere."""
        trail = self.trail(path, follow_last=follow_last)
        return None if trail is None else trail[-1]

    def trail(self, path: str, *, follow_last: bool = True) -> list[str] | None:
        """The symlinks on the way of `resolve`, and at the end what it gives."""
        return _follow(self.root, path, follow_last=follow_last)


def _children(prefix: str, node: Node) -> list[tuple[str, Node]]:
    """What a directory holds, the last first; paths are too deep in hostile images for recursion."""
    return [(prefix + name, child) for name, child in sorted((node.children or {}).items(), reverse=True)]


def _follow(root: Node, path: str, *, follow_last: bool) -> list[str] | None:
    """Follow symlinks as the kernel does in a chroot."""
    pending = path.split("/")[::-1]
    names: list[str] = []
    nodes: list[Node] = [root]
    trail: list[str] = []
    while pending:
        part = pending.pop()
        if part == "..":
            if nodes[-1].children is None:
                return None
            del names[-1:]
            del nodes[max(1, len(nodes) - 1) :]
        if part in ("..", ".", ""):
            continue
        child = (nodes[-1].children or {}).get(part)
        if child is None:
            return None
        entry = child.inode.entry
        if entry.kind is not Kind.SYMLINK or not (follow_last or any(p not in ("", ".") for p in pending)):
            names.append(part)
            nodes.append(child)
            continue
        trail.append("/".join((*names, part)))
        if len(trail) > _MAX_LINKS:
            return None
        if entry.link.startswith("/"):
            names, nodes = [], [root]
        pending += entry.link.split("/")[::-1]
    return [*trail, "/".join(names)]


def merge(layers: Sequence[Sequence[Entry]], names: Sequence[str]) -> Tree:
    """Stack the layers' entries, lowest first; ``names`` are for errors.

    Raises `ImageError` naming the layer and the path when an entry cannot be applied.
    """
    tree = Tree(Node(Inode(_IMPLICIT, -1, 1), -1, {}))
    for number, (entries, name) in enumerate(zip(layers, names, strict=True)):
        _Stacker(tree, number, name).apply(entries)
    return tree


class _Stacker:
    """Puts one layer onto the tree."""

    def __init__(self, tree: Tree, number: int, name: str) -> None:
        self._tree = tree
        self._number = number
        self._name = name
        self._last_parent: tuple[str, str, Node] | None = None

    def apply(self, entries: Sequence[Entry]) -> None:
        whiteouts = [entry for entry in entries if is_whiteout(entry.name)]
        for entry in whiteouts:
            self._whiteout(entry)
        for entry in entries:
            if not is_whiteout(entry.name):
                self._add(entry)

    def _whiteout(self, entry: Entry) -> None:
        resolved = self._tree.resolve(entry.parent)
        directory = None if resolved is None else self._tree.find(resolved)
        if resolved is None or directory is None or directory.children is None:
            return  # nothing there to hide
        prefix = f"{resolved}/" if resolved else ""
        hidden = hidden_by(entry.name)
        if hidden is None:
            return
        for name in sorted(directory.children) if hidden == EVERYTHING else [hidden]:
            node = directory.children.pop(name, None)
            if node is not None:
                self._hide(prefix + name, node, None)

    def _hide(self, path: str, node: Node, successor: Entry | None) -> None:
        """Account for a node that has left the tree, with all below it."""
        pending = [(path, node)]
        while pending:
            path, node = pending.pop()
            inode = node.inode
            inode.links -= 1
            if inode.entry.kind is Kind.FILE and inode.links == 0:
                same = successor is not None and bool(successor.digest) and successor.digest == inode.entry.digest
                size = inode.entry.size
                self._tree.hidden.append(
                    Hidden(path, size, inode.layer, self._number, deleted=successor is None, same_content=same)
                )
            successor = None
            pending += _children(f"{path}/", node)

    def _add(self, entry: Entry) -> None:
        if not entry.path:
            self._replace_root(entry)
            return
        directory, parent = self._parent(entry)
        siblings = parent.children
        assert siblings is not None
        present = siblings.get(entry.name)
        if entry.kind is Kind.HARDLINK:
            inode = self._link_target(entry)
            if present is not None and present.inode is inode:
                present.layer = self._number
                return
        else:
            inode = Inode(entry, self._number)
        inode.links += 1
        node = Node(inode, self._number, {} if entry.kind is Kind.DIRECTORY else None)
        if present is not None and present.children is not None and node.children is not None:
            present.inode, present.layer = inode, self._number
            return
        siblings[entry.name] = node
        if present is not None:
            self._last_parent = None
            self._hide(f"{directory}/{entry.name}" if directory else entry.name, present, entry)

    def _replace_root(self, entry: Entry) -> None:
        if entry.kind is not Kind.DIRECTORY:
            raise ImageError(f"{self._name}: the root is a {entry.kind}")
        self._tree.root.inode = Inode(entry, self._number, 1)
        self._tree.root.layer = self._number

    def _parent(self, entry: Entry) -> tuple[str, Node]:
        """The directory that the entry goes into, with its real path; made when no layer names it."""
        path = entry.parent
        if self._last_parent is not None and self._last_parent[0] == path:
            return self._last_parent[1:]
        real, node = "", self._tree.root
        for part in path.split("/") if path else ():
            real, node = self._step(f"{real}/{part}" if real else part, node, entry)
        self._last_parent = (path, real, node)
        return real, node

    def _step(self, path: str, node: Node, entry: Entry) -> tuple[str, Node]:
        assert node.children is not None
        name = path.rpartition("/")[2]
        child = node.children.get(name)
        if child is None:
            child = Node(Inode(_IMPLICIT, self._number, 1), self._number, {})
            node.children[name] = child
        elif child.inode.entry.kind is Kind.SYMLINK:
            resolved = self._tree.resolve(path)
            target = None if resolved is None else self._tree.find(resolved)
            if resolved is None or target is None or target.children is None:
                raise self._refuse(entry, f"its parent {path!r} is a symlink to no directory")
            return resolved, target
        if child.children is None:
            raise self._refuse(entry, f"its parent {path!r} is a {child.inode.entry.kind}")
        return path, child

    def _link_target(self, entry: Entry) -> Inode:
        resolved = self._tree.resolve(entry.link, follow_last=False)
        target = None if resolved is None else self._tree.find(resolved)
        if target is None or target.children is not None:
            raise self._refuse(entry, f"it is a hard link to {entry.link!r}, which is not there")
        return target.inode

    def _refuse(self, entry: Entry, complaint: str) -> ImageError:
        return ImageError(f"{self._name}: {entry.path!r} cannot be unpacked: {complaint}")
