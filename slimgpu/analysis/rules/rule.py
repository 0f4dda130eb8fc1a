"""What a rule is: a question to the facts whose answers are files, each with its evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import TYPE_CHECKING

from slimgpu.analysis.facts import Facts
from slimgpu.rootfs.entry import Kind

if TYPE_CHECKING:
    from slimgpu.rootfs.tree import Node


class Effect(StrEnum):
    """What ``build`` does about a match."""

    DROP = "drop"
    LINK = "link"
    SHRINK = "shrink"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Match:
    """One file that a rule is about."""

    path: str
    evidence: str
    """Why the rule thinks so."""
    because: str = ""
    """Why it stays although the rule would let it go; '' when nothing holds it."""
    target: str = ""
    """For `Effect.LINK` the path whose content it shares."""

    @property
    def held(self) -> bool:
        """Whether something in the image needs it, so that ``build`` keeps it after all."""
        return bool(self.because)

    @property
    def reason(self) -> str:
        """The evidence and, for what is held back, why it stays, for reports."""
        return f"{self.evidence}: {self.because}" if self.because else self.evidence


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of bytes that an image can do without, or that are worth knowing."""

    id: str
    group: str
    """The category in reports."""
    title: str
    why: str
    """One sentence for people: why these bytes can go, or why they stay."""
    effect: Effect
    find: Callable[[Facts], Iterable[Match]]
    partial: Callable[[Facts, str], int] | None = None
    """For rules about a part of a file: how many of its bytes. Such a rule claims no file."""


def below(facts: Facts, directories: Iterable[str]) -> Iterator[tuple[str, Node]]:
    """Everything but directories, under any of ``directories``; ``home/*/x`` stands for every user's."""
    for directory in _expand(facts, directories):
        node = facts.files.tree.find(directory)
        if node is not None:
            found = chain([(directory, node)], facts.files.tree.walk(directory))
            yield from ((path, leaf) for path, leaf in found if leaf.inode.entry.kind is not Kind.DIRECTORY)


def _expand(facts: Facts, directories: Iterable[str]) -> Iterator[str]:
    homes = facts.files.tree.find("home")
    for directory in directories:
        if directory.startswith("home/*/"):
            yield from (f"home/{user}/{directory[7:]}" for user in sorted((homes and homes.children) or ()))
        else:
            yield directory
