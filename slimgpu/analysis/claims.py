"""Which rule each file belongs to, and what is held back because something kept needs it."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from slimgpu.analysis.rules import RULES
from slimgpu.analysis.rules.caches import CACHES
from slimgpu.analysis.rules.rule import Effect, Match, Rule
from slimgpu.elf.closure import Loader, library_path, search_directories
from slimgpu.rootfs.entry import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from slimgpu.analysis.facts import Facts
    from slimgpu.oci.config import ImageConfig

_ALTERNATIVES: Final = "etc/alternatives/"
_DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Claim:
    """A rule's answer about one file."""

    rule: Rule
    match: Match

    @property
    def effect(self) -> Effect:
        """What ``build`` does with the file."""
        return Effect.KEEP if self.match.held else self.rule.effect


Claims = Mapping[str, Claim]
"""By path; files without a claim are kept and nothing is said of them."""


def claim(facts: Facts) -> dict[str, Claim]:
    """Every claim, with what the kept files need held back."""
    claims: dict[str, Claim] = {}
    for rule in RULES:
        if rule.partial is None:
            for match in rule.find(facts):
                claims.setdefault(match.path, Claim(rule, match))
    _hold(claims, list(_started(facts, claims)), "the image starts it")
    _follow_links(facts, claims)
    _hold_needed(facts, claims)
    return _relink(claims)


def _goes(claims: Claims, path: str) -> bool:
    claim = claims.get(path)
    return claim is not None and claim.effect is Effect.DROP


def _hold(claims: dict[str, Claim], paths: Iterable[str], why: str) -> list[str]:
    """Keep ``paths`` after all; gives those that were to go."""
    going = [path for path in dict.fromkeys(paths) if _goes(claims, path)]
    for path in going:
        claims[path] = replace(claims[path], match=replace(claims[path].match, because=why))
    return going


def _started(facts: Facts, claims: Claims) -> Iterator[str]:
    """What the words of the image's commands lead to, and the paths that its environment names."""
    values = facts.config.environment.values()
    named = [part for value in values for part in re.split(r"[:;\s]", value) if "/" in part]
    directory = str(facts.config.runtime.get("WorkingDir") or "/")
    for word in sorted({*facts.config.command_words, *named}):
        for place in (*places_of(word, facts.config), posixpath.join(directory, word)):
            trail = facts.files.tree.trail(place) or [""]
            yield from trail
            if trail[-1] and _is_in_cache(facts, claims, trail[-1]):
                yield from (path for path, _ in facts.files.tree.walk(trail[-1]))


def places_of(command: str, config: ImageConfig) -> list[str]:
    """Where a command can lie, by the PATH and the working directory of the image."""
    if "/" in command:
        return [posixpath.join(str(config.runtime.get("WorkingDir") or "/"), command)]
    return [f"{directory}/{command}" for directory in config.environment.get("PATH", _DEFAULT_PATH).split(":")]


def _follow_links(facts: Facts, claims: dict[str, Claim]) -> None:
    """A kept symlink holds what it leads to; one of Debian's alternatives goes along with it."""
    links = [path for path, node in facts.files.nodes.items() if node.inode.entry.kind is Kind.SYMLINK]
    pending = [path for path in links if not _goes(claims, path)]
    alternatives: dict[str, str] = {}
    while pending:
        path = pending.pop()
        trail = facts.files.tree.trail(path) or [path]
        why = f"the symlink {path} leads to it"
        if _is_in_cache(facts, claims, trail[-1]):
            pending += _hold(claims, (*trail, *(below for below, _ in facts.files.tree.walk(trail[-1]))), why)
        if not _goes(claims, trail[-1]):
            continue
        if any(step.startswith(_ALTERNATIVES) for step in trail):
            alternatives[path] = trail[-1]
        else:
            pending += _hold(claims, trail, why)
    for path, target in alternatives.items():  # now that no other link can hold the target any more
        if _goes(claims, target):
            claims[path] = replace(claims[target], match=Match(path, f"alternative that leads to {target}"))


def _is_in_cache(facts: Facts, claims: Claims, path: str) -> bool:
    """Whether a directory has only files of a cache below it: uv and conda link whole packages into theirs."""
    found = False
    for leaf, node in facts.files.tree.walk(path):
        if node.children is None:
            if leaf not in claims or claims[leaf].rule.group != CACHES:
                return False
            found = True
    return found


def _hold_needed(facts: Facts, claims: dict[str, Claim]) -> None:
    """Keep every library that a kept ELF file needs, and what those need in turn."""
    loader = loader_of(facts)
    pending = [path for path in facts.elf if not _goes(claims, path)]
    while pending:
        path = pending.pop()
        for provider in loader.providers(path).values():
            needed = (provider.path, *provider.links)
            pending += [held for held in _hold(claims, needed, f"{path} needs it") if held in facts.elf]


def loader_of(facts: Facts) -> Loader:
    """The image's dynamic loader."""
    environment = library_path(facts.config.environment)
    return Loader(facts.elf, facts.files.tree.trail, search_directories(facts.files), environment)


def _relink(claims: dict[str, Claim]) -> dict[str, Claim]:
    """Let duplicates share a file that stays."""
    keepers: dict[str, str] = {}
    for path, claim in list(claims.items()):
        if claim.rule.effect is not Effect.LINK:
            continue
        target = claim.match.target
        if not _goes(claims, target):
            continue
        if target not in keepers:
            keepers[target] = path
            del claims[path]
        else:
            match = Match(path, f"the same bytes as {keepers[target]}", target=keepers[target])
            claims[path] = replace(claim, match=match)
    return claims
