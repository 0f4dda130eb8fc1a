from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from slimgpu.errors import UsageError
from slimgpu.store.credentials import Credentials, find_credentials
from tests.support.registry import login, write_docker_config

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "docker"
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    return folder


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("ghcr.io", "ghcr.io"),
        ("https://ghcr.io", "ghcr.io"),
        ("https://ghcr.io/v2/", "ghcr.io"),
        ("localhost:5000", "localhost:5000"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
    ],
)
def test_found_under_every_spelling_of_a_host(key: str, host: str, config: Path) -> None:
    write_docker_config(config, {key: login("ada", "pass:word")})
    assert find_credentials(host, "team/app") == Credentials("ada", "pass:word")
    assert find_credentials("other.io", "team/app") is None


def test_nothing_configured(config: Path) -> None:
    assert find_credentials("ghcr.io", "a") is None
    write_docker_config(config, {})
    assert find_credentials("ghcr.io", "a") is None
    write_docker_config(config, {"ghcr.io": {}})
    assert find_credentials("ghcr.io", "a") is None


def test_podmans_file_comes_first_and_its_longest_key_wins(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_docker_config(config, {"quay.io": login("docker"), "ghcr.io": login("docker")})
    path = tmp_path / "auth.json"
    auths = {"quay.io/a": login("short"), "quay.io/a/b": login("long"), "ghcr.io/x": login("elsewhere")}
    path.write_text(json.dumps({"auths": auths}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(path))
    users = [find_credentials(*where) for where in (("quay.io", "a/b/c"), ("quay.io", "a"), ("quay.io", "z"))]
    assert [user and user.username for user in users] == ["long", "short", "docker"]
    assert find_credentials("ghcr.io", "y") == Credentials("docker", login_password())
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "missing.json"))
    assert find_credentials("quay.io", "a/b/c") == Credentials("docker", login_password())


def login_password() -> str:
    return "correct horse"


def test_an_identity_token(config: Path) -> None:
    write_docker_config(config, {"ghcr.io": {"auth": "MDA6", "identitytoken": "refresh"}})
    assert find_credentials("ghcr.io", "a") == Credentials(identity_token="refresh")  # noqa: S106


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"auths": [1]}', '{"auths": {"a.io": 1}}', '{"auths": {"a.io": {"auth": "c2VjcmV0"}}}']
)
def test_a_broken_file_is_named_and_not_quoted(text: str, config: Path) -> None:
    config.mkdir()
    (config / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"config.json is not a valid registry configuration; run docker login") as e:
        find_credentials("a.io", "a")
    assert "secret" not in str(e.value)
    assert e.value.__suppress_context__


def test_secrets_are_not_shown() -> None:
    assert repr(Credentials("ada", "hidden", "hidden")) == "Credentials(username='ada')"
