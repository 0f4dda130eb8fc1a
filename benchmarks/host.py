"""The machine that figures were taken on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slimgpu.bench import machine
from slimgpu.bench.machine import first_line

TOOLS = {
    "skopeo": ("skopeo", "--version"),
    "pigz": ("pigz", "--version"),
    "zstd": ("zstd", "--version"),
}
"""What the benchmark starts beside slimgpu, and how each tells its version."""

_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Machine:
    """What a figure depends on beside the code."""

    cpu: str
    cores: int
    """Those that this process may use."""
    memory: int
    kernel: str
    disk: str
    python: str
    commit: str
    """Of the project; ``+`` when files differ from it."""
    tools: dict[str, str]


def describe(work: Path) -> Machine:
    """The present machine, with the disk that ``work`` lies on."""
    found = machine.describe(work)
    return Machine(
        cpu=found.cpu,
        cores=found.cores,
        memory=found.memory,
        kernel=found.kernel,
        disk=found.disk,
        python=found.versions["python"],
        commit=_commit(),
        tools={name: first_line(*command) for name, command in TOOLS.items()},
    )


def _commit() -> str:
    commit = first_line("git", "-C", str(_ROOT), "rev-parse", "--short", "HEAD")
    changed = first_line("git", "-C", str(_ROOT), "status", "--porcelain", "--", "slimgpu")
    return f"{commit}+" if changed else commit
