"""Which files of an image are model weights: told by their content, whose headers are read; nothing is loaded or run.

Files under 1 MiB count only where a larger one shows that they belong to a model: shards that an index names, and the
external data of an ONNX model. Names can be links, as in a Hugging Face cache, whose files are called by their hashes.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Final, Self

from slimgpu.errors import ImageError
from slimgpu.rootfs.content import FileBytes
from slimgpu.rootfs.entry import Kind
from slimgpu.units import format_size
from slimgpu.weights.formats import gguf, onnx, pickles, read_tensors, zips
from slimgpu.weights.formats.onnx import external_data
from slimgpu.weights.formats.safetensors import is_safetensors
from slimgpu.weights.formats.shards import shard_index

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from slimgpu.rootfs.entry import Entry
    from slimgpu.rootfs.filesystem import FileSystem
    from slimgpu.weights.formats.tensor import Tensor

MIN: Final = 1024 * 1024
PACKAGED: Final = 64 * 1024 * 1024
"""Weights of at most so many bytes that a package brought stay with its code."""
_HEAD: Final = 64
_INDEX: Final = ".index.json"
_MODEL: Final = ".onnx"
_SHOWN: Final = 3
_UNKNOWN: Final = "U8"
"""What the reader calls bytes of which nothing is known."""


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A file of weights, and what its header says."""

    kind: str
    tensors: int = 0
    parameters: int = 0
    """Elements of all tensors; 0 when the file doesn't say."""
    dtypes: tuple[str, ...] = ()
    """Those with the most bytes first."""
    stays: str = ""
    """Why it is not taken out of the image; '' when it can be."""

    @property
    def described(self) -> str:
        """One line for people."""
        if not self.parameters:
            return self.kind
        types = ", ".join([*self.dtypes[:_SHOWN], *(["..."] if len(self.dtypes) > _SHOWN else [])])
        count = "1 tensor" if self.tensors == 1 else f"{self.tensors} tensors"
        return f"{self.kind}, {count}, {_short(self.parameters)} parameters ({types})"


def _short(count: int) -> str:
    for limit, unit in ((10**9, "B"), (10**6, "M")):
        if count >= limit:
            return f"{count / limit:.2f}{unit}"
    return str(count)


class Originals:
    """The files of an image as its layers hold them, read by position; open as long as the ``with`` block."""

    def __init__(self, files: FileSystem) -> None:
        self._files = files
        self._tars: dict[int, FileBytes] = {}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def content(self, path: str) -> Original:
        """A regular file that is not sparse."""
        inode = self._files.nodes[path].inode
        tar = self._tars.get(inode.layer)
        if tar is None:
            tar = self._open.enter_context(FileBytes(self._files.tars[inode.layer]))
            self._tars[inode.layer] = tar
        return Original(path, tar, inode.entry)


