"""The helper that shapes connections: it hands bytes from socket to socket within the kernel (``splice``), at a rate.

Only what servers send is limited: by buckets, and one connection's rate by the kernel (``SO_MAX_PACING_RATE``), which
is exact on a busy machine, too. It lets the first ten packets of a connection pass, though, and they are large here, so
these wait in a bucket.
"""

from __future__ import annotations

import json
import selectors
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from slimgpu.bench.link.delay import PACKET
from slimgpu.bench.link.helper import say, serve
from slimgpu.bench.link.pump import Bucket, Tally, pump, pump_late

if TYPE_CHECKING:
    from collections.abc import Sequence

_SO_MAX_PACING_RATE: Final = 47
_UNPACED: Final = 10 * PACKET
_WAITING: Final = 128


@dataclass(frozen=True, slots=True)
class Route:
    """Where the proxy listens, and what for."""

    listen: tuple[str, int]
    """Port 0 is a free one."""
    target: tuple[str, int]
    buckets: tuple[int, ...] = ()
    """Which ones what comes back has to go through."""
    node: int = 0
    """Whom it counts for."""
    peer: bool = False
    """Whether the target is another node."""


@dataclass(frozen=True, slots=True)
class _Task:
    """What the proxy is started with."""

    routes: list[Route]
    rates: list[float | None]
    """Of the buckets, bit/s."""
    latency: float
    connection: float | None
    """Bit/s of one connection to the registry."""
    nodes: int


def proxy_arguments(
    routes: Sequence[Route], rates: Sequence[float | None], latency: float, connection: float | None, nodes: int = 1
) -> list[str]:
    """How the helper is started; it says the ports that it listens on, in the order of ``routes``."""
    return ["proxy", json.dumps(asdict(_Task(list(routes), list(rates), latency, connection, nodes)))]


def run(argument: str) -> None:
    """Be the proxy."""
    task = _Task(**json.loads(argument))
    proxy = _Proxy(task.rates, task.latency, task.connection, task.nodes)
    routes = [_route(**each) for each in json.loads(argument)["routes"]]
    say(proxy.listen(routes))
    threading.Thread(target=proxy.accept, daemon=True).start()
    serve(proxy.answer)


def _route(listen: list[Any], target: list[Any], buckets: list[int], node: int, *, peer: bool) -> Route:
    return Route((listen[0], listen[1]), (target[0], target[1]), tuple(buckets), node, peer)


@dataclass(slots=True)
class _Node:
    registry: Tally = field(default_factory=Tally)
    peers: Tally = field(default_factory=Tally)


class _Proxy:
    """All connections of all routes."""

    def __init__(self, rates: Sequence[float | None], latency: float, connection: float | None, nodes: int) -> None:
        self._buckets = [None if rate is None else Bucket(rate) for rate in rates]
        self._trip = 2 * latency
        self._connection = connection
        self._nodes = [_Node() for _ in range(nodes)]
        self._waiting = selectors.DefaultSelector()

    def listen(self, routes: Sequence[Route]) -> list[int]:
        """Begin to listen; the ports."""
        ports = []
        for route in routes:
            listener = socket.create_server(route.listen, backlog=_WAITING)
            listener.setblocking(False)
            self._waiting.register(listener, selectors.EVENT_READ, route)
            ports.append(int(listener.getsockname()[1]))
        return ports

    def accept(self) -> None:
        """Begin a thread for each connection."""
        while True:
            for key, _ in self._waiting.select():
                assert isinstance(key.fileobj, socket.socket)
                with suppress(BlockingIOError, ConnectionError):
                    client, _ = key.fileobj.accept()
                    client.setblocking(True)
                    threading.Thread(target=self._relay, args=(client, key.data), daemon=True).start()

    def answer(self, question: str) -> list[tuple[int, int, int]]:
        """The figures of each node, from zero if that is asked."""
        tallies = [(node.registry, node.peers) for node in self._nodes]
        if question == "reset":
            for tally in (each for pair in tallies for each in pair):
                tally.reset()
        return [(registry.count, peers.count, registry.most) for registry, peers in tallies]

    def _relay(self, client: socket.socket, route: Route) -> None:
        """Carry one connection until both directions have ended."""
        node = self._nodes[route.node]
        tally = node.peers if route.peer else node.registry
        buckets = [bucket for index in route.buckets if (bucket := self._buckets[index]) is not None]
        with tally.open(), client, suppress(OSError), socket.create_connection(route.target) as server:
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._connection and not route.peer:
                rate = struct.pack("=Q", int(self._connection / 8))
                client.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, rate)
                buckets.insert(0, Bucket(self._connection, _UNPACED))
            up, told = (pump_late, (self._trip,)) if self._trip else (pump, ())
            upward = threading.Thread(target=up, args=(client, server, *told), daemon=True)
            upward.start()
            pump(server, client, buckets, tally)
            upward.join()
