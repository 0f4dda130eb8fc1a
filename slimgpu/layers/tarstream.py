"""One layer's tar, produced as it is read: headers, content and padding, each file checked on its way."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from slimgpu.errors import ImageError
from slimgpu.rootfs import tarwrite
from slimgpu.rootfs.entry import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slimgpu.rootfs.entry import Entry
    from slimgpu.rootfs.filesystem import FileSystem
    from slimgpu.rootfs.tree import Inode, Node


def layer_entries(paths: Sequence[str], files: FileSystem, *, top: bool) -> list[Entry]:
    """The entries of a layer, parents before children.

    Every directory above one of ``paths`` is there, because engines that unpack a layer by itself would make it
    up. What is in a directory changes its modification time, so directories have their own only in the ``top`` layer,
    which names them all, and 1970 in the others, so that these do not depend on what else is in the image.
    """
    wanted = {parent for path in paths for parent in _parents(path)} | set(paths)
    if top:
        wanted |= {path for path, node in files.nodes.items() if _has_time(node)}
    entries: list[Entry] = []
    if top and files.tree.root.layer >= 0:
        entries.append(replace(files.tree.root.inode.entry, path=""))
    first: dict[int, str] = {}
    for path in sorted(wanted, key=lambda name: name.split("/")):
        inode = files.nodes[path].inode
        entry = replace(inode.entry, path=path)
        if entry.kind is Kind.DIRECTORY and not top:
            entry = replace(entry, mtime=0)
        if entry.kind is not Kind.DIRECTORY and first.setdefault(id(inode), path) != path:
            entry = replace(entry, kind=Kind.HARDLINK, link=first[id(inode)], size=0, xattrs=())
        entries.append(entry)
    return entries


def _has_time(node: Node) -> bool:
    return node.inode.entry.kind is Kind.DIRECTORY and node.inode.entry.mtime != 0


def _parents(path: str) -> Iterator[str]:
    """The directories above a path, without the root."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def tar_size(entries: Sequence[Entry]) -> int:
    """Bytes of the tar that `tar_chunks` gives for these entries."""
    sizes = (len(tarwrite.header(entry)) + _padded(entry) for entry in entries)
    return sum(sizes) + len(tarwrite.END)


def _padded(entry: Entry) -> int:
    return entry.size + len(tarwrite.padding(entry.size)) if entry.kind is Kind.FILE else 0


def tar_chunks(entries: Sequence[Entry], files: FileSystem) -> Iterator[bytes]:
    """The tar in pieces; `ImageError` when a file's content is no longer what was indexed."""
    for entry in entries:
        yield tarwrite.header(entry)
        if entry.kind is Kind.FILE and entry.size:
            yield from _checked(entry.path, files.nodes[entry.path].inode, files)
            yield tarwrite.padding(entry.size)
    yield tarwrite.END


def _checked(path: str, inode: Inode, files: FileSystem) -> Iterator[bytes]:
    hasher = hashlib.sha256()
    for piece in files.content(inode):
        hasher.update(piece)
        yield piece
    if f"sha256:{hasher.hexdigest()}" != inode.entry.digest:
        raise ImageError(f"the cached content of {path} has changed; empty the cache directory and run again")


def gathered(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of about ``size``, so that the cost of each step is shared by many small files."""
    parts: list[bytes] = []
    count = 0
    for chunk in chunks:
        parts.append(chunk)
        count += len(chunk)
        if count >= size:
            yield b"".join(parts)
            parts, count = [], 0
    if parts:
        yield b"".join(parts)
