"""Actions that make files smaller, and what the files become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slimgpu.analysis.rules import RULES
from slimgpu.analysis.rules.rule import Effect
from slimgpu.elf.arch import parse_target
from slimgpu.elf.choice import Policy
from slimgpu.errors import MissingGpuCodeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from slimgpu.analysis.facts import Facts
    from slimgpu.rootfs.patterns import Patterns

CODE: Final = "gpu.libraries"
SYMBOLS: Final = "debug.sections"
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class GpuCode:
    """Which GPU code stays, as a plan keeps it."""

    gpus: tuple[str, ...] = ()
    """Architectures like ``sm_90``; none: all code stays."""
    keep_ptx: bool = False
    native: bool = False

    @property
    def policy(self) -> Policy | None:
        """The same for the choice."""
        targets = tuple(sorted({parse_target(name) for name in self.gpus}))
        return Policy(targets, keep_ptx=self.keep_ptx, native=self.native) if targets else None


def gpu_code_of(policy: Policy | None) -> GpuCode:
    """What a plan keeps of a policy."""
    if policy is None:
        return GpuCode()
    return GpuCode(tuple(map(str, policy.targets)), policy.keep_ptx, policy.native)


@dataclass(frozen=True, slots=True)
class Shrink:
    """A file that a rule makes smaller."""

    path: str
    rule: str
    reason: str
    bytes: int


def shrinks(facts: Facts, keep: Patterns) -> Iterator[Shrink]:
    """What the rules shrink; a file stays whole under all its names when one of them is kept."""
    kept = {id(node.inode) for path, node in facts.files.files() if keep.match(path)}
    for rule in RULES:
        if rule.effect is Effect.SHRINK and rule.partial is not None:
            for match in rule.find(facts):
                if id(facts.files.nodes[match.path].inode) not in kept:
                    yield Shrink(match.path, rule.id, match.evidence, rule.partial(facts, match.path))


def check_native(facts: Facts, gone: Mapping[str, object]) -> None:
    """Raise `MissingGpuCodeError` when only native code may stay and kernels of files that stay would need PTX."""
    lacking = {p: f.result.missing for p, f in facts.shrunk.items() if f.result.missing and p not in gone}
    if lacking:
        path = max(lacking, key=lambda path: (len(lacking[path]), path))
        names = ", ".join(lacking[path][:_SHOWN])
        count = sum(map(len, lacking.values()))
        raise MissingGpuCodeError(
            f"{count} kernels in {len(lacking)} files have nothing but PTX for a GPU that is wanted, most of them in "
            f"{path} ({names}, ...); leave out --gpu-native, or compile these files for that GPU"
        )
