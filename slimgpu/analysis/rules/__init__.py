"""The rules, in the order in which they claim files: a file belongs to the first rule that matches it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slimgpu.analysis.rules import bytecode, caches, debug, documentation, duplicates, gpu, headers, toolchains, weights

if TYPE_CHECKING:
    from slimgpu.analysis.rules.rule import Rule

RULES: Final[tuple[Rule, ...]] = (
    *caches.RULES,
    *documentation.RULES,
    *toolchains.RULES,
    *headers.RULES,
    *debug.RULES,
    *gpu.RULES,
    *duplicates.RULES,
    *weights.RULES,
    *bytecode.RULES,
)
"""Every rule there is."""
