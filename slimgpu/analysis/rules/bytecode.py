"""Python's byte code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slimgpu.analysis.rules.rule import Effect, Match, Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.analysis.facts import Facts


def _find(facts: Facts) -> Iterator[Match]:
    for path in facts.files.nodes:
        if path.endswith(".pyc"):
            yield Match(path, "byte code")


RULES: Final = (
    Rule(
        "python.bytecode",
        "byte code",
        "compiled Python modules",
        "they stay: without them the first import of every module compiles it anew, at every cold start.",
        Effect.KEEP,
        _find,
    ),
)
