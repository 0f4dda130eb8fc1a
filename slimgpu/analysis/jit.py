"""Which distributions of an image compile at run time, and what must therefore stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib.resources import files as resources
from typing import TYPE_CHECKING

import yaml
from pydantic import TypeAdapter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slimgpu.analysis.python import Distribution


class Need(StrEnum):
    """What compiling at run time takes; ``jit.yaml`` says what each means."""

    C_COMPILER = "c-compiler"
    CXX_COMPILER = "cxx-compiler"
    BUILD_TOOLS = "build-tools"
    PYTHON_HEADERS = "python-headers"
    TORCH_HEADERS = "torch-headers"
    CUDA_HEADERS = "cuda-headers"
    CUDA_COMPILER = "cuda-compiler"


@dataclass(frozen=True, slots=True)
class Compiler:
    """A distribution that compiles at run time."""

    name: str
    needs: tuple[Need, ...]
    why: str


@dataclass(frozen=True, slots=True)
class JitNeeds:
    """What the distributions of one image need; empty when none compiles, or when told to ignore it."""

    reasons: Mapping[Need, str] = field(default_factory=dict)
    """Who needs it and why, as a clause for reports."""
    compilers: frozenset[str] = frozenset()
    """Names of the distributions that compile."""

    def holds(self, *needs: Need) -> str:
        """Why something that serves any of ``needs`` has to stay; '' when it need not."""
        return next((self.reasons[need] for need in needs if need in self.reasons), "")


@cache
def known_compilers() -> tuple[Compiler, ...]:
    """The table in ``jit.yaml``."""
    text = (resources("slimgpu.analysis") / "jit.yaml").read_text()
    return TypeAdapter(tuple[Compiler, ...]).validate_python(yaml.safe_load(text))


def jit_needs(distributions: Iterable[Distribution]) -> JitNeeds:
    """What the image's distributions need."""
    installed = {distribution.name for distribution in distributions}
    present = [compiler for compiler in known_compilers() if compiler.name in installed]
    reasons: dict[Need, str] = {}
    for compiler in present:
        for need in compiler.needs:
            reasons.setdefault(need, f"{compiler.name} {compiler.why}")
    return JitNeeds(reasons, frozenset(compiler.name for compiler in present))
