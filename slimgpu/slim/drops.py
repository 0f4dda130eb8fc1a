"""What goes because something else goes: symlinks that led to it, and directories that held nothing else."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from slimgpu.analysis.facts import Facts
    from slimgpu.rootfs.patterns import Patterns


def following(facts: Facts, gone: Collection[str], keep: Patterns) -> Iterator[tuple[str, str]]:
    """Paths that go because ``gone`` go, each with what it led to, or '' for a directory that loses all it held.

    A directory that goes can leave a link dangling, and a link can be the last in its directory. Directories that a
    package that stays names, and those that programs count on, stay.
    """
    nodes = facts.files.nodes
    lost = set(gone)
    links = _links_by_step(facts)
    needed = _counted_on(facts) | _named(facts, lost)
    left: dict[str, int] = {}
    pending = deque(gone)
    while pending:
        path = pending.popleft()
        for link in links.get(path, ()):
            if link not in lost and not keep.match(link):
                yield link, next(step for step in _steps(facts, link) if step in lost)
                lost.add(link)
                pending.append(link)
        parent = path.rpartition("/")[0]
        if parent:
            left[parent] = left.get(parent, len(nodes[parent].children or ())) - 1
            if left[parent] == 0 and parent not in lost and parent not in needed and not keep.match(parent):
                yield parent, ""
                lost.add(parent)
                pending.append(parent)


def _steps(facts: Facts, link: str) -> list[str]:
    """What the link leads to, and the links on the way there; empty when it leads nowhere."""
    return (facts.files.tree.trail(link) or [])[1:]


def _links_by_step(facts: Facts) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path, node in facts.files.nodes.items():
        if node.inode.entry.link:
            for step in _steps(facts, path):
                found.setdefault(step, []).append(path)
    return found


def _named(facts: Facts, lost: Collection[str]) -> set[str]:
    """What the packages name of which dpkg's records stay."""
    staying = (package for package in facts.packages if not all(record in lost for record in package.records))
    return {path for package in staying for path in package.files}


def _counted_on(facts: Facts) -> set[str]:
    """Directories that have to be there, even empty: the top ones, users' homes, and what the configuration names."""
    runtime = facts.config.runtime
    volumes = runtime.get("Volumes")
    named = [runtime.get("WorkingDir"), facts.config.environment.get("HOME")]
    named += volumes if isinstance(volumes, dict) else ()
    tree = facts.files.tree
    found = {path for text in named if isinstance(text, str) and (path := tree.resolve(text))}
    return found | {path for path in facts.files.nodes if path.rpartition("/")[0] in ("", "home")}
