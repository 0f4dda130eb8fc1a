"""Pushes to a real registry: blobs mounted from its other repositories, uploads that break off."""

from __future__ import annotations

import os
import random
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slimgpu.errors import RegistryError
from slimgpu.oci.mutate import CheckedBlob, compose_artifact
from slimgpu.oci.reference import RegistryReference
from slimgpu.store import registry_push
from tests.support.fake_http import Answer, Request, serving
from tests.support.images import Entry, make_image, make_layer
from tests.support.registry import login, write_docker_config
from tests.support.relay import relaying
from tests.support.store import contents, make_artifact, opened, opened_artifact, put, put_artifact

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slimgpu.oci.image import Artifact, Blob
    from slimgpu.store.cache import Cache
    from tests.support.registry import Registry

SIZE = 5_000_000


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_push, "_BACKOFF", 0.01)


def noise() -> bytes:
    return random.randbytes(SIZE)  # noqa: S311


def composed(blobs: Sequence[Blob]) -> Artifact:
    return compose_artifact("test", "application/vnd.test", ("application/vnd.oci.empty.v1+json", b"{}"), blobs)


def test_blobs_of_another_repository_are_mounted(cache: Cache, registry: Registry) -> None:
    image = make_image([make_layer([Entry("noise", noise())], "plain")])
    artifact = make_artifact([noise(), noise()])
    source, target = uuid.uuid4().hex, uuid.uuid4().hex
    with relaying(registry.host) as relay:
        put(image, f"docker://{relay.host}/{source}:v1", cache)
        put_artifact(artifact, f"docker://{relay.host}/{source}:v2", cache)
        assert relay.sent > 3 * SIZE
        relay.sent = 0
        with opened(f"docker://{relay.host}/{source}:v1", cache) as read:
            put(read, f"docker://{relay.host}/{target}:v1", cache)
        with opened_artifact(f"docker://{relay.host}/{source}:v2", cache) as (found, _):
            put_artifact(found, f"docker://{relay.host}/{target}:v2", cache)
        assert relay.sent < 50_000
    assert registry.blob_link(target, image.layers[0].descriptor.digest).exists()
    with opened_artifact(f"docker://{registry.host}/{target}:v2", cache) as (found, _):
        assert contents(found) == contents(artifact)


def test_a_token_for_both_repositories(cache: Cache, token_registry: Registry) -> None:
    assert token_registry.tokens is not None
    write_docker_config(Path(os.environ["DOCKER_CONFIG"]), {token_registry.host: login()})
    source, target = uuid.uuid4().hex, uuid.uuid4().hex
    put_artifact(make_artifact([noise(), noise()]), f"docker://{token_registry.host}/{source}:v1", cache)
    with opened_artifact(f"docker://{token_registry.host}/{source}:v1", cache) as (found, _):
        token_registry.tokens.scopes.clear()
        put_artifact(found, f"docker://{token_registry.host}/{target}:v1", cache)
    own = f"repository:{target}:pull,push"
    assert token_registry.tokens.scopes == [[own], [own, f"repository:{source}:pull"]]


@pytest.mark.parametrize("refusal", [202, 403, 404])
def test_what_is_not_mounted_is_uploaded(refusal: int, cache: Cache, registry: Registry) -> None:
    source = f"docker://{registry.host}/{uuid.uuid4().hex}:v1"
    artifact = make_artifact([b"content"])
    put_artifact(artifact, source, cache)

    def behave(request: Request) -> Answer:
        if request.method == "POST" and "mount=" in request.path:
            return Answer(refusal, headers={"Location": "/instead"} if refusal == 202 else {})
        if request.method == "POST":
            return Answer(202, headers={"Location": "/upload"})
        return Answer(404 if request.method == "HEAD" else 201 if request.method == "PUT" else 204)

    with serving(behave) as server, opened_artifact(source, cache) as (found, _):
        put_artifact(found, f"docker://{server.host}/a:v1", cache)
        assert not [request for request in server.requests if "mount=" in request.path]
        (layer,) = found.layers
        assert isinstance(layer, CheckedBlob)
        here = replace(layer, origin=RegistryReference(server.host, "b"))
        put_artifact(composed([here]), f"docker://{server.host}/a:v1", cache)
        (mount,) = [request for request in server.requests if "mount=" in request.path]
        assert mount.path.endswith("&from=b")
        uploads = [*server.asked("/upload"), *server.asked("/instead")]
        assert [request.body for request in uploads].count(b"content") == 2
        assert bool(server.asked("/instead")) == (refusal == 202)


