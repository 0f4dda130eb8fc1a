"""Which packages and distributions are compilers and build tools, and which of those something else needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from slimgpu.analysis.jit import Need
from slimgpu.rootfs.entry import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slimgpu.analysis.debian import DebianPackage
    from slimgpu.analysis.facts import Facts
    from slimgpu.analysis.jit import JitNeeds
    from slimgpu.analysis.python import Distribution

_APT: Final = re.compile(
    r"build-essential|dpkg-dev|(?!gcc-[0-9]+-base)(gcc|g\+\+|cpp|gfortran|gobjc)(-[0-9.]+)?(-.*)?|binutils(-.*)?|libbinutils"
    r"|clang(-.*)?|llvm(-.*)?|lld(-.*)?|rustc|cargo|golang(-go|-src|-doc|-[0-9.]+.*)?|make|cmake(-data)?|meson|ninja-build|autoconf"
    r"|automake|autotools-dev|libtool|bison|flex|swig|ccache|linux-libc-dev|manpages-dev|libc-dev-bin"
    r"|libc-devtools|(?!libcuda).*-dev(-[0-9][0-9-]*)?|lib(a|t|l|ub|hwa)san[0-9]+|libitm1|libcc1-0|libctf.*"
    r"|libgprofng[0-9]+|libisl[0-9]+|libmpc[0-9]+|lto-disabled-list|fakeroot|libfakeroot|libdpkg-perl"
    r"|libfile-fcntllock-perl|libalgorithm-(diff|diff-xs|merge)-perl"
    r"|cuda-(compiler|nvcc|nvvm|crt|cuobjdump|cuxxfilt|nvprune|nvdisasm|gdb|nsight|sanitizer|nvprof|nvvp"
    r"|command-line-tools|visual-tools|libraries-dev|minimal-build|documentation|tools)(-.*)?|nsight-.*"
)
_PYTHON: Final = {
    **dict.fromkeys(
        [
            "nvidia-cuda-nvcc",
            "nvidia-cuda-nvcc-cu11",
            "nvidia-cuda-nvcc-cu12",
            "nvidia-cuda-nvcc-cu13",
            "nvidia-cuda-crt",
            "nvidia-cuda-crt-cu13",
            "nvidia-nvvm",
            "nvidia-nvvm-cu13",
            "nvidia-cuda-tileiras",
        ],
        Need.CUDA_COMPILER,
    ),
    **dict.fromkeys(["cmake", "ninja", "meson"], Need.BUILD_TOOLS),
    **dict.fromkeys(
        ["nvidia-cuda-cuobjdump", "nvidia-cuda-nvdisasm", "nvidia-cuda-nvprune", "nvidia-cuda-cuxxfilt"], None
    ),
}
"""Distributions that are tools, and the need that they serve."""

_ROOTS: Final[Mapping[Need, re.Pattern[str]]] = {
    Need.C_COMPILER: re.compile(r"(gcc|clang)(-[0-9]+)?|.*-dev"),
    Need.CXX_COMPILER: re.compile(r"(gcc|g\+\+|clang)(-[0-9]+)?|.*-dev"),
    Need.BUILD_TOOLS: re.compile(r"make|ninja-build|cmake"),
    Need.PYTHON_HEADERS: re.compile(r"(lib)?python3(\.[0-9]+)?-dev"),
    Need.CUDA_COMPILER: re.compile(r"cuda-(compiler|nvcc|crt|nvvm|cudart-dev|minimal-build)(-.*)?"),
    Need.CUDA_HEADERS: re.compile(r"(cuda|lib(cu|np|nv|nccl).*)-.*-?dev(-.*)?|cuda-cccl.*|libnccl-dev"),
}
"""The packages that serve a need; what they depend on serves it too."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The tool packages of an image: those that can go, and those that stay with the reason."""

    removable: frozenset[str] = frozenset()
    held: Mapping[str, str] = field(default_factory=dict)


def apt_tools(packages: Iterable[DebianPackage], jit: JitNeeds) -> Tools:
    """Sort the installed tool packages.

    One stays when it serves a need of something that compiles at run time, or when a package that is no tool
    depends on it.
    """
    installed = _Installed(packages)
    tools = installed.tools()
    held: dict[str, str] = {}
    for need, pattern in _ROOTS.items():
        reason = jit.holds(need)
        if reason:
            roots = [name for name in installed.by_name if pattern.fullmatch(name)]
            held |= dict.fromkeys(installed.closure(roots) & tools - set(held), reason)
    for name in sorted(set(installed.by_name) - tools):
        for dependency in sorted((installed.closure([name]) & tools) - set(held)):
            held[dependency] = f"the package {name} depends on it"
    return Tools(frozenset(tools - set(held)), held)


class _Installed:
    """Installed packages and what they depend on."""

    def __init__(self, packages: Iterable[DebianPackage]) -> None:
        self.by_name = {package.name: package for package in packages}
        self._providers: dict[str, set[str]] = {}
        for package in self.by_name.values():
            for name in (package.name, *package.provides):
                self._providers.setdefault(name, set()).add(package.name)

    def tools(self) -> set[str]:
        """Tool packages, and metapackages (nothing but documentation of their own) that depend on one."""
        tools = {name for name, package in self.by_name.items() if _APT.fullmatch(name) and not package.essential}
        metapackages = {name for name, package in self.by_name.items() if _is_metapackage(package)} - tools
        while found := {name for name in metapackages if self._direct(name) & tools}:
            tools |= found
            metapackages -= found
        return tools

    def _direct(self, name: str) -> set[str]:
        names = (alternative for choice in self.by_name[name].depends for alternative in choice)
        return {provider for alternative in names for provider in self._providers.get(alternative, ())}

    def closure(self, roots: Iterable[str]) -> set[str]:
        """The packages themselves and everything installed that they depend on."""
        seen: set[str] = set()
        pending = list(roots)
        while pending:
            name = pending.pop()
            if name in seen:
                continue
            seen.add(name)
            pending += self._direct(name)
        return seen


def _is_metapackage(package: DebianPackage) -> bool:
    """Whether the package has files, and all of them are its documentation."""
    directories = {path.rpartition("/")[0] for path in package.files}
    leaves = [path for path in package.files if path not in directories]
    return not package.essential and bool(leaves) and all(path.startswith("usr/share/doc/") for path in leaves)


def python_tools(distributions: Iterable[Distribution], jit: JitNeeds) -> Tools:
    """Sort the installed tool distributions, as `apt_tools` does."""
    present = list(distributions)
    tools = {d.name for d in present if d.name in _PYTHON}
    required = {name: d.name for d in present if d.name not in tools for name in d.requires}
    held: dict[str, str] = {}
    for name in sorted(tools):
        need = _PYTHON[name]
        reason = jit.holds(need) if need is not None else ""
        if not reason and name in required:
            reason = f"{required[name]} requires it"
        if reason:
            held[name] = reason
    return Tools(frozenset(tools - set(held)), held)


def leads_to_library(facts: Facts, path: str) -> bool:
    """Whether it is a ``libx.so`` of a -dev package that leads to the library proper: programs load it by that name."""
    if facts.files.nodes[path].inode.entry.kind is not Kind.SYMLINK:
        return False
    target = facts.files.tree.resolve(path)
    owner = None if target is None else facts.owners.get(target)
    return target in facts.elf and (owner is None or _APT.fullmatch(owner.name) is None)
