"""A read-only registry over the ordinary distribution API, for a node's neighbours.

It answers GET and HEAD for manifests, blobs (with one ``Range``), tags and referrers. Blobs go from the file to the
socket within the kernel. A blob that is there in parts only is unknown, but for the ranges that are there: clients
then ask elsewhere. There is neither encryption nor authentication: it belongs on this machine or a private network.

Sources: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#endpoints, RFC 9110 section 14
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from threading import Thread
from typing import IO, TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import parse_qs, quote, unquote, urlsplit

from slimgpu.errors import SlimgpuError, UsageError
from slimgpu.oci import media
from slimgpu.oci.digest import digest_bytes, is_digest
from slimgpu.oci.manifest import Index, dump, referrers_of_type
from slimgpu.oci.reference import is_repository, is_tag
from slimgpu.store.serve_connections import BoundedServer, PatientReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.store.shelf import Shelf

CONNECTIONS: Final = 256
"""How many clients are served at the same time; the next one is told to come again."""
_IDLE: Final = 60.0
"""Seconds that a connection may take until its next request is there whole."""
_STALLED: Final = 30.0
"""Seconds in which a client must take something of what it asked for."""
_ROUTE: Final = re.compile(r"/v2/(?P<repository>.+)/(?P<kind>manifests|blobs|referrers|tags)/(?P<identifier>[^/]+)")
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class Served:
    """Where the registry listens."""

    host: str
    port: int


@contextmanager
def serving(shelf: Shelf, host: str = "127.0.0.1", port: int = 0, connections: int = CONNECTIONS) -> Iterator[Served]:
    """Serve ``shelf`` on ``host`` and ``port`` (0: a free one) until the block ends.

    Raises `UsageError` when nothing can listen there.
    """
    handler = type("_ShelfHandler", (_Handler,), {"shelf": shelf})
    try:
        server = BoundedServer(host, port, handler, connections)
    except (OSError, OverflowError) as error:
        raise UsageError(f"nothing can listen on {host}:{port} ({error}); choose another address or port") from error
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="serve", daemon=True)
    thread.start()
    try:
        yield Served(host, server.server_address[1])
    finally:
        server.shutdown()
        server.close()
        thread.join()


class _RefusedError(Exception):
    """A request that is answered with an error of the distribution specification."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self.reply = _Reply(body, {"Content-Type": _JSON, **(headers or {})}, status)


