"""The GPU code of an image: how much there is for which architecture, and how much of it stays."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slimgpu.elf.choice import Policy
from slimgpu.elf.cubin import is_useful
from slimgpu.elf.prune import label, parse_label
from slimgpu.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from slimgpu.analysis.facts import Facts
    from slimgpu.analysis.shrinking import ShrunkFile
    from slimgpu.elf.choice import Code


@dataclass(frozen=True, slots=True)
class ArchitectureSummary:
    """Code for one architecture; sizes in bytes."""

    name: str
    """``sm_90a`` for cubins, ``compute_80`` for PTX, ``lto_75`` for code that is linked."""
    bytes: int
    kept: int
    """What a build for the named GPUs leaves; the same as ``bytes`` when none is named."""


@dataclass(frozen=True, slots=True)
class LibrarySummary:
    """A file that holds GPU code; sizes in bytes."""

    path: str
    bytes: int
    """Of the whole file."""
    kept: int
    """Of the whole file after the build."""
    method: str
    """What happens to its GPU code: ``packed``, ``in place``, or '' when nothing does."""
    untouched: str
    """Why it stays as it is, where it was to change."""
    scattered: int
    """Bytes of GPU code in sections of which nothing is known, and which stay as they are."""
    missing: tuple[str, ...]
    """Kernels that only PTX could provide, where none may stay."""
    architectures: tuple[ArchitectureSummary, ...]


@dataclass(frozen=True, slots=True)
class GpuCodeSummary:
    """All GPU code of an image, hard links counted once."""

    targets: tuple[str, ...]
    """The architectures that code is kept for; none: all of it stays."""
    bytes: int
    kept: int
    architectures: tuple[ArchitectureSummary, ...]
    """Those with the most bytes first; in libraries and in files of their own."""
    libraries: tuple[LibrarySummary, ...]
    """The largest first."""


def codes_in(files: Iterable[ShrunkFile]) -> set[Code]:
    """Every kind of GPU code in the files as they were."""
    labels = {name for file in files for name, _ in file.result.code_before}
    return {code for code in map(parse_label, labels) if code is not None}


def check_targets(policy: Policy | None, codes: Collection[Code]) -> None:
    """Raise `UsageError` when a GPU is wanted that can use none of an image's GPU code."""
    for target in policy.targets if policy is not None and codes else ():
        if not any(is_useful(code, Policy((target,))) for code in codes):
            there = ", ".join(sorted(map(label, codes)))
            raise UsageError(
                f"nothing in the image runs on {target}: it has {there}; name other GPUs with --gpu, or none"
            )


def summarize_gpu_code(facts: Facts) -> GpuCodeSummary:
    """What the facts say of GPU code."""
    libraries = {p: file for p, file in facts.shrunk.items() if file.result.code_before and facts.size(p)}
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    for file in libraries.values():
        before.update(dict(file.result.code_before))
        after.update(dict(file.result.code_after))
    policy = facts.wanted.policy
    for path, code in facts.gpu_files.items():
        before[label(code)] += facts.size(path)
        after[label(code)] += facts.size(path) if policy is None or is_useful(code, policy) else 0
    return GpuCodeSummary(
        targets=tuple(map(str, policy.targets)) if policy is not None else (),
        bytes=before.total(),
        kept=after.total(),
        architectures=tuple(_architectures(before, after)),
        libraries=tuple(sorted(map(_library, libraries.items()), key=lambda one: (-one.bytes, one.path))),
    )


def _architectures(before: Counter[str], after: Counter[str]) -> Iterable[ArchitectureSummary]:
    for name in sorted(before, key=lambda name: (-before[name], name)):
        yield ArchitectureSummary(name, before[name], after[name])


def _library(item: tuple[str, ShrunkFile]) -> LibrarySummary:
    path, file = item
    result = file.result
    codes = tuple(_architectures(Counter(dict(result.code_before)), Counter(dict(result.code_after))))
    return LibrarySummary(
        path=path,
        bytes=result.before,
        kept=result.after,
        method=result.method,
        untouched=result.untouched,
        scattered=result.scattered,
        missing=result.missing,
        architectures=codes,
    )
