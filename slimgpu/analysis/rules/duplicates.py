"""Files with the same bytes, which can be one file with several names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slimgpu.analysis.facts import Facts
from slimgpu.analysis.python import RECORD
from slimgpu.analysis.rules.rule import Effect, Match, Rule
from slimgpu.rootfs.entry import Entry, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

_MIN: Final = 4096
_SYSTEM: Final = ("usr/", "opt/", "lib/", "lib64/")


def _find(facts: Facts) -> Iterator[Match]:
    first: dict[tuple[object, ...], str] = {}
    for path, node in facts.files.nodes.items():
        entry = node.inode.entry
        # Only what a package manager put there and only root writes: a program could write one of its own files.
        shared = path in facts.owners and path.startswith(_SYSTEM) and not entry.mode & 0o022
        # A record tells of its own distribution, whose files may come to differ.
        if entry.kind is not Kind.FILE or entry.size < _MIN or not shared or path.endswith(RECORD):
            continue
        kept = first.setdefault(_identity(entry, path), path)
        if facts.files.nodes[kept].inode is not node.inode:
            yield Match(path, f"the same bytes as {kept}", target=kept)


def _identity(entry: Entry, path: str) -> tuple[object, ...]:
    """What has to be equal so that nothing can tell one file from two.

    Modification times differ by seconds within one pip install and mean nothing, except to Python, which holds
    a module's byte code valid only for its source's time.
    """
    mtime = entry.mtime if path.endswith(".py") else 0
    return (entry.digest, entry.mode, entry.uid, entry.gid, entry.xattrs, mtime)


def _copies(facts: Facts) -> Iterator[Match]:
    """Copies that `_find` cannot link: they differ in owner, mode or time, or lie where programs write."""
    linked = {match.path for match in _find(facts)}
    first: dict[str, str] = {}
    for path, node in facts.files.files():
        entry = node.inode.entry
        if entry.size < _MIN:
            continue
        kept = first.setdefault(entry.digest, path)
        if path not in linked and facts.files.nodes[kept].inode is not node.inode:
            yield Match(path, f"the same bytes as {kept}")


RULES: Final = (
    Rule(
        "waste.duplicates",
        "duplicates",
        "files with the same bytes",
        "one of them is enough: the others become hard links to it (same content, mode, owner and attributes).",
        Effect.LINK,
        _find,
    ),
    Rule(
        "waste.copies",
        "duplicates",
        "copies that cannot become links",
        "they differ in owner, mode or time, or lie outside the system's directories; copy once in the Dockerfile.",
        Effect.KEEP,
        _copies,
        Facts.size,
    ),
)
