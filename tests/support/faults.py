"""An HTTP reverse proxy that misbehaves as a test plans it, always the same way."""

from __future__ import annotations

import hashlib
import http.client
import random
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

Match = Callable[[str, str, Mapping[str, str]], bool]
"""Says of a method, a path and headers whether a fault is meant for them."""

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(.*)")


@dataclass(frozen=True)
class Answer:
    """What goes back to the client, byte for byte."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    claimed: int
    """The Content-Length."""
    pause_at: int | None = None
    """Where in the body nothing more is sent for ``pause`` seconds; None is for as long as the proxy runs."""
    pause: float | None = None
    cut_at: int | None = None
    """Where in the body the connection is reset."""
    until: threading.Event | None = None
    """Nothing is sent before it is set."""
    drip: float | None = None
    """Seconds between the bytes of the body from ``pause_at`` on."""
    drip_head: float | None = None
    """Seconds between the bytes of the head."""
    gone: bool = False
    """Nothing is sent, and nothing listens any more."""


@dataclass(frozen=True)
class Fault:
    """One way to misbehave."""

    name: str
    spoil: Callable[[Answer], Answer]
    without: frozenset[str] = frozenset()
    """Headers of the request, in lower case, that upstream never sees."""


def stall(after: float = 0.5, seconds: float | None = None) -> Fault:
    """Stop sending after this share of the body; go on after ``seconds``, or never."""
    return Fault("stall", lambda answer: replace(answer, pause_at=int(len(answer.body) * after), pause=seconds))


def hold(until: threading.Event) -> Fault:
    """Answer nothing before ``until`` is set."""
    return Fault("hold", lambda answer: replace(answer, until=until))


def drip(after: float = 0.5, seconds: float = 0.05) -> Fault:
    """After this share of the body, send a byte every so many seconds."""
    return Fault("drip", lambda answer: replace(answer, pause_at=int(len(answer.body) * after), drip=seconds))


def drip_head(seconds: float = 0.05) -> Fault:
    """Send a byte every so many seconds from the first one on."""
    return Fault("drip_head", lambda answer: replace(answer, drip_head=seconds))


def drop(after: float = 0.5) -> Fault:
    """Reset the connection after this share of the body."""
    return Fault("drop", lambda answer: replace(answer, cut_at=int(len(answer.body) * after)))


def truncate(share: float = 0.5) -> Fault:
    """Send less, and say so in the Content-Length, as if that were all."""

    def spoil(answer: Answer) -> Answer:
        body = answer.body[: int(len(answer.body) * share)]
        return replace(answer, body=body, claimed=len(body))

    return Fault("truncate", spoil)


def corrupt(count: int = 1, seed: int = 0) -> Fault:
    """Change ``count`` bytes of the body."""

    def spoil(answer: Answer) -> Answer:
        body = bytearray(answer.body)
        for place in random.Random(seed).sample(range(len(body)), min(count, len(body))):  # noqa: S311
            body[place] ^= 0xFF
        return replace(answer, body=bytes(body))

    return Fault("corrupt", spoil)


def wrong_length(by: int = 100) -> Fault:
    """Claim a Content-Length that is off by so much; the connection ends after the body."""

    def spoil(answer: Answer) -> Answer:
        return replace(answer, claimed=max(0, len(answer.body) + by), headers={**answer.headers, "Connection": "close"})

    return Fault("wrong_length", spoil)


def status(code: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Fault:
    """Answer this, whatever upstream said."""
    said = Answer(code, dict(headers or {}), body, len(body))
    return Fault(f"status {code}", lambda _: said)


def html(code: int = 200) -> Fault:
    """A page, as from a portal in between."""
    page = b"<!doctype html><title>Sign in</title><p>Please sign in to the network."
    return replace(status(code, page, {"Content-Type": "text/html"}), name="html")


def ignore_range() -> Fault:
    """Answer 200 with the whole blob to a request for a range."""
    return Fault("ignore_range", lambda answer: answer, without=frozenset({"range"}))


def wrong_range(by: int = 1) -> Fault:
    """Claim in Content-Range to have sent the bytes that lie so much further on."""

    def spoil(answer: Answer) -> Answer:
        found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if not found:
            return answer
        claimed = f"bytes {int(found[1]) + by}-{int(found[2]) + by}/{found[3]}"
        return replace(answer, headers={**answer.headers, "Content-Range": claimed})

    return Fault("wrong_range", spoil)


def disappear() -> Fault:
    """End every connection and listen no more."""
    return Fault("disappear", lambda answer: replace(answer, gone=True))


@dataclass
class _Plan:
    fault: Fault
    match: Match
    left: float
    skip: int


@dataclass(frozen=True)
class _Dice:
    """Faults that come with a probability, which depends on what is asked and how often it was, not on when."""

    faults: Sequence[Fault]
    rate: float
    seed: int
    match: Match
    asked: Counter[str] = field(default_factory=Counter)

    def throw(self, request: str) -> Fault | None:
        self.asked[request] += 1
        told = f"{self.seed} {self.asked[request]} {request}".encode()
        dice = random.Random(hashlib.sha256(told).digest())  # noqa: S311
        return dice.choice(self.faults) if dice.random() < self.rate else None


@dataclass(frozen=True)
class Exchange:
    """One request, and the fault that it met."""

    method: str
    path: str
    headers: Mapping[str, str]
    fault: str | None


class Faults:
    """A proxy on 127.0.0.1 before ``upstream``, such as ``http://127.0.0.1:5000``."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        assert parts.hostname
        self.upstream = (parts.hostname, parts.port or 80)
        self.exchanges: list[Exchange] = []
        self.closing = threading.Event()
        self._plans: list[_Plan] = []
        self._dice: list[_Dice] = []
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._server: _Server | None = None
        self.port = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def plan(self, fault: Fault, match: Match | None = None, times: float = float("inf"), skip: int = 0) -> None:
        """Let ``fault`` meet the next ``times`` matching requests after the first ``skip``; earlier plans go first."""
        with self._lock:
            self._plans.append(_Plan(fault, match or _any, times, skip))

    def plan_randomly(self, faults: Sequence[Fault], rate: float, seed: int, match: Match | None = None) -> None:
        """Let one of ``faults`` meet this share of the requests that match, the same ones for the same seed."""
        with self._lock:
            self._dice.append(_Dice(list(faults), rate, seed, match or _any))

    def heal(self) -> None:
        """Forget every plan."""
        with self._lock:
            self._plans.clear()
            self._dice.clear()

    def asked(self, part: str = "") -> list[Exchange]:
        """What was asked of paths with this part."""
        with self._lock:
            return [exchange for exchange in self.exchanges if part in exchange.path]

    def __enter__(self) -> Self:
        self.appear()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.vanish()

    def appear(self) -> None:
        """Listen, on the same port as before."""
        self._server = _Server(("127.0.0.1", self.port), self)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def vanish(self) -> None:
        """Listen no more, and reset what is open."""
        with self._lock:
            server, self._server = self._server, None
            connections = list(self._open)
        if server is not None:
            server.shutdown()
            server.server_close()
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def meet(self, method: str, path: str, headers: Mapping[str, str]) -> Fault | None:
        """The fault that this request is to meet."""
        with self._lock:
            fault = self._planned(method, path, headers) or self._thrown(method, path, headers)
            self.exchanges.append(Exchange(method, path, headers, fault.name if fault else None))
            return fault

    def _planned(self, method: str, path: str, headers: Mapping[str, str]) -> Fault | None:
        for plan in self._plans:
            if plan.left <= 0 or not plan.match(method, path, headers):
                continue
            if plan.skip:
                plan.skip -= 1
                continue
            plan.left -= 1
            return plan.fault
        return None

    def _thrown(self, method: str, path: str, headers: Mapping[str, str]) -> Fault | None:
        request = f"{method} {path} {headers.get('Range', '')}"
        for dice in self._dice:
            if dice.match(method, path, headers) and (fault := dice.throw(request)):
                return fault
        return None

    def entered(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)

    def left(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)


