"""Which distributions of an image compile at run time, and what must therefore stay."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib.resources import files as resources
from typing import TYPE_CHECKING, Final

import yaml
from pydantic import TypeAdapter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slimgpu.analysis.python import Distribution


_PACKAGE: Final = re.compile(r"/(?:site|dist)-packages/([A-Za-z0-9_]+)/__init__\.py$")


class Need(StrEnum):
    """What compiling at run time takes; ``jit.yaml`` says what each means."""

    C_COMPILER = "c-compiler"
    CXX_COMPILER = "cxx-compiler"
    BUILD_TOOLS = "build-tools"
    PYTHON_HEADERS = "python-headers"
    CUDA_HEADERS = "cuda-headers"
    CUDA_COMPILER = "cuda-compiler"


@dataclass(frozen=True, slots=True)
class Compiler:
    """A distribution that compiles at run time."""

    name: str
    needs: tuple[Need, ...]
    why: str
    module: str = ""
    """What it is imported as, where that is not its name with '_' for '-'."""

    @property
    def package(self) -> str:
        """The directory that it is imported from."""
        return self.module or self.name.replace("-", "_")


@dataclass(frozen=True, slots=True)
class JitNeeds:
    """What the distributions of one image need; empty when none compiles, or when told to ignore it."""

    reasons: Mapping[Need, str] = field(default_factory=dict)
    """Who needs it and why, as a clause for reports."""

    def holds(self, *needs: Need) -> str:
        """Why something that serves any of ``needs`` has to stay; '' when it need not."""
        return next((self.reasons[need] for need in needs if need in self.reasons), "")


@cache
def known_compilers() -> tuple[Compiler, ...]:
    """The table in ``jit.yaml``."""
    text = (resources("slimgpu.analysis") / "jit.yaml").read_text()
    return TypeAdapter(tuple[Compiler, ...]).validate_python(yaml.safe_load(text))


def jit_needs(distributions: Iterable[Distribution], paths: Iterable[str]) -> JitNeeds:
    """What the image's distributions need.

    A package among ``paths`` counts without metadata as well: conda and apt install some that have none of pip's.
    """
    installed = {distribution.name for distribution in distributions}
    imported = {match[1] for path in paths if (match := _PACKAGE.search(path))}
    present = [c for c in known_compilers() if c.name in installed or c.package in imported]
    reasons: dict[Need, str] = {}
    for compiler in present:
        for need in compiler.needs:
            reasons.setdefault(need, f"{compiler.name} {compiler.why}")
    return JitNeeds(reasons)
