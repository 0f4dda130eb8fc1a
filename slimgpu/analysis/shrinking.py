"""What becomes of each file that is shrunk: computed by a pool of processes, kept in the cache by the file's digest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import mmap
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import zstandard

from slimgpu import elf, rootfs
from slimgpu.elf.shrink import Shrunk, Wanted, shrink
from slimgpu.parallel import ordered_map, process_pool
from slimgpu.rootfs.splice import Splice

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from slimgpu.elf.read import ElfFacts
    from slimgpu.rootfs.filesystem import FileSystem
    from slimgpu.store.context import Context


def _version() -> str:
    """Names the transform: what another version of it gave is not to be used."""
    hasher = hashlib.sha256()
    for package in (elf, rootfs):
        for path in sorted(Path(package.__path__[0]).glob("*.py")):
            hasher.update(path.read_bytes())
    return f"shrink-{hasher.hexdigest()[:16]}"


_FORMAT: Final = _version()


@dataclass(frozen=True, slots=True)
class ShrunkFile:
    """A file's shrunk form."""

    result: Shrunk
    digest: str = ""
    """Of the new content; '' when the file stays as it is."""


class _Work(NamedTuple):
    """A file's content by its place in a layer's tar, and what is wanted of it."""

    tar: Path
    offset: int
    size: int
    wanted: Wanted


def applicable(wanted: Wanted, facts: ElfFacts) -> Wanted:
    """As much of the wish as a file has use for, so that its result is not made anew for another GPU in vain."""
    policy = wanted.policy if facts.code else None
    return Wanted(policy, symbols=wanted.symbols and bool(facts.debug + facts.symbols))


def as_sealed(file: ShrunkFile, seal: str) -> ShrunkFile:
    """The same for a file that must not change, with the reason."""
    return replace(file, result=replace(file.result, untouched=f"{seal} vouches for its bytes"))


def shrink_files(files: FileSystem, wishes: Mapping[str, Wanted], context: Context) -> dict[str, ShrunkFile]:
    """The shrunk form of each path in ``wishes``; its file must not be sparse."""
    found: dict[tuple[str, str], bytes] = {}
    missing: dict[tuple[str, str], _Work] = {}
    keys: dict[str, tuple[str, str]] = {}
    for path, wanted in wishes.items():
        inode = files.nodes[path].inode
        key = keys[path] = (_kind(wanted), inode.entry.digest)
        if key in found or key in missing:
            continue
        data = context.cache.recall(*key)
        if data is None:
            missing[key] = _Work(files.tars[inode.layer], inode.entry.offset, inode.entry.size, wanted)
        else:
            found[key] = data
    for key, data in _computed(missing, context):
        context.cache.keep(*key, data)
        found[key] = data
    loaded = {key: _load(data) for key, data in found.items()}
    return {path: loaded[key] for path, key in keys.items()}


def _kind(wanted: Wanted) -> str:
    """The name under which results of that wish are kept."""
    parts = [_FORMAT, "symbols" if wanted.symbols else ""]
    if wanted.policy is not None:
        parts += [*map(str, wanted.policy.targets), "ptx" if wanted.policy.keep_ptx else ""]
        parts.append("native" if wanted.policy.native else "")
    return "-".join(filter(None, parts))


def _computed(missing: Mapping[tuple[str, str], _Work], context: Context) -> Iterator[tuple[tuple[str, str], bytes]]:
    """The results, the largest files first, so that no worker is left with one at the end."""
    ordered = sorted(missing, key=lambda key: -missing[key].size)
    total = sum(work.size for work in missing.values())
    with context.progress.task("shrinking files", total) as task:
        for key, data in zip(ordered, _mapped((missing[key] for key in ordered), len(ordered), context), strict=True):
            task.advance(missing[key].size)
            yield key, data


def _mapped(works: Iterable[_Work], count: int, context: Context) -> Iterator[bytes]:
    if count <= 1:
        yield from map(_shrink_one, works)
        return
    with process_pool(min(context.jobs, count), __name__) as pool:
        yield from ordered_map(pool, _shrink_one, works, 4 * context.jobs)


@cache
def _mapping(tar: Path) -> mmap.mmap:
    """A spooled layer, which never changes."""
    with tar.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)


def _shrink_one(work: _Work) -> bytes:
    layer = _mapping(work.tar)
    try:
        return _dump(_shrunk(memoryview(layer)[work.offset : work.offset + work.size], work.wanted))
    finally:
        layer.madvise(mmap.MADV_DONTNEED)  # else every page ever looked at counts as this process's memory


def _shrunk(data: memoryview, wanted: Wanted) -> ShrunkFile:
    result = shrink(data, wanted)
    if result.splice is None:
        return ShrunkFile(result)
    hasher = hashlib.sha256()
    for piece in result.splice.content(lambda offset, size: data[offset : offset + size]):
        hasher.update(piece)
    return ShrunkFile(result, f"sha256:{hasher.hexdigest()}")


def _dump(file: ShrunkFile) -> bytes:
    facts = json.dumps([file.digest, dataclasses.asdict(replace(file.result, splice=None))]).encode()
    splice = b"" if file.result.splice is None else file.result.splice.dump()
    return zstandard.compress(facts + b"\n" + splice, 3)


def _load(data: bytes) -> ShrunkFile:
    facts, _, splice = zstandard.decompress(data).partition(b"\n")
    digest, fields = json.loads(facts)
    for name in ("code_before", "code_after"):
        fields[name] = tuple((label, size) for label, size in fields[name])
    fields["missing"] = tuple(fields["missing"])
    fields["splice"] = Splice.load(splice) if splice else None
    return ShrunkFile(Shrunk(**fields), digest)
