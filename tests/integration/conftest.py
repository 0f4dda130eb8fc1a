"""Real services for the integration tests, one of each a worker; what is missing fails, never skips."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slimgpu.store.cache import Cache
from tests.support.containerd import Containerd, running_containerd
from tests.support.engine import Engine, running_engine
from tests.support.registry import Registry, running_basic_registry, running_registry, running_token_registry

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def _root() -> Iterator[Path]:
    """A short path, for sockets; what a service leaves there goes."""
    with tempfile.TemporaryDirectory(prefix="slimgpu-", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture(autouse=True)
def _own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials but those that a test writes."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker-config"))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.delenv("DOCKER_HOST", raising=False)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    with _root() as root, running_registry(root) as running:
        yield running


@pytest.fixture(scope="session")
def basic_registry() -> Iterator[Registry]:
    with _root() as root, running_basic_registry(root) as running:
        yield running


@pytest.fixture(scope="session")
def token_registry() -> Iterator[Registry]:
    with _root() as root, running_token_registry(root) as running:
        yield running


@pytest.fixture(scope="session")
def engine_service() -> Iterator[Engine]:
    with _root() as root, running_engine(root) as running:
        yield running


@pytest.fixture
def engine(engine_service: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The engine, which DOCKER_HOST names during the test."""
    monkeypatch.setenv("DOCKER_HOST", engine_service.host)
    return engine_service


@pytest.fixture(scope="session")
def containerd() -> Iterator[Containerd]:
    with _root() as root, running_containerd(root) as running:
        yield running
