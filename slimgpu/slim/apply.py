"""Applying a plan: a new file system over the same content; nothing is written."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from slimgpu.analysis.debian import STATUS, parse_stanza, split_stanzas
from slimgpu.analysis.python import RECORD
from slimgpu.analysis.shrinking import ShrunkFile, shrink_files
from slimgpu.elf.shrink import Wanted
from slimgpu.errors import UsageError
from slimgpu.oci.digest import digest_bytes
from slimgpu.rootfs.entry import MAGIC, Entry, Kind
from slimgpu.rootfs.filesystem import FileSystem
from slimgpu.rootfs.splice import literal
from slimgpu.rootfs.tree import Inode, Node, Tree
from slimgpu.slim.plan import Action, Do, Plan
from slimgpu.slim.records import edited_record
from slimgpu.slim.shrinks import CODE, SYMBOLS
from slimgpu.weights.pointer import POINTER_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slimgpu.rootfs.splice import Splice
    from slimgpu.store.context import Context

_MAX_STATUS: Final = 64 * 1024 * 1024


def apply(plan: Plan, files: FileSystem, shrunk: Mapping[str, ShrunkFile], pointer: bytes = b"") -> FileSystem:
    """The file system as the plan leaves it; ``shrunk`` has the new form of what it shrinks.

    ``pointer`` is the content of the files that it adds.

    Content stays where it is; what changes is described by how it comes from what was there. Raises `UsageError` when
    the plan names paths that the image lacks.
    """
    _check(plan, files, shrunk)
    actions = {action.path: action for action in plan.actions if action.do in (Do.DROP, Do.LINK)}
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
    for path, file in shrunk.items():
        assert file.result.splice is not None
        _replace(copier.inode_of(files.nodes[path].inode), file.result.splice, file.digest)
    for action in plan.actions:
        if action.do is Do.EDIT:
            data = _edited(action.path, plan, files, tree)
            _replace(copier.inode_of(files.nodes[action.path].inode), literal(data), digest_bytes(data), data[:MAGIC])
        elif action.do is Do.ADD:
            _add(tree, action.path, pointer)
    return FileSystem(tree, files.tars, files.layers)


def shrunk_files(plan: Plan, files: FileSystem, context: Context) -> dict[str, ShrunkFile]:
    """The new form of each path that the plan shrinks, as far as the image has it."""
    rules: dict[str, set[str]] = {}
    for action in plan.actions:
        node = files.nodes.get(action.path)
        if action.do is Do.SHRINK and node is not None and node.inode.entry.digest and node.inode.entry.extents is None:
            rules.setdefault(action.path, set()).add(action.rule)
    policy = plan.gpu_code.policy
    wishes = {
        path: Wanted(policy if CODE in names else None, symbols=SYMBOLS in names) for path, names in rules.items()
    }
    return {path: file for path, file in shrink_files(files, wishes, context).items() if file.result.splice is not None}


def _check(plan: Plan, files: FileSystem, shrunk: Mapping[str, ShrunkFile]) -> None:
    named = [action.path for action in plan.actions if action.do is not Do.ADD]
    named += [action.target for action in plan.actions if action.do is Do.LINK]
    missing = next((path for path in named if path not in files.nodes), None)
    if missing is not None:
        raise UsageError(f"the plan names {missing!r}, which {plan.image} lacks; make a plan for this image")
    wrong = next((action for action in plan.actions if not _fits(action, files, shrunk)), None)
    if wrong is not None:
        raise UsageError(f"the plan wants to {wrong.do} {wrong.path!r}, which cannot be; make a plan for this image")


def _fits(action: Action, files: FileSystem, shrunk: Mapping[str, ShrunkFile]) -> bool:
    """Whether the paths are of a kind that can be changed so."""

    def is_file(path: str) -> bool:
        return files.nodes[path].inode.entry.kind is Kind.FILE

    if action.do is Do.ADD:
        directory, _, name = action.path.rpartition("/")
        holder = files.tree.find(directory)
        is_new = holder is not None and holder.children is not None and name not in holder.children
        return is_new and name == POINTER_FILE
    if action.do is Do.LINK:
        return is_file(action.path) and is_file(action.target)
    if action.do is Do.SHRINK:
        return action.path in shrunk
    can_edit = action.path == STATUS or action.path.endswith(RECORD)
    return action.do is Do.DROP or (can_edit and is_file(action.path))


def _add(tree: Tree, path: str, content: bytes) -> None:
    """Put a file of our own into the tree: anyone may read it, and it has no time."""
    directory, _, name = path.rpartition("/")
    holder = tree.find(directory)
    if holder is None or holder.children is None:
        raise UsageError(f"the plan adds {path!r} to a directory that it drops; make it again")
    inode = Inode(Entry(path, Kind.FILE, 0o644), max(holder.layer, 0), 1)
    _replace(inode, literal(content), digest_bytes(content), content[:MAGIC])
    holder.children[name] = Node(inode, inode.layer)


class _Copier:
    """Copies inodes so that each keeps its identity and its links are counted anew."""

    def __init__(self) -> None:
        self._copies: dict[int, Inode] = {}

    def inode(self, inode: Inode) -> Inode:
        copy = self._copies.setdefault(id(inode), Inode(inode.entry, inode.layer))
        copy.links += 1
        return copy

    def inode_of(self, inode: Inode) -> Inode:
        """The copy, without one more link to it."""
        return self._copies.setdefault(id(inode), Inode(inode.entry, inode.layer))


def _replace(inode: Inode, splice: Splice, digest: str, magic: bytes | None = None) -> None:
    magic = inode.entry.magic if magic is None else magic
    inode.entry = replace(inode.entry, size=splice.size, digest=digest, magic=magic, extents=None)
    inode.splice = splice


def _edited(path: str, plan: Plan, files: FileSystem, tree: Tree) -> bytes:
    if path == STATUS:
        return _edited_status(plan, files)

    lent = set(plan.lent)

    def now(name: str) -> Entry | None:
        node = files.nodes[name] if name in lent else tree.find(name)
        return None if node is None else node.inode.entry

    return edited_record(files, path, now)


def _edited_status(plan: Plan, files: FileSystem) -> bytes:
    """Dpkg's database without the packages that leave."""
    text = files.read(STATUS, _MAX_STATUS).decode(errors="surrogateescape")
    removed = set(plan.removed_packages)
    kept = [stanza for stanza in split_stanzas(text) if _name(stanza) not in removed]
    return "".join(f"{stanza}\n\n" for stanza in kept).encode(errors="surrogateescape")


def _name(stanza: str) -> str:
    fields = parse_stanza(stanza)
    return f"{fields.get('Package')}:{fields.get('Architecture')}"
