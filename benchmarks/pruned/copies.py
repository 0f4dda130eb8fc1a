"""A copy of site directories in which every ELF file is its pruned form, and all else is a link to the original."""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from slimgpu.elf.arch import parse_target
from slimgpu.elf.choice import Policy
from slimgpu.elf.read import is_elf
from slimgpu.elf.shrink import Shrunk, Wanted, shrink_file
from slimgpu.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Shrink = Callable[[Path, Path], Shrunk]
    """Writes the pruned form of the first file to the second."""

_MAGIC_BYTES = 20
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Library:
    """One ELF file of the copy, against its original."""

    path: str
    original: str
    before: int
    """Bytes, as is the next."""
    after: int
    allocated_before: int
    """Bytes that the file system holds for it, as is the next."""
    allocated_after: int
    code: int
    """Bytes of GPU code that went."""
    symbols: int
    """Bytes of symbols and debug information that went."""
    method: str
    untouched: str
    """Why nothing was taken out, or ''."""
    seconds: float


def pruning(gpu: str) -> Shrink:
    """What slimgpu does for that GPU."""
    return partial(_shrink, Wanted(Policy((parse_target(gpu),), keep_ptx=False, native=False), symbols=True))


def make_copy(roots: Mapping[Path, Path], shrink: Shrink, jobs: int) -> Iterator[Library]:
    """Copy each directory to the path it maps to; gives every ELF file once it is done."""
    pairs = [pair for root, copy in roots.items() for pair in _mirror(root, copy)]
    pairs.sort(key=lambda pair: -pair[0].stat().st_size)  # the one that takes longest must not begin last
    with ProcessPoolExecutor(jobs) as pool:
        try:
            for done in as_completed([pool.submit(_library, shrink, *pair) for pair in pairs]):
                yield done.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def elf_files(root: Path) -> Iterator[Path]:
    """The ELF files below a directory, each once, as `make_copy` sees them."""
    for directory, _, names in os.walk(root):
        for path in (Path(directory, name) for name in names):
            if not _inner_link(path, root) and _is_elf(path):
                yield path


def _mirror(root: Path, copy: Path) -> Iterator[tuple[Path, Path]]:
    """Make all but the ELF files; gives those, each with where its pruned form goes."""
    for directory, children, names in os.walk(root):
        there = copy / Path(directory).relative_to(root)
        there.mkdir(parents=True, exist_ok=True)
        for child in children:
            if Path(directory, child).is_symlink():
                (there / child).symlink_to(_target(Path(directory, child), root))
        for name in names:
            source = Path(directory, name)
            if _inner_link(source, root):
                (there / name).symlink_to(source.readlink())
            elif _is_elf(source):
                yield source, there / name
            elif source.exists():
                _link(source, there / name)


def _inner_link(path: Path, root: Path) -> bool:
    """Whether it is a link that means the same file of the copy when it is copied as it is."""
    return path.is_symlink() and not path.readlink().is_absolute() and path.resolve().is_relative_to(root)


def _target(path: Path, root: Path) -> Path:
    return path.readlink() if _inner_link(path, root) else path.resolve()


def _link(source: Path, destination: Path) -> None:
    try:
        os.link(source.resolve(), destination)
    except OSError:  # another file system, or one without hard links
        destination.symlink_to(source.resolve())


def _is_elf(path: Path) -> bool:
    try:
        with path.open("rb", buffering=0) as stream:
            return is_elf(stream.read(_MAGIC_BYTES))
    except OSError:  # a link to nothing, or no file
        return False


def _library(shrink: Shrink, source: Path, destination: Path) -> Library:
    started = time.perf_counter()
    shrunk = shrink(source, destination)
    seconds = time.perf_counter() - started
    shutil.copystat(source, destination)
    was, now = source.stat(), destination.stat()
    return Library(
        path=str(destination),
        original=str(source),
        before=was.st_size,
        after=now.st_size,
        allocated_before=was.st_blocks * _BLOCK,
        allocated_after=now.st_blocks * _BLOCK,
        code=shrunk.code,
        symbols=shrunk.symbols,
        method=shrunk.method,
        untouched=shrunk.untouched,
        seconds=round(seconds, 3),
    )


def _shrink(wanted: Wanted, source: Path, destination: Path) -> Shrunk:
    try:
        return shrink_file(source, destination, wanted)
    except ImageError as error:
        shutil.copyfile(source, destination)
        size = source.stat().st_size
        return Shrunk(size, size, untouched=str(error))
