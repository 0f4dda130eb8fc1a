"""Debug information: whole files of it, and sections inside libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slimgpu.analysis.rules.rule import Effect, Match, Rule, below
from slimgpu.elf.read import MAGIC

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.analysis.facts import Facts


def _files(facts: Facts) -> Iterator[Match]:
    for path, node in below(facts, ["usr/lib/debug"]):
        if node.inode.entry.magic.startswith(MAGIC):
            yield Match(path, "separate debug file")


def _sections(facts: Facts) -> Iterator[Match]:
    for path, shrunk in facts.shrunk.items():
        if shrunk.result.symbols:
            elf = facts.elf[path]
            yield Match(path, f"{elf.debug} bytes of debug sections, {elf.symbols} of symbol tables")


def _section_bytes(facts: Facts, path: str) -> int:
    return facts.shrunk[path].result.symbols if facts.size(path) else 0


RULES: Final = (
    Rule(
        "debug.files",
        "debug information",
        "separate debug files",
        "only debuggers read them.",
        Effect.DROP,
        _files,
    ),
    Rule(
        "debug.sections",
        "debug information",
        "debug sections and symbol tables inside libraries",
        "only debuggers and linkers read them; the loader's symbols, the build id and the unwinding tables stay.",
        Effect.SHRINK,
        _sections,
        _section_bytes,
    ),
)