class Original:
    """One file by position, for any number of threads."""

    def __init__(self, path: str, tar: FileBytes, entry: Entry) -> None:
        self._path = path
        self._tar = tar
        self._offset = entry.offset
        self.size = entry.size

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes from ``offset`` on; the caller stays inside the file."""
        data = self._tar.read(self._offset + offset, size)
        if len(data) != size:
            raise ImageError(f"the cached content of {self._path} ends early; empty the cache and run again")
        return data


@dataclass(frozen=True, slots=True)
class _Names:
    """Paths, links too, that have a meaning; each with the file that it leads to."""

    models: dict[str, str] = field(default_factory=dict)
    indexes: dict[str, str] = field(default_factory=dict)


def find_weights(files: FileSystem, owned: Collection[str]) -> dict[str, WeightFile]:
    """All files of weights by path, hard links each; ``owned`` are the paths that a package brought."""
    with Originals(files) as originals:
        return _Finder(files, originals).find(owned)


class _Finder:
    def __init__(self, files: FileSystem, originals: Originals) -> None:
        self._files = files
        self._originals = originals
        self._first: dict[int, str] = {}
        for path, node in files.files():
            self._first.setdefault(id(node.inode), path)
        self._names = self._named()
        self._model_of = {file: name for name, file in self._names.models.items()}
        self._found: dict[str, WeightFile] = {}
        """By the first path of each file."""

    def find(self, owned: Collection[str]) -> dict[str, WeightFile]:
        for path, node in self._files.files():
            if node.inode.entry.size >= MIN and self._files.is_first(path):
                self._look(path)
        for name, file in self._names.models.items():
            self._look_beside(name, file)
        for name, file in self._names.indexes.items():
            self._look_for_shards(name, file)
        return self._with_links(owned)

    def _named(self) -> _Names:
        names = _Names()
        for path, node in self._files.nodes.items():
            into = names.models if path.lower().endswith(_MODEL) else names.indexes if path.endswith(_INDEX) else None
            if into is not None and node.inode.entry.kind in (Kind.FILE, Kind.SYMLINK):
                file = self._file(path)
                if file is not None:
                    into[path] = file
        return names

    def _file(self, path: str) -> str | None:
        """The first name of the readable file that ``path`` leads to."""
        resolved = self._files.tree.resolve(path)
        node = None if resolved is None else self._files.nodes.get(resolved)
        if node is None or node.inode.entry.kind is not Kind.FILE or node.inode.entry.extents is not None:
            return None
        return self._first[id(node.inode)]

    def _look(self, path: str, *, belongs: bool = False) -> None:
        """Find the file if it has tensors and, unless it ``belongs`` to a model, they are at least half of it."""
        if self._files.nodes[path].inode.entry.extents is not None:
            return
        name = self._model_of.get(path, path)
        content = self._originals.content(path)
        kind = _kind(name, content.read(0, min(_HEAD, content.size)), content.size)
        if not kind:
            return
        try:
            tensors = read_tensors(name, content)
        except ImageError as error:
            self._found[path] = WeightFile(kind, stays=str(error))
            return
        if tensors and (belongs or 2 * sum(tensor.size for tensor in tensors) >= content.size):
            self._found[path] = _described(kind, tensors)

    def _look_beside(self, name: str, model: str) -> None:
        """Find the external data of an ONNX model; the model itself stays, it is the code that goes with them."""
        content = self._originals.content(model)
        if not onnx.is_onnx(name, content.read(0, min(_HEAD, content.size))):
            return
        try:
            beside = external_data(name, content)
        except ImageError:
            return
        found = {}
        for external in beside:
            file = self._file(posixpath.join(posixpath.dirname(name), external.location))
            if file is not None and file != model and self._holds(file, external.tensors):
                found[file] = _described("ONNX external data", external.tensors)
        if any(self._size(file) >= MIN for file in found):
            self._found = {**found, **self._found}
        if beside and model in self._found:
            why = "it is the graph of a model whose weights lie beside it"
            self._found[model] = replace(self._found[model], stays=why)

    def _holds(self, file: str, tensors: Iterable[Tensor]) -> bool:
        size = self._size(file)
        return all(tensor.offset + tensor.size <= size for tensor in tensors)

    def _look_for_shards(self, name: str, index: str) -> None:
        """Find the small shards of a model that has a large one."""
        try:
            names = set(shard_index(name, self._originals.content(index)).values())
        except ImageError:
            return
        places = (self._file(posixpath.join(posixpath.dirname(name), each)) for each in sorted(names))
        shards = [file for file in places if file is not None]
        if any(file in self._found for file in shards):
            for file in shards:
                if file not in self._found:
                    self._look(file, belongs=True)

    def _size(self, path: str) -> int:
        return self._files.nodes[path].inode.entry.size

    def _with_links(self, owned: Collection[str]) -> dict[str, WeightFile]:
        """Each found file under all its names; what holds one name holds all."""
        names: dict[str, list[str]] = {}
        for path, node in self._files.files():
            first = self._first[id(node.inode)]
            if first in self._found:
                names.setdefault(first, []).append(path)
        found: dict[str, WeightFile] = {}
        for first, paths in names.items():
            file = self._found[first]
            stays = file.stays or self._bound(paths, owned)
            found |= dict.fromkeys(paths, replace(file, stays=stays))
        return {path: found[path] for path in self._files.nodes if path in found}

    def _bound(self, paths: Collection[str], owned: Collection[str]) -> str:
        """Why a file stays whatever is in it."""
        size = self._size(next(iter(paths)))
        if size <= PACKAGED and any(path in owned for path in paths):
            return f"a package brought it as a part of its code, and it is no larger than {format_size(PACKAGED)}"
        if not all(map(_is_text, paths)):
            return "its name is not UTF-8"
        return ""


def _kind(name: str, head: bytes, size: int) -> str:
    """The format that the first bytes promise; '' when they promise none."""
    if head.startswith(gguf.MAGIC):
        return "GGUF"
    if head.startswith(zips.LOCAL_MAGIC) or pickles.is_legacy(head):
        return "torch checkpoint"
    if is_safetensors(head, size):
        return "safetensors"
    return "ONNX" if onnx.is_onnx(name, head) else ""


def _described(kind: str, tensors: Collection[Tensor]) -> WeightFile:
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.size
    dtypes = tuple(sorted(sizes, key=lambda dtype: (-sizes[dtype], dtype)))
    parameters = sum(prod(tensor.shape) for tensor in tensors) if dtypes != (_UNKNOWN,) else 0
    return WeightFile(kind, len(tensors), parameters, dtypes)


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def leading_to(files: FileSystem, paths: Collection[str]) -> Iterator[tuple[str, str]]:
    """Symbolic links to any of ``paths``, each with the path that it leads to."""
    for path, node in files.nodes.items():
        if node.inode.entry.kind is Kind.SYMLINK:
            target = files.tree.resolve(path)
            if target is not None and target in paths:
                yield path, target