def _any(method: str, path: str, headers: Mapping[str, str]) -> bool:
    del method, path, headers
    return True


@contextmanager
def blackhole() -> Iterator[str]:
    """An address where nobody answers, not even with a refusal: Linux drops what a full queue has no place for."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as stack:
        while True:
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0.5)
            try:
                waiting.connect(listener.getsockname())
            except TimeoutError:
                break
        yield f"127.0.0.1:{listener.getsockname()[1]}"


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], faults: Faults) -> None:
        self.faults = faults
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are what tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.faults.entered(self.connection)

    def finish(self) -> None:
        self.server.faults.left(self.connection)
        super().finish()

    def _serve(self) -> None:
        headers = dict(self.headers.items())
        body = (
            self._chunked()
            if "Transfer-Encoding" in headers
            else self.rfile.read(int(headers.get("Content-Length", 0)))
        )
        fault = self.server.faults.meet(self.command, self.path, headers)
        hidden = _HOP_BY_HOP | (fault.without if fault else frozenset())
        answer = self._ask({name: value for name, value in headers.items() if name.lower() not in hidden}, body)
        self._send(fault.spoil(answer) if fault else answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - names of the base class

    def _chunked(self) -> bytes:
        body = bytearray()
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return bytes(body)

    def _ask(self, headers: Mapping[str, str], body: bytes) -> Answer:
        upstream = http.client.HTTPConnection(*self.server.faults.upstream)
        try:
            upstream.request(self.command, self.path, body or None, {**headers, "Content-Length": str(len(body))})
            response = upstream.getresponse()
            said = response.read()
        except (OSError, http.client.HTTPException):
            return Answer(502, {}, b"", 0)
        finally:
            upstream.close()
        kept = {name: value for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP}
        length = int(response.getheader("Content-Length") or 0) if self.command == "HEAD" else len(said)
        return Answer(response.status, kept, said, length)

    def _send(self, answer: Answer) -> None:
        if answer.gone:
            self.close_connection = True
            self.server.faults.vanish()
            return
        if answer.until is not None:
            answer.until.wait()
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.status not in (204, 304):
            self.send_header("Content-Length", str(answer.claimed))
        if answer.drip_head is not None:
            head, self._headers_buffer = b"".join(self._headers_buffer), []
            self._drip(head, answer.drip_head)
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(answer)

    def _drip(self, data: bytes, seconds: float) -> None:
        for byte in data:
            self.wfile.write(bytes([byte]))
            if self.server.faults.closing.wait(seconds):
                raise ConnectionAbortedError

    def _send_body(self, answer: Answer) -> None:
        done = 0
        if answer.pause_at is not None and answer.drip is not None:
            self.wfile.write(answer.body[: answer.pause_at])
            self._drip(answer.body[answer.pause_at :], answer.drip)
            return
        if answer.pause_at is not None:
            done = answer.pause_at
            self.wfile.write(answer.body[:done])
            if self.server.faults.closing.wait(answer.pause):
                self.close_connection = True
                return
        self.wfile.write(answer.body[done : answer.cut_at])
        if answer.cut_at is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        del format, args
