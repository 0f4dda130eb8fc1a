"""Basic and Bearer authentication against a real registry, with credentials from files and helpers."""

from __future__ import annotations

import base64
import json
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slimgpu.errors import RegistryError
from slimgpu.oci.reference import parse_reference
from slimgpu.store.transport import open_sink
from tests.support.images import hello_image
from tests.support.processes import run
from tests.support.registry import PASSWORD, USER, login, write_docker_config
from tests.support.store import assert_same, opened, put, skopeo_copy
from tests.support.tokens import REFRESH_TOKEN, TokenServer

if TYPE_CHECKING:
    from slimgpu.store.cache import Cache
    from tests.support.registry import Registry


@pytest.fixture(params=["basic", "token"])
def closed_registry(request: pytest.FixtureRequest) -> Registry:
    found: Registry = request.getfixturevalue(f"{request.param}_registry")
    return found


@pytest.fixture
def config() -> Path:
    return Path(os.environ["DOCKER_CONFIG"])


@pytest.fixture
def repository() -> str:
    return uuid.uuid4().hex


def test_push_and_pull(closed_registry: Registry, repository: str, config: Path, cache: Cache) -> None:
    write_docker_config(config, {closed_registry.host: login()})
    image = hello_image()
    name = f"docker://{closed_registry.host}/{repository}:v1"
    put(image, name, cache)
    with opened(name, cache) as read:
        assert_same(read, image)


def test_skopeo_and_we_share_a_login(
    basic_registry: Registry, repository: str, config: Path, cache: Cache, tmp_path: Path
) -> None:
    config.mkdir()
    run("skopeo", "login", "--tls-verify=false", "--authfile", config / "config.json", "-u", USER, "-p", PASSWORD,
        basic_registry.host)  # fmt: skip
    image = hello_image()
    put(image, f"oci:{tmp_path}/image:v1", cache)
    name = f"docker://{basic_registry.host}/{repository}:v1"
    skopeo_copy(f"oci:{tmp_path}/image:v1", name, "--dest-authfile", str(config / "config.json"))
    with opened(name, cache) as read:
        assert_same(read, image)


@pytest.mark.parametrize("auths", ["none", "wrong"])
def test_without_the_right_password(
    closed_registry: Registry, auths: str, repository: str, config: Path, cache: Cache
) -> None:
    host = closed_registry.host
    write_docker_config(config, {host: login(password="battery staple")} if auths == "wrong" else {})  # noqa: S106
    name = f"docker://{host}/{repository}:v1"
    for attempt in (opened(name, cache), open_sink(parse_reference(name), cache)):
        with pytest.raises(RegistryError, match=rf"run docker login {host}") as caught:
            attempt.__enter__()
        assert "battery" not in str(caught.value) + repr(caught.value.__cause__)
        assert caught.value.exit_code == 4


def test_podmans_file_and_its_longest_match(
    basic_registry: Registry, repository: str, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = basic_registry.host
    path = tmp_path / "auth.json"
    wrong = login("nobody", "nothing")
    path.write_text(json.dumps({"auths": {host: wrong, f"{host}/team": login(), f"{host}/team/other": wrong}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(path))
    put(hello_image(), f"docker://{host}/team/{repository}:v1", cache)
    with pytest.raises(RegistryError):
        opened(f"docker://{host}/elsewhere:v1", cache).__enter__()


def write_helper(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    helper = folder / f"docker-credential-{name}"
    helper.write_text(f"#!/bin/sh\n{script}\n")
    helper.chmod(0o755)


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "helpers"
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_a_credential_helper(
    basic_registry: Registry, repository: str, config: Path, helpers: Path, cache: Cache
) -> None:
    answer = json.dumps({"ServerURL": basic_registry.host, "Username": USER, "Secret": PASSWORD})
    write_helper(helpers, "works", f"echo '{answer}'")
    config.mkdir()
    (config / "config.json").write_text(json.dumps({"credHelpers": {basic_registry.host: "works"}}))
    put(hello_image(), f"docker://{basic_registry.host}/{repository}:v1", cache)


@pytest.mark.parametrize("script", [None, "echo a secret; exit 1"])
def test_a_credential_helper_that_fails(
    basic_registry: Registry, script: str | None, config: Path, helpers: Path, cache: Cache
) -> None:
    if script:
        write_helper(helpers, "broken", script)
    config.mkdir()
    (config / "config.json").write_text(json.dumps({"credsStore": "broken"}))
    with pytest.raises(RegistryError, match=r"the credential helper .* names for .* is missing or failed") as caught:
        opened(f"docker://{basic_registry.host}/a:v1", cache).__enter__()
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


def tokens_of(registry: Registry) -> TokenServer:
    assert registry.tokens is not None
    return registry.tokens


def test_one_token_serves_an_image(token_registry: Registry, repository: str, config: Path, cache: Cache) -> None:
    write_docker_config(config, {token_registry.host: login()})
    tokens = tokens_of(token_registry)
    name = f"docker://{token_registry.host}/{repository}:v1"
    tokens.scopes.clear()
    put(hello_image(), name, cache)
    assert tokens.scopes == [[f"repository:{repository}:pull,push"]]
    tokens.scopes.clear()
    with opened(name, cache) as read:
        assert_same(read, hello_image())
    assert tokens.scopes == [[f"repository:{repository}:pull"]]


def test_an_identity_token(token_registry: Registry, repository: str, config: Path, cache: Cache) -> None:
    entry = {"auth": base64.b64encode(b"00000000-0000:").decode(), "identitytoken": REFRESH_TOKEN}
    write_docker_config(config, {token_registry.host: entry})
    tokens = tokens_of(token_registry)
    tokens.methods.clear()
    put(hello_image(), f"docker://{token_registry.host}/{repository}:v1", cache)
    assert tokens.methods == ["POST"]
