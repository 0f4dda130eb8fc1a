"""A token service as registries use it, signing with a key that openssl makes."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from tests.support.processes import run

if TYPE_CHECKING:
    from collections.abc import Iterator

REFRESH_TOKEN = "an-identity-token"  # noqa: S105


@dataclass
class TokenServer:
    """What the service is called, and what it saw."""

    realm: str
    certificate: Path
    key: Path
    user: str
    password: str
    service: str = "test-registry"
    issuer: str = "test-issuer"
    scopes: list[list[str]] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)

    def token(self, scopes: list[str]) -> str:
        now = int(time.time())
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        claims = {
            "iss": self.issuer,
            "aud": self.service,
            "sub": self.user,
            "exp": now + 300,
            "nbf": now - 10,
            "iat": now,
            "jti": str(time.monotonic_ns()),
            "access": access,
        }
        pem = self.certificate.read_text().split("-----")[2]
        header = {"typ": "JWT", "alg": "RS256", "x5c": ["".join(pem.split())]}
        signed = f"{_encode(json.dumps(header).encode())}.{_encode(json.dumps(claims).encode())}"
        command: list[str | Path] = ["openssl", "dgst", "-sha256", "-sign", self.key]
        signature = subprocess.run(command, input=signed.encode(), capture_output=True, check=True).stdout
        return f"{signed}.{_encode(signature)}"


def make_certificate(root: Path) -> tuple[Path, Path]:
    """A key and its own certificate for 127.0.0.1."""
    key, certificate = root / "key.pem", root / "certificate.pem"
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test",
        "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate)  # fmt: skip
    return key, certificate


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@contextmanager
def running_token_server(root: Path, user: str, password: str) -> Iterator[TokenServer]:
    key, certificate = make_certificate(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    tokens = TokenServer(f"http://127.0.0.1:{server.server_port}/token", certificate, key, user, password)
    server.tokens = tokens  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield tokens
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def tokens(self) -> TokenServer:
        found: TokenServer = self.server.tokens  # type: ignore[attr-defined]
        return found

    def do_GET(self) -> None:
        pair = f"{self.tokens.user}:{self.tokens.password}".encode()
        allowed = self.headers.get("Authorization") == f"Basic {base64.b64encode(pair).decode()}"
        self._answer(allowed, parse_qs(urlsplit(self.path).query).get("scope", []), "token")

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        allowed = form.get("refresh_token") == [REFRESH_TOKEN] and form.get("grant_type") == ["refresh_token"]
        self._answer(allowed, form.get("scope", [""])[0].split(), "access_token")

    def _answer(self, allowed: bool, scopes: list[str], key: str) -> None:  # noqa: FBT001
        self.tokens.scopes.append(scopes)
        self.tokens.methods.append(self.command)
        body = json.dumps({key: self.tokens.token(scopes), "expires_in": 300} if allowed else {}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        del format, args
