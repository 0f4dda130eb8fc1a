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
    from collections.abc import Callable, Iterator, Mapping

    from slimgpu.analysis.facts import Facts
    from slimgpu.analysis.rules.rule import Match, Rule
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


def shrinks(facts: Facts, keep: Patterns, links: Mapping[str, str]) -> Iterator[tuple[Rule, Match]]:
    """Which rule shrinks which file; one stays whole under all its names when one of them is kept or sealed.

    ``links`` are the names that files get from others with the same bytes.
    """
    whole = {path for path, _ in facts.files.files() if path in facts.seals or keep.match(path)}
    whole |= {target for path, target in links.items() if path in whole}
    inodes = {id(facts.files.nodes[path].inode) for path in whole}
    for rule in RULES:
        if rule.effect is Effect.SHRINK:
            for match in rule.find(facts):
                if id(facts.files.nodes[match.path].inode) not in inodes:
                    yield rule, match


def check_native(facts: Facts, spared: Callable[[str], bool]) -> None:
    """Raise `MissingGpuCodeError` when only native code may stay and kernels outside of ``spared`` paths need PTX."""
    lacking = {path: file.result.missing for path, file in facts.shrunk.items() if file.result.missing}
    lacking = {path: names for path, names in lacking.items() if not spared(path)}
    if lacking:
        path = max(lacking, key=lambda path: (len(lacking[path]), path))
        shown = lacking[path][:_SHOWN]
        more = ", ..." if len(shown) < len(lacking[path]) else ""
        raise MissingGpuCodeError(
            f"kernels have nothing but PTX for a GPU that is wanted: {sum(map(len, lacking.values()))}, most in "
            f"{path} ({', '.join(shown)}{more}); leave out --gpu-native, keep these files with --keep, or compile them "
            "for that GPU"
        )
