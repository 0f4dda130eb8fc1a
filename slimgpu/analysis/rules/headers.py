"""Headers and static archives: inputs of compilers, of no use to a program that runs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from slimgpu.analysis.jit import Need
from slimgpu.analysis.rules.rule import Effect, Match, Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.analysis.facts import Facts

_AR: Final = (b"!<arch>\n", b"!<thin>\n")
_HEADER: Final = re.compile(r"[^.]+|.*\.(h|hh|hpp|hxx|h\+\+|cuh|inl|inc|ipp|tcc|tpp|def)")
_SYSTEM: Final = ("usr/include/", "usr/local/include/", "opt/conda/include/")
_CUDA: Final = re.compile(r"usr/local/cuda[^/]*/.*")
_PYTHON: Final = re.compile(r"(.*/)?include/python[0-9.]+[a-z]*/.*")


def _headers(facts: Facts) -> Iterator[Match]:
    for path, node in facts.files.nodes.items():
        name = path.rpartition("/")[2]
        if node.children is None and _is_include(facts, path) and _HEADER.fullmatch(name):
            yield Match(path, "header", because=_because(facts, path, own=True))


def _is_include(facts: Facts, path: str) -> bool:
    if path.startswith(_SYSTEM):
        return True
    owner = facts.owners.get(path)
    inside = "/include/" in path
    return inside and (_CUDA.fullmatch(path) is not None or (owner is not None and owner.kind == "python"))


def _archives(facts: Facts) -> Iterator[Match]:
    for path, node in facts.files.files():
        if path.endswith(".a") and node.inode.entry.magic.startswith(_AR):
            yield Match(path, "static archive", because=_because(facts, path, own=False))


def _because(facts: Facts, path: str, *, own: bool) -> str:
    """What compiles with it at run time; ``own``: whether distributions that compile need such files of their own."""
    jit, owner = facts.jit, facts.owners.get(path)
    compilers = jit.holds(Need.C_COMPILER, Need.CXX_COMPILER)
    if _CUDA.fullmatch(path) or (owner is not None and owner.name.startswith(("nvidia-", "cuda-"))):
        # torch's own C++ headers include CUDA's.
        return jit.holds(Need.CUDA_HEADERS, Need.CUDA_COMPILER) or (compilers if own else "")
    if _PYTHON.fullmatch(path):
        return jit.holds(Need.PYTHON_HEADERS)
    if owner is not None and owner.kind == "apt":
        # Not a tool package itself, but it holds headers all the same: they stay with the compilers.
        return facts.apt_tools.held.get(owner.name) or compilers
    if owner is None:
        return compilers
    # Which headers of which distributions are compiled at run time no table can tell: all or none.
    return (compilers or jit.holds(Need.CUDA_HEADERS, Need.CUDA_COMPILER)) if own else ""


RULES: Final = (
    Rule(
        "compile.static-archives",
        "static archives",
        "static archives",
        "only linkers read them; they stay with the compiler that something needs at run time.",
        Effect.DROP,
        _archives,
    ),
    Rule(
        "compile.headers",
        "headers",
        "C, C++ and CUDA headers",
        "only compilers read them; they stay with the compiler that something needs at run time.",
        Effect.DROP,
        _headers,
    ),
)