@dataclass(frozen=True, slots=True)
class _Reply:
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = HTTPStatus.OK


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a file as an answer."""

    file: IO[bytes]
    offset: int
    size: int
    headers: Mapping[str, str]
    status: int


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "slimgpu"
    sys_version = ""
    timeout = _STALLED
    disable_nagle_algorithm = True
    shelf: Shelf

    def setup(self) -> None:
        super().setup()
        self._requests = PatientReader(self.connection)
        self.rfile = self._requests.buffered()

    def handle_one_request(self) -> None:
        self._requests.expect(_IDLE)
        super().handle_one_request()

    def do_GET(self) -> None:
        self._close_after_body()
        try:
            answer = self._find()
        except _RefusedError as refused:
            answer = refused.reply
        except (SlimgpuError, OSError):
            answer = _RefusedError(500, "UNKNOWN", "what is stored here cannot be read").reply
        if isinstance(answer, _Part):
            self._send_part(answer)
        else:
            self._send(answer)

    do_HEAD = do_GET  # noqa: N815 - the base class's names

    def _refuse_method(self) -> None:
        self._close_after_body()
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)

    do_POST = do_PUT = do_PATCH = do_DELETE = _refuse_method  # noqa: N815

    def _close_after_body(self) -> None:
        """A body is not read, so no request can follow it."""
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True

    def _find(self) -> _Reply | _Part:
        try:
            target = urlsplit(self.path)
        except ValueError:
            _refuse("NAME_UNKNOWN", "that is no address")
        path = unquote(target.path)
        if path in ("/v2", "/v2/"):
            return _Reply(b"{}", {"Content-Type": _JSON})
        found = _ROUTE.fullmatch(path)
        if found is None or not is_repository(found["repository"]):
            _refuse("NAME_UNKNOWN", "nothing is served at that address")
        repository, kind, identifier = found["repository"], found["kind"], found["identifier"]
        if kind == "manifests":
            return self._manifest(repository, identifier)
        if kind == "tags":
            return self._tags(repository, identifier, parse_qs(target.query))
        if not is_digest(identifier):
            _refuse("DIGEST_INVALID", "that is no sha256 or sha512 digest")
        if kind == "referrers":
            return self._referrers(repository, identifier, parse_qs(target.query))
        return self._blob(identifier)

    def _manifest(self, repository: str, identifier: str) -> _Reply:
        known = is_tag(identifier) or is_digest(identifier)
        found = self.shelf.manifest(repository, identifier) if known else None
        if found is None:
            _refuse("MANIFEST_UNKNOWN", "no manifest has that tag or digest")
        media_type, data = found
        digest = identifier if is_digest(identifier) else digest_bytes(data)
        return _Reply(data, {"Content-Type": media_type, "Docker-Content-Digest": digest, "ETag": f'"{digest}"'})

    def _tags(self, repository: str, identifier: str, query: Mapping[str, list[str]]) -> _Reply:
        tags = self.shelf.tags(repository) if identifier == "list" else None
        if tags is None:
            _refuse("NAME_UNKNOWN", "there is no such repository")
        last = query.get("last", [""])[-1]
        rest = sorted(tag for tag in tags if tag > last)
        count = query.get("n", [""])[-1]
        page = rest[: int(count)] if re.fullmatch(r"\d{1,9}", count) else rest
        headers = {"Content-Type": _JSON}
        if page and len(page) < len(rest):
            headers["Link"] = f'</v2/{repository}/tags/list?n={count}&last={quote(page[-1])}>; rel="next"'
        return _Reply(json.dumps({"name": repository, "tags": page}).encode(), headers)

    def _referrers(self, repository: str, digest: str, query: Mapping[str, list[str]]) -> _Reply:
        wanted = query.get("artifactType", [None])[-1]
        found = referrers_of_type(self.shelf.referrers(repository, digest), wanted)
        headers = {"Content-Type": media.OCI_INDEX, **({"OCI-Filters-Applied": "artifactType"} if wanted else {})}
        return _Reply(dump(Index(schema_version=2, media_type=media.OCI_INDEX, manifests=found)), headers)

    def _blob(self, digest: str) -> _Part:
        place = self.shelf.blob(digest)
        if place is None:
            _refuse("BLOB_UNKNOWN", "there is no such blob")
        headers = {
            "Content-Type": "application/octet-stream",
            "Docker-Content-Digest": digest,
            "ETag": f'"{digest}"',
            "Accept-Ranges": "bytes",
        }
        part = self._range(place.size, headers["ETag"])
        offset, size = part or (0, place.size)
        if not place.covers(offset, size):
            _refuse("BLOB_UNKNOWN", "that part of the blob is not here")
        if part:
            headers["Content-Range"] = f"bytes {offset}-{offset + size - 1}/{place.size}"
        try:
            file = place.path.open("rb", buffering=0)
        except FileNotFoundError:
            _refuse("BLOB_UNKNOWN", "the blob has just gone")
        status = HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK
        return _Part(file, place.offset + offset, size, headers, status)

    def _range(self, size: int, etag: str) -> tuple[int, int] | None:
        """Offset and length of what is wanted; None for all. What is no single range counts as none."""
        found = _RANGE.fullmatch(self.headers.get("Range", "")) if self.command == "GET" else None
        if found is None or found[0] == "bytes=-" or self.headers.get("If-Range", etag) != etag:
            return None
        first, last = found.groups()
        start = int(first) if first else max(0, size - int(last))
        end = min(int(last) + 1, size) if first and last else size
        if first and last and int(last) < start:
            return None
        if start >= end:
            told = {"Content-Range": f"bytes */{size}"}
            raise _RefusedError(416, "BLOB_UNKNOWN", "the range lies beyond the blob", told)
        return start, end - start

    def _send(self, reply: _Reply) -> None:
        self._send_head(reply.status, reply.headers, len(reply.body))
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def _send_part(self, part: _Part) -> None:
        with part.file as file:
            self._send_head(part.status, part.headers, part.size)
            if self.command == "GET" and part.size:
                sent = self.connection.sendfile(file, part.offset, part.size)
                if sent < part.size:  # the file has become shorter
                    self.close_connection = True

    def _send_head(self, status: int, headers: Mapping[str, str], size: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Docker-Distribution-API-Version", "registry/2.0")
        self.send_header("Content-Length", str(size))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class answers to a broken request, as JSON."""
        del explain
        self.close_connection = True
        self.request_version = self.protocol_version  # else a broken first line counts as HTTP/0.9, without a head
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        allowed = {"Allow": "GET, HEAD"} if status is HTTPStatus.METHOD_NOT_ALLOWED else None
        with suppress(OSError):
            self._send(_RefusedError(status, "UNSUPPORTED", message or status.phrase, allowed).reply)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Nothing: one line a request would cost more than the request."""


def _refuse(code: str, message: str) -> NoReturn:
    raise _RefusedError(HTTPStatus.NOT_FOUND, code, message)
