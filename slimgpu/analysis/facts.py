"""Everything that rules look at, gathered once an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slimgpu.analysis.binaries import read_binaries
from slimgpu.analysis.debian import DebianPackage, read_packages
from slimgpu.analysis.gpu_code import check_targets, codes_in
from slimgpu.analysis.jit import JitNeeds, jit_needs
from slimgpu.analysis.python import Distribution, read_distributions
from slimgpu.analysis.seals import sealed
from slimgpu.analysis.shrinking import ShrunkFile, applicable, as_sealed, shrink_files
from slimgpu.analysis.tools import Tools, apt_tools, python_tools
from slimgpu.analysis.weights import WeightFile, find_weights
from slimgpu.elf.choice import Code
from slimgpu.elf.cubin import NEEDED, is_container, may_be_code, read_code
from slimgpu.elf.read import ElfFacts
from slimgpu.elf.shrink import NOTHING, Wanted
from slimgpu.oci.config import ImageConfig
from slimgpu.rootfs.filesystem import FileSystem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slimgpu.oci.image import Image
    from slimgpu.rootfs.entry import Entry
    from slimgpu.store.context import Context


@dataclass(frozen=True, slots=True)
class Owner:
    """Who brought a file."""

    kind: str
    """``apt`` or ``python``."""
    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class Facts:
    """One image's facts; paths are those of the merged tree."""

    files: FileSystem
    config: ImageConfig
    packages: tuple[DebianPackage, ...]
    distributions: tuple[Distribution, ...]
    owners: Mapping[str, Owner]
    """The owner of each path that has one; the directories of a package are not in it."""
    elf: Mapping[str, ElfFacts]
    jit: JitNeeds
    apt_tools: Tools
    """Compilers and build tools among the packages."""
    python_tools: Tools
    """The same among the distributions."""
    wanted: Wanted
    """What may go of files."""
    seals: Mapping[str, str]
    """What vouches for the exact bytes of a file, by the file's path."""
    shrunk: Mapping[str, ShrunkFile]
    """The form that this gives each file with GPU code, symbols or debug information."""
    gpu_files: Mapping[str, Code]
    """Files that are a piece of GPU code by themselves."""
    weights: Mapping[str, WeightFile]
    """Files of model weights."""

    def size(self, path: str) -> int:
        """Bytes of a regular file; 0 for everything else, and for all but the first of its hard links."""
        return self.files.nodes[path].inode.entry.size if self.files.is_first(path) else 0


def gather(
    files: FileSystem, image: Image, context: Context, wanted: Wanted = NOTHING, *, heed_jit: bool = True
) -> Facts:
    """The facts of an unpacked image; ``heed_jit`` False: as if nothing compiled at run time.

    Raises `UsageError` when ``wanted`` names a GPU that can use none of the image's GPU code.
    """
    packages = read_packages(files)
    distributions = read_distributions(files)
    jit = jit_needs(distributions, files.nodes) if heed_jit else JitNeeds()
    elf = read_binaries(files, image, context)
    seals = sealed(files)
    shrunk = shrink_files(files, _wishes(files, elf, wanted, seals), context)
    shrunk |= {path: as_sealed(shrunk[path], seals[path]) for path in seals if path in shrunk}
    gpu_files = dict(_gpu_files(files))
    owners = _owners(files, packages, distributions)
    check_targets(wanted.policy, {*codes_in(shrunk.values()), *gpu_files.values()})
    return Facts(
        files=files,
        config=image.config,
        packages=packages,
        distributions=distributions,
        owners=owners,
        elf=elf,
        jit=jit,
        apt_tools=apt_tools(packages, jit),
        python_tools=python_tools(distributions, jit),
        wanted=wanted,
        seals=seals,
        shrunk=shrunk,
        gpu_files=gpu_files,
        weights=find_weights(files, owners),
    )


def _wishes(
    files: FileSystem, elf: Mapping[str, ElfFacts], wanted: Wanted, seals: Mapping[str, str]
) -> dict[str, Wanted]:
    """What may go of each file that has GPU code, symbols or debug information; nothing of what is sealed."""
    found = {path: applicable(wanted, facts) for path, facts in elf.items() if _is_of_interest(facts)}
    containers = (path for path, node in files.files() if _is_container(node.inode.entry))
    found |= dict.fromkeys(containers, Wanted(wanted.policy, symbols=False))
    return {path: NOTHING if path in seals else wish for path, wish in found.items()}


def _is_of_interest(elf: ElfFacts) -> bool:
    return elf.scattered or bool(elf.code + elf.debug + elf.symbols)


def _is_container(entry: Entry) -> bool:
    return entry.extents is None and is_container(entry.magic)


def _gpu_files(files: FileSystem) -> Iterator[tuple[str, Code]]:
    for path, node in files.files():
        entry = node.inode.entry
        if entry.extents is None and may_be_code(entry.magic):
            code = read_code(files.head(node.inode, NEEDED))
            if code is not None:
                yield path, code


def _owners(
    files: FileSystem, packages: Sequence[DebianPackage], distributions: Sequence[Distribution]
) -> dict[str, Owner]:
    owners: dict[str, Owner] = {}
    for package in packages:
        owner = Owner("apt", package.name, package.version)
        paths = (*package.files, *package.records)
        owners.update(dict.fromkeys((p for p in paths if files.nodes[p].children is None), owner))
    for distribution in distributions:
        owner = Owner("python", distribution.name, distribution.version)
        for path in distribution.files:
            owners.setdefault(path, owner)
    for path in files.nodes:
        source = bytecode_source(path)
        if source in owners and path not in owners:
            owners[path] = owners[source]
    return owners


def bytecode_source(path: str) -> str:
    """The ``.py`` that a ``__pycache__/*.pyc`` was compiled from; '' for every other path."""
    directory, slash, name = path.rpartition("/")
    if not slash or not name.endswith(".pyc") or not directory.endswith("__pycache__"):
        return ""
    return f"{directory.removesuffix('__pycache__')}{name.partition('.')[0]}.py"
