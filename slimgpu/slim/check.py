"""What a slim image must not lose: libraries that kept files load, and files that kept distributions name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from slimgpu.analysis.claims import loader_of, places_of
from slimgpu.analysis.python import METADATA
from slimgpu.errors import BrokenClosureError
from slimgpu.slim.weights import DROP, SPLIT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.analysis.facts import Facts
    from slimgpu.rootfs.filesystem import FileSystem
    from slimgpu.slim.plan import Plan

_SHOWN: Final = 5
_WEIGHTS: Final = (SPLIT, DROP)
_WHOLE_PACKAGES: Final = "toolchain."
"""Rules that remove packages whole, and so must not take a file from another package."""


def check(facts: Facts, plan: Plan, slim: FileSystem) -> None:
    """Raise `BrokenClosureError` naming what would be broken in ``slim`` that was whole before."""
    broken = [*_broken_libraries(facts, slim), *_lost_records(facts, plan, slim), *_lost_entry_point(facts, plan, slim)]
    if broken:
        more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        raise BrokenClosureError(
            f"the slim image would be broken: {'; '.join(broken[:_SHOWN])}{more} (keep what is missing with --keep)"
        )


def _broken_libraries(facts: Facts, slim: FileSystem) -> Iterator[str]:
    before = loader_of(facts)
    elf = {path: facts.elf[path] for path in slim.nodes if path in facts.elf}
    after = loader_of(replace(facts, files=slim, elf=elf))
    for path in elf:
        now = after.providers(path)
        for name, provider in before.providers(path).items():
            found = now[name]
            if provider.path and (not found.path or (found.elsewhere and not provider.elsewhere)):
                yield f"{path} needs {name}, which was {provider.path}"


def _lost_records(facts: Facts, plan: Plan, slim: FileSystem) -> Iterator[str]:
    """Files of a kept distribution that are gone although no rule about their kind, and no wish, drops them."""
    dropped = {action.path for action in plan.actions if not action.rule.startswith(_WHOLE_PACKAGES)}
    for distribution in facts.distributions:
        if any(path in slim.nodes and path.endswith(METADATA) for path in distribution.files):
            for path in distribution.files:
                if path not in slim.nodes and path not in dropped:
                    yield f"{distribution.name} {distribution.version} names {path}, which is gone"


def _lost_entry_point(facts: Facts, plan: Plan, slim: FileSystem) -> Iterator[str]:
    weights = {action.path for action in plan.actions if action.rule in _WEIGHTS}
    for key in ("Entrypoint", "Cmd"):
        command = facts.config.runtime.get(key)
        word = str(command[0]) if isinstance(command, list) and command else ""
        places = places_of(word, facts.config) if word else ()
        found = [path for path in map(facts.files.tree.resolve, places) if path is not None]
        if any(path in weights for path in found):
            continue  # ["/llama", "-m", "/model.gguf"], of which the command is the last word
        if found and not any(map(slim.tree.resolve, places)):
            yield f"the image starts {word}, which is gone"
