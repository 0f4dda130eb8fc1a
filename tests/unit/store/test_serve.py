"""The read-only registry: what it answers to the friendly, and to the hostile."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

from slimgpu.errors import UsageError
from slimgpu.oci import media
from slimgpu.oci.digest import digest_bytes
from slimgpu.oci.manifest import Descriptor
from slimgpu.store import serve
from slimgpu.store.cache import Cache
from slimgpu.store.serve import serving
from slimgpu.store.shelf import LayoutShelf
from tests.support.store import make_artifact, put_artifact

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slimgpu.oci.image import Artifact
    from slimgpu.store.serve import Served

DATA = bytes(range(256)) * 40_000
SUBJECT = Descriptor(media.OCI_MANIFEST, f"sha256:{'1' * 64}", 3)
ARTIFACT = make_artifact([DATA, b""], "application/vnd.test", SUBJECT)
DIGEST, EMPTY = (layer.descriptor.digest for layer in ARTIFACT.layers)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serve")
    for tag in ("v1", "v2", "v3"):
        put_artifact(ARTIFACT, f"oci:{root}/layout:{tag}", Cache(root / "cache"))
    return root / "layout"


@pytest.fixture(scope="module")
def server(layout: Path) -> Iterator[Served]:
    with serving(LayoutShelf(layout)) as running:
        yield running


def get(server: Served, path: str, method: str = "GET", **headers: str) -> requests.Response:
    spelled = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.request(method, f"http://127.0.0.1:{server.port}{path}", headers=spelled, timeout=10)


def code(response: requests.Response) -> str:
    assert response.headers["Content-Type"] == "application/json"
    found: str = response.json()["errors"][0]["code"]
    return found


def test_the_api_is_there(server: Served) -> None:
    for path in ("/v2/", "/v2"):
        answer = get(server, path)
        assert answer.json() == {}
        assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"


@pytest.mark.parametrize("by_tag", [True, False])
def test_manifests(by_tag: bool, server: Served) -> None:  # noqa: FBT001
    identifier = "v1" if by_tag else digest_bytes(ARTIFACT.raw_manifest)
    for method, body in (("GET", ARTIFACT.raw_manifest), ("HEAD", b"")):
        answer = get(server, f"/v2/any/name/manifests/{identifier}", method)
        assert answer.content == body
        assert answer.headers["Content-Type"] == media.OCI_MANIFEST
        assert answer.headers["Content-Length"] == str(len(ARTIFACT.raw_manifest))
        assert answer.headers["Docker-Content-Digest"] == digest_bytes(ARTIFACT.raw_manifest)


def test_tags_in_pages(server: Served) -> None:
    assert get(server, "/v2/a/tags/list").json() == {"name": "a", "tags": ["v1", "v2", "v3"]}
    page = get(server, "/v2/a/tags/list?n=2")
    assert page.json()["tags"] == ["v1", "v2"]
    rest = get(server, page.links["next"]["url"])
    assert rest.json()["tags"] == ["v3"]
    assert not rest.links


def test_referrers(server: Served) -> None:
    for query, count in (("", 1), ("?artifactType=application%2Fvnd.test", 1), ("?artifactType=x", 0)):
        answer = get(server, f"/v2/a/referrers/{SUBJECT.digest}{query}")
        assert answer.headers["Content-Type"] == media.OCI_INDEX
        assert len(answer.json()["manifests"]) == count
        assert ("OCI-Filters-Applied" in answer.headers) == bool(query)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=7-1000006", slice(7, 1_000_007)),
        ("bytes=5-", slice(5, None)),
        ("bytes=-9", slice(-9, None)),
        ("bytes=-99999999999", slice(None)),
        ("bytes=10-99999999999", slice(10, None)),
    ],
)
def test_ranges(wanted: str, expected: slice, server: Served) -> None:
    answer = get(server, f"/v2/a/blobs/{DIGEST}", Range=wanted)
    assert answer.status_code == 206
    assert answer.content == DATA[expected]
    start, end, _ = expected.indices(len(DATA))
    assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(DATA)}"


@pytest.mark.parametrize(
    "wanted", ["bytes=5-4", "bytes=1-2,4-5", "bytes=-", "lines=1-2", "bytes=a-b", "", "bytes= 1-2"]
)
def test_no_single_range_gives_all(wanted: str, server: Served) -> None:
    answer = get(server, f"/v2/a/blobs/{DIGEST}", Range=wanted)
    assert (answer.status_code, answer.content) == (200, DATA)
    assert get(server, f"/v2/a/blobs/{DIGEST}", Range="bytes=0-1", If_Range='"other"').status_code == 200
    assert get(server, f"/v2/a/blobs/{DIGEST}", Range="bytes=0-1", If_Range=answer.headers["ETag"]).status_code == 206


def test_beyond_the_blob(server: Served) -> None:
    for digest, size in ((DIGEST, len(DATA)), (EMPTY, 0)):
        for wanted in (f"bytes={size}-", f"bytes={size + 5}-{size + 9}", "bytes=-0"):
            answer = get(server, f"/v2/a/blobs/{digest}", Range=wanted)
            assert answer.status_code == 416
            assert answer.headers["Content-Range"] == f"bytes */{size}"
    assert get(server, f"/v2/a/blobs/{EMPTY}").content == b""


def test_a_head_names_the_whole(server: Served) -> None:
    answer = get(server, f"/v2/a/blobs/{DIGEST}", "HEAD", Range="bytes=0-1")
    assert (answer.status_code, answer.headers["Content-Length"]) == (200, str(len(DATA)))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "NAME_UNKNOWN"),
        ("/v2/../../etc/passwd", "NAME_UNKNOWN"),
        ("/v2/a/blobs/..%2f..%2findex.json", "NAME_UNKNOWN"),
        ("/v2/..%2f..%2fetc/blobs/sha256:" + "0" * 64, "NAME_UNKNOWN"),
        ("/v2/a/blobs/index.json", "DIGEST_INVALID"),
        ("/v2/a/blobs/sha256:..", "DIGEST_INVALID"),
        ("/v2/a/blobs/sha256:" + "0" * 63, "DIGEST_INVALID"),
        ("/v2/a/blobs/SHA256:" + "0" * 64, "DIGEST_INVALID"),
        ("/v2/a/blobs/md5:" + "0" * 32, "DIGEST_INVALID"),
        ("/v2/a/blobs/sha256:" + "0" * 64, "BLOB_UNKNOWN"),
        ("/v2/a/blobs/sha512:" + "0" * 128, "BLOB_UNKNOWN"),
        ("/v2/a/manifests/v9", "MANIFEST_UNKNOWN"),
        ("/v2/a/manifests/%00", "MANIFEST_UNKNOWN"),
        ("/v2/a/manifests/" + DIGEST, "MANIFEST_UNKNOWN"),
        ("/v2/a/tags/other", "NAME_UNKNOWN"),
        ("/v2/A/tags/list", "NAME_UNKNOWN"),
        ("/v2/" + "a/" * 200 + "tags/list", "NAME_UNKNOWN"),
        ("/v2/a/referrers/x", "DIGEST_INVALID"),
        ("/v2/_catalog", "NAME_UNKNOWN"),
        ("http://[/v2/", "NAME_UNKNOWN"),
    ],
)
def test_what_is_not_there(path: str, expected: str, server: Served) -> None:
    status, body = raw(server, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert status == 404
    assert json.loads(body)["errors"][0]["code"] == expected


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"])
def test_nothing_can_be_written(method: str, server: Served) -> None:
    answer = get(server, "/v2/a/blobs/uploads/", method)
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "GET, HEAD"
    assert code(answer) == "UNSUPPORTED"


def raw(server: Served, request: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to what no client would send."""
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=10)) as connection:
        connection.sendall(request)
        answer = bytearray()
        try:
            while data := connection.recv(65536):
                answer += data
        except ConnectionResetError:
            pass
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]) if head else 0, body


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /v2/ HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /v2/ HTTP/1.1\r\n" + b"".join(b"X%d: a\r\n" % n for n in range(200)) + b"\r\n", 431),
        (b"GET /v2/ HTTP/9.9\r\n\r\n", 505),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /v2/ HTTP/1.1 extra\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"POST /v2/ HTTP/1.1\r\nContent-Length: 30\r\n\r\nGET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET /v2/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /v2/ HTTP/1.1\r\n\r\n", 200),
    ],
)
def test_what_no_client_sends(request_bytes: bytes, status: int, server: Served) -> None:
    found, body = raw(server, request_bytes)
    assert found in (status, 0)  # 0: it hung up before we had read its answer
    assert b"HTTP/1.1" not in body
    assert get(server, "/v2/").status_code == 200


