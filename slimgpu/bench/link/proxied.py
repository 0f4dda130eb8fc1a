"""A link without namespaces: a proxy in front of each server, all on the machine's own loopback.

Each pair of a node and a server has a port of its own on the proxy, so that it knows whom it counts for.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slimgpu.bench.link.addresses import LOCAL, node_address
from slimgpu.bench.link.helper import Helper, helper
from slimgpu.bench.link.proxy import Route, proxy_arguments
from slimgpu.bench.link.values import Counters

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slimgpu.bench.link.values import Shape

_NOTES: Final = (
    "nothing but connections to the link's own addresses is limited and counted, headers not at all",
    "each byte is moved once more, and TCP sees the round trip in its first answer only",
)


@dataclass(frozen=True, slots=True)
class _Proxied:
    """See `slimgpu.bench.link.values.Link`."""

    helper: Helper
    ports: Mapping[tuple[int, int, int | None], int]
    """By server's port, node and the server's node."""
    notes: tuple[str, ...]
    how: str = "splice proxy"

    def command(self, command: Sequence[str], node: int | None = None) -> list[str]:
        del node
        return list(command)

    def host(self, node: int | None = None) -> str:
        return LOCAL if node is None else node_address(node)

    def address(self, port: int, node: int = 0, server: int | None = None) -> tuple[str, int]:
        if server == node:
            return self.host(node), port
        return LOCAL, self.ports[port, node, server]

    def reset(self) -> None:
        self.helper.ask("reset")

    def counted(self, node: int = 0) -> Counters:
        return Counters(*self.helper.ask("counted")[node])


@contextmanager
def proxied(shape: Shape, reason: str) -> Iterator[_Proxied]:
    """A link of proxies; ``reason`` says why it is no better one."""
    keys = [(port, node, server) for port, node, server in _pairs(shape)]
    routes = [_route(shape, *key) for key in keys]
    rates = (shape.bandwidth, *[shape.line] * (2 * shape.nodes))
    arguments = proxy_arguments(routes, rates, shape.latency, shape.connection, shape.nodes)
    with helper("the link's proxy", arguments) as process:
        ports = dict(zip(keys, process.said, strict=True))
        yield _Proxied(process, ports, (f"a proxy shapes the link, as {reason}", *_NOTES))


def _pairs(shape: Shape) -> Iterator[tuple[int, int, int | None]]:
    for node in range(shape.nodes):
        yield from ((port, node, None) for port in shape.ports)
        others = [other for other in range(shape.nodes) if other != node]
        yield from ((port, node, other) for other in others for port in shape.node_ports)


def _route(shape: Shape, port: int, node: int, server: int | None) -> Route:
    """Through the buckets of the server and the node: first the registry's, then what each node gets, and sends."""
    into = 1 + node
    if server is None:
        return Route((LOCAL, 0), (LOCAL, port), (0, into), node)
    return Route((LOCAL, 0), (node_address(server), port), (1 + shape.nodes + server, into), node, peer=True)
