"""An image's file system: the merged tree together with the content of its files."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from slimgpu.errors import ImageError, NotFoundError
from slimgpu.rootfs.content import FileBytes
from slimgpu.rootfs.entry import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from slimgpu.rootfs.entry import Entry
    from slimgpu.rootfs.tree import Inode, Node, Tree


class FileSystem:
    """Read access to stacked layers, whose tars lie uncompressed in files; open as long as the ``with`` block."""

    def __init__(self, tree: Tree, tars: Sequence[Path], layers: Sequence[Sequence[Entry]]) -> None:
        self.tree = tree
        self.nodes: dict[str, Node] = dict(tree.walk())
        self.tars = tars
        self.layers = layers
        self._first: dict[int, str] = {}
        for path, node in self.nodes.items():
            if node.inode.links > 1:
                self._first.setdefault(id(node.inode), path)
        self._tars: list[FileBytes] = []
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._tars = [self._open.enter_context(FileBytes(path)) for path in self.tars]
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def files(self) -> Iterator[tuple[str, Node]]:
        """Every path of a regular file; hard links each."""
        return ((path, node) for path, node in self.nodes.items() if node.inode.entry.kind is Kind.FILE)

    def is_first(self, path: str) -> bool:
        """Whether the path is the first of its file's hard links."""
        return self._first.get(id(self.nodes[path].inode), path) == path

    def content(self, inode: Inode) -> Iterator[bytes]:
        """The bytes of a regular file, in pieces."""
        data, entry = self._tars[inode.layer], inode.entry
        if inode.splice is None:
            return data.content(entry)
        return map(bytes, inode.splice.content(lambda offset, size: data.read(entry.offset + offset, size)))

    def read(self, path: str, limit: int) -> bytes:
        """The file that ``path`` leads to; `NotFoundError` if none, `ImageError` if over ``limit`` bytes."""
        resolved = self.tree.resolve(path)
        node = None if resolved is None else self.nodes.get(resolved)
        if node is None or node.inode.entry.kind is not Kind.FILE:
            raise NotFoundError(f"{path} is not a file in the image")
        if node.inode.entry.size > limit:
            raise ImageError(f"{path} is {node.inode.entry.size} bytes long, more than the {limit} it may have")
        return b"".join(self.content(node.inode))

    def head(self, inode: Inode, size: int) -> bytes:
        """The first bytes of a regular file that is not sparse."""
        return self._tars[inode.layer].read(inode.entry.offset, min(size, inode.entry.size))
