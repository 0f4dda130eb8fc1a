"""Which code of a container the driver can choose on given GPUs: the rule by which all other code goes.

A cubin runs on GPUs of the same major version whose minor version is not below its own; one that is specific to an
architecture only there, one for a family only inside it. The driver takes the newest that runs. Where none does, it
compiles PTX of an architecture that is not above the GPU's; PTX that uses specific or family features is bound as
such cubins are.

Sources: CUDA C++ Programming Guide, "Binary Compatibility" and "PTX Compatibility"; PTX ISA, ".target".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from slimgpu.elf.arch import Sm, Variant

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Form(IntEnum):
    """What an entry of a container is; the numbers are those of the format."""

    PTX = 1
    CUBIN = 2
    LTO_IR = 8
    CONCATENATED = 0x100


_KNOWN: Final = (Form.PTX, Form.CUBIN, Form.LTO_IR)
"""What is chosen by its architecture."""


@dataclass(frozen=True, slots=True)
class Code:
    """One piece of GPU code, as far as the choice depends on it."""

    form: int
    """A `Form`, or a number that is none of them."""
    sm: Sm


@dataclass(frozen=True, slots=True)
class Policy:
    """For which GPUs code is kept, and what beyond that."""

    targets: tuple[Sm, ...]
    keep_ptx: bool = False
    """Whether the newest PTX stays as well, for GPUs to come."""
    native: bool = False
    """Whether only cubins stay, so that nothing is compiled when it is loaded."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What stays of one container."""

    kept: frozenset[int]
    """Positions in what was asked about."""
    missing: frozenset[Sm]
    """For a native policy, the targets on which PTX would have been needed."""


def choose(codes: Sequence[Code], policy: Policy) -> Choice:
    """What has to stay of one container's ``codes`` so that every target finds what it found before."""
    kept = {number for number, code in enumerate(codes) if code.form not in _KNOWN or not code.sm.number}
    missing = set()
    for target in policy.targets:
        cubins = _cubins(codes, target)
        compiled = [] if _is_certain(codes, cubins, target) else _compiled(codes, target)
        kept |= {*cubins, *(() if policy.native else compiled), *_linked(codes, target)}
        if policy.native and compiled:
            missing.add(target)
    if policy.keep_ptx:
        kept |= set(_newest(codes, _plain_ptx(codes)))
    return Choice(frozenset(kept), frozenset(missing))


def runs_on(code: Sm, target: Sm) -> bool:
    """Whether a cubin can run, bar that between embedded and other GPUs nobody promises it."""
    if code.variant is Variant.SPECIFIC:
        return code.number == target.number
    return code.major == target.major and code.number <= target.number


def compiles_for(code: Sm, target: Sm) -> bool:
    """Whether the driver can compile PTX of that architecture for the target."""
    return code.number <= target.number if code.variant is Variant.PLAIN else runs_on(code, target)


def _promised(code: Sm, target: Sm) -> bool:
    return code.number == target.number or not (code.embedded or target.embedded)


def _cubins(codes: Sequence[Code], target: Sm) -> list[int]:
    """Of the cubins that run, the newest, and newer ones that may run or may not."""
    usable = [n for n, code in enumerate(codes) if code.form == Form.CUBIN and runs_on(code.sm, target)]
    promised = [n for n in usable if _promised(codes[n].sm, target)]
    newest = max((codes[n].sm.number for n in promised), default=0)
    return [n for n in usable if codes[n].sm.number >= newest]


def _is_certain(codes: Sequence[Code], cubins: Iterable[int], target: Sm) -> bool:
    return any(_promised(codes[n].sm, target) for n in cubins)


def _compiled(codes: Sequence[Code], target: Sm) -> list[int]:
    usable = [n for n, code in enumerate(codes) if code.form == Form.PTX and compiles_for(code.sm, target)]
    return _newest(codes, usable)


def _linked(codes: Sequence[Code], target: Sm) -> list[int]:
    """Code that is optimized when it is linked: any that is not too new, since the program says which it links."""
    return [n for n, code in enumerate(codes) if code.form == Form.LTO_IR and compiles_for(code.sm, target)]


def _plain_ptx(codes: Sequence[Code]) -> list[int]:
    """What GPUs to come can compile: PTX that is bound to no architecture."""
    return [n for n, code in enumerate(codes) if code.form == Form.PTX and code.sm.variant is Variant.PLAIN]


def _newest(codes: Sequence[Code], numbers: Sequence[int]) -> list[int]:
    newest = max((codes[n].sm.number for n in numbers), default=0)
    return [n for n in numbers if codes[n].sm.number == newest]
