"""Compilers and build tools, from apt and from PyPI, unless something in the image compiles at run time.

Tools go as whole packages, with what their package manager knows of them, so that ``apt-get install gcc`` in an
image built from the slim one installs gcc again instead of finding it "already there".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slimgpu.analysis.rules.rule import Effect, Match, Rule
from slimgpu.analysis.tools import leads_to_library

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.analysis.facts import Facts

_GROUP: Final = "toolchains"


def _apt(facts: Facts) -> Iterator[Match]:
    tools = facts.apt_tools
    staying = {path for p in facts.packages if p.name not in tools.removable for path in p.files}
    for package in facts.packages:
        reason = tools.held.get(package.name, "")
        if not reason and package.name not in tools.removable:
            continue
        for path in package.files:
            if facts.files.nodes[path].children is not None or leads_to_library(facts, path):
                continue
            if reason or path not in staying:
                yield Match(path, f"package {package.name}", because=reason)


def _python(facts: Facts) -> Iterator[Match]:
    tools = facts.python_tools
    kept = {path for d in facts.distributions if d.name not in tools.removable for path in d.files}
    for distribution in facts.distributions:
        reason = tools.held.get(distribution.name, "")
        if not reason and distribution.name not in tools.removable:
            continue
        for path in distribution.files:
            if reason or path not in kept:
                yield Match(path, f"distribution {distribution.name}", because=reason)


RULES: Final = (
    Rule(
        "toolchain.apt",
        _GROUP,
        "compilers and build tools from apt",
        "they build software; they stay when a distribution in the image compiles at run time.",
        Effect.DROP,
        _apt,
    ),
    Rule(
        "toolchain.python",
        _GROUP,
        "compilers and build tools from PyPI",
        "they build software; they stay when a distribution in the image compiles at run time.",
        Effect.DROP,
        _python,
    ),
)
