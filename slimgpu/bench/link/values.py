"""What a link is asked to be, how it is used, and what it counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from slimgpu.bench.link.addresses import LOCAL
from slimgpu.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_NODES: Final = 64
_LEAST_BANDWIDTH: Final = 1e5
_MOST_LATENCY: Final = 1.0
_PORTS: Final = range(1, 1 << 16)


@dataclass(frozen=True, slots=True)
class Shape:
    """A registry and nodes at one switch; rates are bit/s of payload, and None is no limit."""

    bandwidth: float | None
    """Of what the registry sends, to all nodes together."""
    ports: tuple[int, ...]
    """Where the registry's side listens."""
    latency: float = 0.0
    """Seconds one way, for connections to ``ports`` and ``node_ports``."""
    connection: float | None = None
    """Of one connection to the registry's ports, as storage services limit them."""
    nodes: int = 1
    node_bandwidth: float | None = None
    """Of each node's own line, in each direction; None is the registry's bandwidth, `math.inf` no limit."""
    node_ports: tuple[int, ...] = ()
    """Where each node may listen for the others."""

    @property
    def line(self) -> float | None:
        """Bit/s of a node's line in each direction; None when it is not limited."""
        own = self.bandwidth if self.node_bandwidth is None else self.node_bandwidth
        return None if own == math.inf else own

    def check(self) -> None:
        """Raise `UsageError` for what cannot be shaped."""
        if not 1 <= self.nodes <= MOST_NODES:
            raise UsageError(f"a link has 1 to {MOST_NODES} nodes, not {self.nodes}")
        for rate in (self.bandwidth, self.connection, self.line):
            if rate is not None and not _LEAST_BANDWIDTH <= rate < math.inf:
                raise UsageError(f"a rate of {rate:g} bit/s cannot be shaped; ask for at least {_LEAST_BANDWIDTH:g}")
        if not 0 <= self.latency <= _MOST_LATENCY:
            raise UsageError(f"a latency of {self.latency:g} s cannot be made; ask for 0 to {_MOST_LATENCY:g} s")
        for port in (*self.ports, *self.node_ports):
            if port not in _PORTS:
                raise UsageError(f"{port} is no port; ports go from 1 to 65535")


@dataclass(frozen=True, slots=True)
class Counters:
    """What reached a node since `Link.reset`."""

    registry: int
    """Bytes from the registry's side."""
    peers: int
    """Bytes from what other nodes serve."""
    connections: int
    """The most that it had open to the registry at the same time."""


class Side(Protocol):
    """Where a registry can run."""

    def command(self, command: Sequence[str]) -> list[str]:
        """``command`` as it has to be started to run there."""

    def host(self) -> str:
        """The address on which a server there has to listen."""


class Link(Side, Protocol):
    """A registry's side and nodes, numbered from 0, that reach each other over shaped lines."""

    @property
    def how(self) -> str:
        """What shapes it, for a report."""

    @property
    def notes(self) -> Sequence[str]:
        """What it can't do, a sentence each."""

    def command(self, command: Sequence[str], node: int | None = None) -> list[str]:
        """``command`` as it has to be started to run on a node, or on the registry's side."""

    def host(self, node: int | None = None) -> str:
        """The address on which a server there has to listen."""

    def address(self, port: int, node: int = 0, server: int | None = None) -> tuple[str, int]:
        """Where ``node`` finds what listens on ``port`` of the registry's side, or of the node ``server``.

        It is on 127.0.0.0/8, as clients speak plain HTTP there unasked.
        """

    def reset(self) -> None:
        """Count from zero."""

    def counted(self, node: int = 0) -> Counters:
        """What has reached ``node`` since then."""


class _Machine:
    def command(self, command: Sequence[str]) -> list[str]:
        return list(command)

    def host(self) -> str:
        return LOCAL


MACHINE: Final[Side] = _Machine()
"""This machine itself, beside any link."""
