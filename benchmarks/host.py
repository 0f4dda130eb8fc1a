"""The machine that figures were taken on."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

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
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        disk=_answer("findmnt", "--noheadings", "--output", "SOURCE,FSTYPE,OPTIONS", "--target", str(work)),
        python=platform.python_version(),
        commit=_commit(),
        tools={name: _answer(*command) for name, command in TOOLS.items()},
    )


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    commit = _answer("git", "-C", str(_ROOT), "rev-parse", "--short", "HEAD")
    changed = _answer("git", "-C", str(_ROOT), "status", "--porcelain", "--", "slimgpu")
    return f"{commit}+" if changed else commit


def _answer(*command: str) -> str:
    """The first line that a command prints, in single spaces; '' if it fails."""
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    lines = (said.stdout or said.stderr).strip().splitlines()
    return " ".join(lines[0].split()) if lines else ""
