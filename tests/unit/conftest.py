"""What every unit test has: a cache of its own, and hypothesis as long as it is asked to search."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

import tests.support.fuzz  # noqa: F401 - registers the profile
from tests.support.elf import libraries
from tests.support.gpu_code import Workshop, workshop

if TYPE_CHECKING:
    from pathlib import Path

settings.load_profile("unit")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLIMGPU_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLIMGPU_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def slimgpu() -> list[str]:
    """The command line as a process of its own."""
    return [sys.executable, "-m", "slimgpu"]


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache directory, empty, for tests that look into it."""
    path = tmp_path / "cache"
    monkeypatch.setenv("SLIMGPU_CACHE_DIR", str(path))
    return path


@pytest.fixture(scope="session")
def elf_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Libraries that need each other, see `tests.support.elf`."""
    root = tmp_path_factory.mktemp("elf")
    libraries(root)
    return root


@pytest.fixture(scope="session")
def tiny(elf_root: Path) -> bytes:
    """The bytes of a small library with every dynamic tag that we read."""
    data = (elf_root / "opt/own/runpath.so").read_bytes()
    assert len(data) < 20_000
    return data


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Small libraries with GPU code, see `tests.support.gpu_code`."""
    return workshop(tmp_path_factory.getbasetemp())
