"""Applying a plan: a new file system over the same content, nothing written but what is edited."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from slimgpu.analysis.debian import STATUS, parse_stanza, split_stanzas
from slimgpu.errors import UsageError
from slimgpu.oci.digest import digest_bytes
from slimgpu.rootfs.entry import MAGIC, Kind
from slimgpu.rootfs.filesystem import FileSystem
from slimgpu.rootfs.tree import Inode, Node, Tree
from slimgpu.slim.plan import Action, Do, Plan

if TYPE_CHECKING:
    from pathlib import Path

_MAX_STATUS = 64 * 1024 * 1024


def apply(plan: Plan, files: FileSystem, scratch: Path) -> FileSystem:
    """The file system as the plan leaves it.

    Content stays where it is; what the plan edits is written to the new file ``scratch``, which stands behind
    the layers. Raises `UsageError` when the plan names paths that the image lacks.
    """
    actions = {action.path: action for action in plan.actions}
    named = [*actions, *(action.target for action in plan.actions if action.do is Do.LINK)]
    missing = next((path for path in named if path not in files.nodes), None)
    if missing is not None:
        raise UsageError(f"the plan names {missing!r}, which {plan.image} lacks; make a plan for this image")
    wrong = next((action for action in plan.actions if not _fits(action, files)), None)
    if wrong is not None:
        raise UsageError(f"the plan wants to {wrong.do} {wrong.path!r}, which cannot be; make a plan for this image")
    copier = _Copier()
    tree = Tree(Node(copier.inode(files.tree.root.inode), files.tree.root.layer, {}))
    parents = {"": tree.root}
    for path, node in files.nodes.items():
        action = actions.get(path)
        parent = parents.get(path.rpartition("/")[0])
        if parent is None or (action is not None and action.do is Do.DROP):
            continue
        source = files.nodes[action.target] if action is not None and action.do is Do.LINK else node
        copy = Node(copier.inode(source.inode), node.layer, None if node.children is None else {})
        assert parent.children is not None
        parent.children[path.rpartition("/")[2]] = copy
        if copy.children is not None:
            parents[path] = copy
    edited = _edit_status(plan, files) if STATUS in actions else b""
    scratch.write_bytes(edited)
    if edited:
        _put_edited(tree, edited, len(files.tars))
    return FileSystem(tree, [*files.tars, scratch], [*files.layers, []])


def _fits(action: Action, files: FileSystem) -> bool:
    """Whether the paths are of a kind that can be changed so."""

    def is_file(path: str) -> bool:
        return files.nodes[path].inode.entry.kind is Kind.FILE

    if action.do is Do.LINK:
        return is_file(action.path) and is_file(action.target)
    return action.do is Do.DROP or (action.path == STATUS and is_file(action.path))


class _Copier:
    """Copies inodes so that each keeps its identity and its links are counted anew."""

    def __init__(self) -> None:
        self._copies: dict[int, Inode] = {}

    def inode(self, inode: Inode) -> Inode:
        copy = self._copies.setdefault(id(inode), Inode(inode.entry, inode.layer))
        copy.links += 1
        return copy


def _edit_status(plan: Plan, files: FileSystem) -> bytes:
    """Dpkg's database without the packages that leave."""
    text = files.read(STATUS, _MAX_STATUS).decode(errors="surrogateescape")
    removed = set(plan.removed_packages)
    kept = [stanza for stanza in split_stanzas(text) if _name(stanza) not in removed]
    return "".join(f"{stanza}\n\n" for stanza in kept).encode(errors="surrogateescape")


def _name(stanza: str) -> str:
    fields = parse_stanza(stanza)
    return f"{fields.get('Package')}:{fields.get('Architecture')}"


def _put_edited(tree: Tree, data: bytes, layer: int) -> None:
    node = tree.find(STATUS)
    assert node is not None
    entry = node.inode.entry
    node.inode = Inode(
        replace(entry, size=len(data), offset=0, extents=None, digest=digest_bytes(data), magic=data[:MAGIC]), layer, 1
    )