def test_a_connection_is_kept(server: Served) -> None:
    with requests.Session() as session:
        answers = [
            session.get(f"http://127.0.0.1:{server.port}/v2/a/{what}", timeout=10)
            for what in ("manifests/v1", "manifests/none", f"blobs/{DIGEST}", "tags/list")
        ]
        assert [answer.status_code for answer in answers] == [200, 404, 200, 200]
        assert all("close" not in answer.headers.get("Connection", "") for answer in answers)
        pools = session.get_adapter("http://").poolmanager.pools  # type: ignore[attr-defined]
        assert pools[next(iter(pools.keys()))].num_connections == 1


def test_many_threads(server: Served) -> None:
    def differs(number: int) -> bool:
        start = number * 10_000
        return (
            get(server, f"/v2/a/blobs/{DIGEST}", Range=f"bytes={start}-{start + 2_000_000}").content
            != (DATA[start : start + 2_000_001])
        )

    with ThreadPoolExecutor(16) as threads:
        assert not any(threads.map(differs, range(64)))


def test_more_connections_than_allowed(layout: Path) -> None:
    with serving(LayoutShelf(layout), connections=2) as server:
        held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
        for connection in held:
            connection.sendall(b"GET /v2/ HTTP/1.1\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        with closing(socket.create_connection(("127.0.0.1", server.port))) as third:
            assert third.recv(1000).startswith(b"HTTP/1.1 503")
        for connection in held:
            connection.close()
        deadline = time.monotonic() + 10
        while get(server, "/v2/").status_code != 200:
            assert time.monotonic() < deadline


def drip(connection: socket.socket) -> None:
    for _ in range(200):
        connection.sendall(b"G")
        time.sleep(0.05)


def test_slow_clients(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_IDLE", 0.3)
    monkeypatch.setattr(serve._Handler, "timeout", 0.3)
    with serving(LayoutShelf(layout)) as server:
        dripping = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        with closing(dripping), pytest.raises(OSError):  # noqa: PT011 - a reset, or a broken pipe
            drip(dripping)
        with closing(socket.socket()) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", server.port))
            deaf.sendall(f"GET /v2/a/blobs/{DIGEST} HTTP/1.1\r\n\r\n".encode())
            time.sleep(1)
            deaf.settimeout(10)
            count = 0
            while data := deaf.recv(1_000_000):
                count += len(data)
            assert count < len(DATA)


def test_the_end_cuts_connections(layout: Path) -> None:
    with serving(LayoutShelf(layout)) as server:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        connection.sendall(b"HEAD /v2/ HTTP/1.1\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    with closing(connection):
        assert connection.recv(1000) == b""
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", server.port))


def test_nothing_can_listen_there(server: Served, layout: Path) -> None:
    for host, port in (("127.0.0.1", server.port), ("127.0.0.1", 99999), ("192.0.2.1", 0)):
        with pytest.raises(UsageError, match=rf"nothing can listen on {host}:{port} .*; choose another"):
            serving(LayoutShelf(layout), host, port).__enter__()


@dataclass(frozen=True)
class Half:
    """The first half of a blob."""

    path: Path
    offset: int = 3
    size: int = 1000

    def covers(self, offset: int, length: int) -> bool:
        return offset + length <= 500


class HalfShelf:
    def __init__(self, path: Path) -> None:
        self.path = path

    def manifest(self, repository: str, identifier: str) -> tuple[str, bytes] | None:
        raise OSError(f"{repository}:{identifier} is on a broken disk")

    def blob(self, digest: str) -> Half | None:
        del digest
        return Half(self.path)

    def tags(self, repository: str) -> Sequence[str] | None:
        del repository
        return None

    def referrers(self, repository: str, digest: str) -> Sequence[Descriptor]:
        del repository, digest
        return ()


@contextmanager
def half(path: Path) -> Iterator[Served]:
    with serving(HalfShelf(path)) as server:
        yield server


def test_a_blob_that_is_there_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "part"
    path.write_bytes(DATA[:503])
    blob = f"/v2/a/blobs/{DIGEST}"
    with half(path) as server:
        answer = get(server, blob, Range="bytes=100-499")
        assert (answer.status_code, answer.content) == (206, DATA[103:503])
        assert answer.headers["Content-Range"] == "bytes 100-499/1000"
        for refused in (
            get(server, blob),
            get(server, blob, Range="bytes=100-500"),
            get(server, blob, Range="bytes=-1"),
        ):
            assert (refused.status_code, code(refused)) == (404, "BLOB_UNKNOWN")
        assert get(server, blob, "HEAD").status_code == 404
        assert get(server, blob, Range="bytes=1000-").status_code == 416
        path.write_bytes(DATA[:203])  # as after a crash
        with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
            get(server, blob, Range="bytes=0-499")
        path.unlink()
        assert code(get(server, blob, Range="bytes=0-1")) == "BLOB_UNKNOWN"


def test_a_broken_disk(tmp_path: Path) -> None:
    with half(tmp_path) as server:
        answer = get(server, "/v2/a/manifests/v1")
        assert (answer.status_code, code(answer)) == (500, "UNKNOWN")
        assert "disk" not in answer.text


def artifact_of(tag: str) -> Artifact:
    return make_artifact([tag.encode()])


def test_a_layout_as_a_shelf(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    first, second = artifact_of("1"), artifact_of("2")
    put_artifact(first, f"oci:{tmp_path}/layout", cache)
    shelf = LayoutShelf(tmp_path / "layout", "team/a")
    assert shelf.tags("team/a") == ["latest"]
    assert shelf.manifest("team/a", "latest") == (media.OCI_MANIFEST, first.raw_manifest)
    put_artifact(second, f"oci:{tmp_path}/layout:v2", cache)
    assert shelf.tags("team/a") == ["v2"]
    assert shelf.manifest("team/a", "v2") == (media.OCI_MANIFEST, second.raw_manifest)
    assert shelf.manifest("team/a", "latest") is None
    digest = digest_bytes(first.raw_manifest)
    assert shelf.manifest("team/a", digest) == (media.OCI_MANIFEST, first.raw_manifest)
    assert shelf.manifest("other", "v2") is None
    assert shelf.tags("other") is None
    assert shelf.referrers("other", digest) == ()


@pytest.mark.parametrize(
    ("document", "media_type"),
    [
        ({"schemaVersion": 2, "manifests": []}, media.OCI_INDEX),
        ({"schemaVersion": 2, "layers": []}, media.OCI_MANIFEST),
        ({"schemaVersion": 2, "mediaType": media.DOCKER_INDEX}, media.DOCKER_INDEX),
        ({"schemaVersion": 2, "mediaType": "text/html"}, None),
        ({"schemaVersion": 2, "mediaType": []}, None),
        ({"schemaVersion": 1, "layers": []}, None),
        ({"architecture": "amd64"}, None),
        ([], None),
    ],
)
def test_only_manifests_are_manifests(document: object, media_type: str | None, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    data = json.dumps(document).encode()
    put_artifact(make_artifact([data]), f"oci:{tmp_path}/layout", cache)
    found = LayoutShelf(tmp_path / "layout").manifest("a", digest_bytes(data))
    assert found == ((media_type, data) if media_type else None)
