"""What a registry may answer besides the truth: redirects, failures, wrong digests, and traps for credentials."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import pytest

from slimgpu.errors import DigestError, ImageError, RegistryError
from slimgpu.oci.mutate import BlobLayer
from slimgpu.oci.reference import parse_reference
from slimgpu.store import http_session
from slimgpu.store.documents import MAX_DOCUMENT
from slimgpu.store.transport import open_sink
from tests.support.fake_http import Answer, FakeServer, Request, serving
from tests.support.images import hello_image, make_image
from tests.support.registry import login, write_docker_config
from tests.support.store import Counter, assert_same, opened, tars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from slimgpu.oci.image import Image
    from slimgpu.store.cache import Cache
    from tests.support.fake_http import Behaviour

IMAGE = hello_image()
CONFIG_PATH = f"/v2/a/blobs/{IMAGE.manifest.config.digest}"
LAYER_PATH = f"/v2/a/blobs/{IMAGE.layers[0].descriptor.digest}"
MANIFEST_PATH = "/v2/a/manifests/v1"


def content(image: Image) -> dict[str, Answer]:
    manifest_type = {"Content-Type": image.manifest.media_type or ""}
    found = {
        "/v2/": Answer(),
        MANIFEST_PATH: Answer(body=image.raw_manifest, headers=manifest_type),
        f"/v2/a/blobs/{image.manifest.config.digest}": Answer(body=image.raw_config),
    }
    for layer in image.layers:
        with layer.open() as chunks:
            found[f"/v2/a/blobs/{layer.descriptor.digest}"] = Answer(body=b"".join(chunks))
    return found


def registry_with(changes: Mapping[str, Answer | Callable[[Request], Answer]]) -> Behaviour:
    answers = {**content(IMAGE), **changes}

    def behave(request: Request) -> Answer:
        answer = answers.get(request.path.partition("?")[0], Answer(404))
        return answer if isinstance(answer, Answer) else answer(request)

    return behave


def closed(changes: Mapping[str, Answer | Callable[[Request], Answer]]) -> Behaviour:
    """A registry that wants Basic credentials (any) and then answers as `registry_with`."""
    behave = registry_with(changes)

    def guarded(request: Request) -> Answer:
        if "Authorization" not in request.headers:
            return Answer(401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        return behave(request)

    return guarded


def name_of(server: FakeServer) -> str:
    return f"docker://{server.host}/a:v1"


def log_in(host: str) -> None:
    write_docker_config(Path(os.environ["DOCKER_CONFIG"]), {host: login()})


def test_credentials_do_not_follow_a_redirect_to_another_port(cache: Cache) -> None:
    with serving(registry_with({})) as storage:
        away = Answer(307, headers={"Location": f"http://{storage.host}{LAYER_PATH}"})
        with serving(closed({LAYER_PATH: away})) as server:
            log_in(server.host)
            with opened(name_of(server), cache) as image:
                assert_same(image, IMAGE)
            assert "Authorization" in server.asked(LAYER_PATH)[-1].headers
        (asked,) = storage.asked(LAYER_PATH)
        assert "Authorization" not in asked.headers


def test_credentials_follow_a_redirect_on_the_same_origin(cache: Cache) -> None:
    changes = {LAYER_PATH: Answer(307, headers={"Location": "/elsewhere"}), "/elsewhere": content(IMAGE)[LAYER_PATH]}
    with serving(closed(changes)) as server:
        log_in(server.host)
        with opened(name_of(server), cache) as image:
            assert_same(image, IMAGE)
        assert "Authorization" in server.asked("/elsewhere")[0].headers


def test_no_redirect_leads_to_plain_http_elsewhere(cache: Cache) -> None:
    away = Answer(302, headers={"Location": "http://registry.invalid/blob"})
    with (
        serving(registry_with({CONFIG_PATH: away})) as server,
        pytest.raises(RegistryError, match=r"127.0.0.1 sends us to http://registry.invalid, which is not HTTPS"),
    ):
        opened(name_of(server), cache).__enter__()


def test_an_upload_elsewhere_gets_no_credentials(cache: Cache) -> None:
    with serving(lambda _: Answer(204)) as storage:
        started = Answer(202, headers={"Location": f"http://{storage.host}/upload?x=1"})
        with serving(closed({"/v2/a/blobs/uploads/": started})) as server:
            log_in(server.host)
            with open_sink(parse_reference(name_of(server)), cache):
                pass
        (cancelled,) = storage.asked("/upload")
        assert cancelled.method == "DELETE"
        assert "Authorization" not in cancelled.headers


def test_neither_netrc_nor_a_proxy_is_used(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login eve password stolen\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with serving(registry_with({})) as server, opened(name_of(server), cache) as image:
        assert_same(image, IMAGE)
    assert not any("Authorization" in request.headers for request in server.requests)


def test_a_passing_failure_is_retried(cache: Cache) -> None:
    answers = [Answer(503), Answer(200, body=IMAGE.raw_config)]
    with serving(registry_with({CONFIG_PATH: lambda _: answers.pop(0)})) as server, opened(name_of(server), cache):
        assert len(server.asked(CONFIG_PATH)) == 2


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (500, r"answered 500 \(DOWN: the disk is full\) for the manifest v1 of docker://.*; try again later"),
        (429, r"wants fewer requests"),
        (403, r"run docker login 127"),
        (418, r"answered 418 .*; check the reference"),
    ],
)
def test_a_lasting_failure(status: int, message: str, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_session, "_RETRIES", 1)
    body = json.dumps({"errors": [{"code": "DOWN", "message": "the disk\x1b is full"}]}).encode()
    with (
        serving(registry_with({MANIFEST_PATH: Answer(status, body)})) as server,
        pytest.raises(RegistryError, match=message),
    ):
        opened(name_of(server), cache).__enter__()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {MANIFEST_PATH: Answer(body=IMAGE.raw_manifest, headers={"Docker-Content-Digest": f"sha256:{'0' * 64}"})},
            DigestError,
            "the manifest v1 of docker://.* has the digest",
        ),
        ({MANIFEST_PATH: Answer(body=b'{"schemaVersion":1,"fsLayers":[]}')}, ImageError, "is a schema 1 image"),
        ({MANIFEST_PATH: Answer(body=bytes(MAX_DOCUMENT + 1))}, ImageError, "is longer than"),
        ({MANIFEST_PATH: Answer(body=b"<html>")}, ImageError, "is not a valid manifest"),
        ({MANIFEST_PATH: Answer(body=b"{", claimed=100)}, RegistryError, "the manifest v1 of docker://.* broke off"),
        ({CONFIG_PATH: Answer(body=b"{}")}, DigestError, "of docker://.* has the digest"),
        ({CONFIG_PATH: Answer(404)}, ImageError, f"lacks the blob {IMAGE.manifest.config.digest}"),
        ({LAYER_PATH: Answer(body=b"short", claimed=100)}, RegistryError, "broke off"),
        ({LAYER_PATH: Answer(body=b"short")}, DigestError, "ends after 5 of"),
    ],
)
def test_a_wrong_answer(changes: Mapping[str, Answer], error: type[Exception], message: str, cache: Cache) -> None:
    def read(server: FakeServer) -> None:
        with opened(name_of(server), cache) as image:
            tars(image)

    with serving(registry_with(changes)) as server, pytest.raises(error, match=message):
        read(server)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (Answer(500), "the token service of 127.* answered 500"),
        (Answer(401), "run docker login"),
        (Answer(200, b"not json"), "gave no token"),
        (Answer(200, b'{"token": "a\\nb"}'), "gave no token"),
        (Answer(200, b'{"token": "useless"}'), "run docker login"),
    ],
)
def test_a_token_service_that_fails(token: Answer, message: str, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_session, "_RETRIES", 0)

    def behave(request: Request) -> Answer:
        if request.path.startswith("/token"):
            return token
        realm = f'Bearer realm="http://{request.headers["Host"]}/token",service="x",scope="repository:a:pull"'
        return Answer(401, headers={"WWW-Authenticate": realm})

    with serving(behave) as server, pytest.raises(RegistryError, match=message):
        opened(name_of(server), cache).__enter__()


def test_a_token_service_must_speak_https(cache: Cache) -> None:
    challenge = {"WWW-Authenticate": 'Bearer realm="http://tokens.invalid/token",service="x"'}
    with (
        serving(lambda _: Answer(401, headers=challenge)) as server,
        pytest.raises(RegistryError, match=r"sends us to http://tokens.invalid, which is not HTTPS"),
    ):
        opened(name_of(server), cache).__enter__()


class Tokens:
    """A registry whose tokens expire when the test says so."""

    def __init__(self) -> None:
        self.current = 0
        self._behave = registry_with({})

    def __call__(self, request: Request) -> Answer:
        if request.path.startswith("/token"):
            return Answer(body=json.dumps({"access_token": f"t{self.current}"}).encode())
        if request.headers.get("Authorization") == f"Bearer t{self.current}":
            return self._behave(request)
        realm = f'Bearer realm="http://{request.headers["Host"]}/token",scope="repository:a:pull repository:b:pull"'
        return Answer(401, headers={"WWW-Authenticate": realm})


def test_an_expired_token_is_renewed_once_for_all_threads(cache: Cache) -> None:
    tokens = Tokens()
    with serving(tokens) as server, opened(name_of(server), cache) as image:
        assert len(server.asked("/token")) == 1
        tokens.current += 1
        with ThreadPoolExecutor(3) as threads:
            assert [tar for found in threads.map(lambda _: tars(image), range(3)) for tar in found]
        asked = server.asked("/token")
        assert len(asked) == 2
        assert parse_qs(asked[1].path.partition("?")[2])["scope"] == ["repository:a:pull", "repository:b:pull"]


@pytest.mark.parametrize("location", ["http://[", "http://127.0.0.1:99999999/", "file:///etc/passwd", "//[x"])
def test_a_location_that_is_none(location: str, cache: Cache) -> None:
    changes = {
        CONFIG_PATH: Answer(307, headers={"Location": location}),
        "/v2/a/blobs/uploads/": Answer(202, headers={"Location": location}),
    }
    with serving(registry_with(changes)) as server:
        for attempt in (opened(name_of(server), cache), open_sink(parse_reference(name_of(server)), cache)):
            with pytest.raises(RegistryError, match=r"127.0.0.1"):
                attempt.__enter__()


def test_a_failed_upload_ends_the_push(cache: Cache) -> None:
    """The other upload would go on for months."""
    good, bad = IMAGE.layers[:2]

    def behave(request: Request) -> Answer:
        if request.method == "POST":
            return Answer(202, headers={"Location": "/upload"})
        if request.method == "PUT" and bad.descriptor.digest[7:] in request.path:
            return Answer(400)
        return Answer(404 if request.method == "HEAD" else 201)

    def endless() -> Iterator[bytes]:
        while True:
            time.sleep(0.01)
            yield b"x"

    slow = BlobLayer(replace(good.descriptor, size=10**9), lambda: nullcontext(endless()), good.diff_id)
    image = make_image([slow, bad])
    with (
        serving(behave) as server,
        open_sink(parse_reference(name_of(server)), cache) as sink,
        pytest.raises(RegistryError, match=f"answered 400 for the upload of {bad.descriptor.digest}"),
    ):
        sink.write(image, Counter())
