"""The machine of a benchmark, and NVIDIA's files in ``/proc``."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import pytest

import slimgpu
from slimgpu.bench.machine import describe, first_line, told_by_driver

if TYPE_CHECKING:
    from pathlib import Path

_PLAIN = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.08  Wed Mar  6 20:23:31 UTC 2024\nGCC version:  gcc 12\n"
)
_OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build  (root@host)\n"


def test_this_machine_is_described(tmp_path: Path) -> None:
    found = describe(tmp_path, {"torch": "2.11.0"})
    assert found.cores >= 1
    assert found.memory > 1 << 28
    assert found.cpu
    assert found.kernel == platform.release()
    assert " " in found.disk
    assert found.versions == {
        "slimgpu": slimgpu.__version__,
        "python": platform.python_version(),
        "torch": "2.11.0",
    }


@pytest.mark.parametrize(("version", "driver"), [(_PLAIN, "535.161.08"), (_OPEN, "580.82.07"), ("what?\n", None)])
def test_the_driver_tells_its_gpu(tmp_path: Path, version: str, driver: str | None) -> None:
    (tmp_path / "version").write_text(version)
    gpu = tmp_path / "gpus/0000:01:00.0"
    gpu.mkdir(parents=True)
    (gpu / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 1\nGPU UUID: \t GPU-1\n")
    assert told_by_driver(tmp_path) == ("NVIDIA H100 80GB HBM3", driver)


def test_without_a_driver_nothing_is_told(tmp_path: Path) -> None:
    assert told_by_driver(tmp_path / "none") == (None, None)


def test_a_command_that_fails_says_nothing() -> None:
    assert first_line("no-such-program") == ""
    assert first_line("false") == ""
    assert first_line("echo", "  a   b ") == "a b"