def test_who_may_not_read_the_other_repository_uploads(cache: Cache) -> None:
    def behave(request: Request) -> Answer:
        if request.path.startswith("/token"):
            return Answer(403) if "repository%3Ab" in request.path else Answer(body=b'{"token": "t"}')
        if "Authorization" not in request.headers:
            realm = f'Bearer realm="http://{request.headers["Host"]}/token",scope="repository:a:pull,push"'
            return Answer(401, headers={"WWW-Authenticate": realm})
        if request.method == "POST":
            return Answer(202, headers={"Location": "/upload"})
        return Answer(404 if request.method == "HEAD" else 201)

    write_docker_config(Path(os.environ["DOCKER_CONFIG"]), {})
    with serving(behave) as server:
        (blob,) = make_artifact([b"content"]).layers
        assert isinstance(blob, CheckedBlob)
        put_artifact(
            composed([replace(blob, origin=RegistryReference(server.host, "b"))]), f"docker://{server.host}/a:v1", cache
        )
        assert not [request for request in server.requests if "mount=" in request.path]
        assert b"content" in [request.body for request in server.asked("/upload")]


def test_an_upload_that_breaks_is_restarted(cache: Cache, registry: Registry) -> None:
    """The progress adds up nevertheless, which put_artifact checks."""
    artifact = make_artifact([noise()])
    with relaying(registry.host) as relay:
        relay.breaks = [SIZE // 2, SIZE // 3]
        put_artifact(artifact, f"docker://{relay.host}/{uuid.uuid4().hex}:v1", cache)
        assert relay.breaks == []
        assert relay.sent > SIZE + SIZE // 2 + SIZE // 3


def test_a_link_that_always_breaks(cache: Cache, registry: Registry) -> None:
    with relaying(registry.host) as relay:
        relay.breaks = [SIZE // 2] * 10
        with pytest.raises(RegistryError, match="is out of reach"):
            put_artifact(make_artifact([noise()]), f"docker://{relay.host}/{uuid.uuid4().hex}:v1", cache)
        assert len(relay.breaks) == 6


def test_a_source_that_breaks_is_read_again(cache: Cache, registry: Registry) -> None:
    """From one registry to another, one GET of the source breaks."""
    artifact = make_artifact([b"content" * 1000])
    path = f"/v2/a/blobs/{artifact.layers[0].descriptor.digest}"
    answers = {
        "/v2/a/manifests/v1": Answer(body=artifact.raw_manifest, headers={"Content-Type": "x"}),
        f"/v2/a/blobs/{artifact.manifest.config.digest}": Answer(body=b"{}"),
    }
    broken = [Answer(body=b"content", claimed=7000), Answer(body=b"content" * 1000)]

    def behave(request: Request) -> Answer:
        return broken.pop(0) if request.path == path else answers.get(request.path, Answer())

    with serving(behave) as server, opened_artifact(f"docker://{server.host}/a:v1", cache) as (found, _):
        target = f"docker://{registry.host}/{uuid.uuid4().hex}:v1"
        put_artifact(found, target, cache)
    with opened_artifact(target, cache) as (copied, _):
        assert contents(copied) == [b"content" * 1000]


SURPRISE = b'{"errors":[{"code":"DIGEST_INVALID","message":"provided digest did not match uploaded content"}]}'


@pytest.mark.parametrize(("status", "body"), [(500, b""), (503, b""), (429, b""), (400, SURPRISE)])
def test_a_registry_that_fails_for_a_moment(status: int, body: bytes, cache: Cache) -> None:
    failures = {"PUT": 2, "POST": 0}

    def behave(request: Request) -> Answer:
        if failures.get(request.method, 0):
            failures[request.method] -= 1
            return Answer(status, body)
        if request.method == "POST":
            return Answer(202, headers={"Location": "/upload"})
        return Answer(404 if request.method == "HEAD" else 201)

    with serving(behave) as server:
        put_artifact(make_artifact([b"content"]), f"docker://{server.host}/a:v1", cache)
        assert failures["PUT"] == 0
