"""GPU code that none of the wanted GPUs can choose: in libraries, and in files of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slimgpu.analysis.rules.rule import Effect, Match, Rule
from slimgpu.elf.choice import Form
from slimgpu.elf.cubin import is_useful
from slimgpu.elf.prune import label
from slimgpu.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.analysis.facts import Facts

GROUP: Final = "GPU code"


def _libraries(facts: Facts) -> Iterator[Match]:
    for path, shrunk in facts.shrunk.items():
        if shrunk.result.method:
            before = sum(size for _, size in shrunk.result.code_before)
            after = sum(size for _, size in shrunk.result.code_after)
            yield Match(
                path, f"{_targets(facts)} can use {format_size(after)} of its {format_size(before)} of GPU code"
            )


def _library_bytes(facts: Facts, path: str) -> int:
    return facts.shrunk[path].result.code if facts.size(path) else 0


def _files(facts: Facts) -> Iterator[Match]:
    policy = facts.wanted.policy
    for path, code in facts.gpu_files.items():
        if policy is not None and not is_useful(code, policy):
            what = "a cubin" if code.form == Form.CUBIN else "PTX"
            yield Match(path, f"{what} for {label(code)}, which {_targets(facts)} cannot use")


def _targets(facts: Facts) -> str:
    return " and ".join(map(str, facts.wanted.policy.targets)) if facts.wanted.policy else "nothing"


RULES: Final = (
    Rule(
        "gpu.files",
        GROUP,
        "files of GPU code for other GPUs",
        "with --gpu: cubins and PTX that none of the GPUs can run or compile, known by their content.",
        Effect.DROP,
        _files,
    ),
    Rule(
        "gpu.libraries",
        GROUP,
        "GPU code for other GPUs inside libraries",
        "with --gpu: what the driver would not choose on any of the GPUs; the file itself gets smaller.",
        Effect.SHRINK,
        _libraries,
        _library_bytes,
    ),
)
