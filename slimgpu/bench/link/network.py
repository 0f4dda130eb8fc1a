"""The helper that makes a link's namespaces, joins them by a switch, shapes their lines, and counts.

The registry's side and each node have a namespace with a line (``veth``) to a bridge, which has one, too. This process
holds them all; it is in the bridge's.
"""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slimgpu.bench.link import delay
from slimgpu.bench.link.addresses import LOCAL_NETWORK, NETWORK_BITS, REGISTRY, node_address
from slimgpu.bench.link.connections import Connections, watch
from slimgpu.bench.link.helper import say, serve
from slimgpu.bench.link.netns import Namespace, network_tool
from slimgpu.bench.link.shaping import FROM_NODES, FROM_REGISTRY, MTU, arrived, divert, limit_sending, sort_arrivals
from slimgpu.bench.link.values import Shape

if TYPE_CHECKING:
    from collections.abc import Sequence

_LINE: Final = "line"
"""A side's end of its line; the switch's end has the side's name."""
_SETTINGS: Final = Path("/proc/sys/net")
_TABLE_SIZE: Final = "4096"
"""Of each namespace's own table of connections; the machine's takes long to read."""


def run(argument: str) -> None:
    """Be the network of a `Shape` in JSON; says where the namespaces are among this process's open files."""
    network = _Network(Shape(**json.loads(argument)))
    say({"registry": network.registry.handle, "nodes": [node.handle for node in network.nodes]})
    threading.Thread(target=watch, args=(network.tables,), daemon=True).start()
    serve(network.answer)


class _Network:
    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._switch = Namespace.entered()
        with suppress(OSError):  # of kernels before 6.1
            (_SETTINGS / "ipv4/tcp_child_ehash_entries").write_text(_TABLE_SIZE)
        network_tool("ip", "link", "add", "name", "switch", "mtu", str(MTU), "type", "bridge")
        network_tool("ip", "link", "set", "dev", "switch", "up")
        self.registry = self._join("registry", REGISTRY, shape.bandwidth, shape.ports)
        self.nodes = [
            self._join(_name(node), node_address(node), shape.line, shape.node_ports) for node in range(shape.nodes)
        ]
        self.tables = [self._table(node) for node in self.nodes]
        for node in range(shape.nodes):
            sort_arrivals(_name(node), shape.line, shape.node_ports)
        self._start = [(0, 0)] * shape.nodes

    def _join(self, name: str, address: str, rate: float | None, ports: Sequence[int]) -> Namespace:
        """A side of its own at the switch."""
        made = Namespace.entered()
        with self._switch.inside():
            other_end = ("peer", "name", _LINE, "mtu", str(MTU), "netns", made.path)
            network_tool("ip", "link", "add", "name", name, "mtu", str(MTU), "type", "veth", *other_end)
            network_tool("ip", "link", "set", "dev", name, "master", "switch", "up")
        _lead_loopback_addresses_out()
        network_tool("ip", "address", "add", f"{address}/{NETWORK_BITS}", "dev", _LINE, "scope", "global")
        network_tool("ip", "link", "set", "dev", _LINE, "multicast", "off", "up")
        if rate is not None:
            limit_sending(_LINE, rate)
        if self._shape.latency and ports:
            _delay(ports, 2 * self._shape.latency)
        self._switch.enter()
        return made

    @staticmethod
    def _table(node: Namespace) -> Connections:
        with node.inside():
            return Connections(REGISTRY)

    def answer(self, question: str) -> list[tuple[int, int, int]]:
        """Bytes from the registry and from nodes, and connections, of each node; from zero if ``reset`` is asked."""
        now = [self._arrived(node) for node in range(self._shape.nodes)]
        if question == "reset":
            self._start = now
            for table in self.tables:
                table.reset()
        rows = zip(now, self._start, self.tables, strict=True)
        return [(here[0] - then[0], here[1] - then[1], table.most()) for here, then, table in rows]

    @staticmethod
    def _arrived(node: int) -> tuple[int, int]:
        found = arrived(_name(node))
        return found[FROM_REGISTRY], found[FROM_NODES]


def _name(node: int) -> str:
    return f"node{node}"


def _lead_loopback_addresses_out() -> None:
    """Let 127.0.0.0/8 reach beyond this namespace, but for the part that stays its own."""
    network_tool("ip", "link", "set", "dev", "lo", "up")
    for device in ("all", "default", _LINE):
        for key, value in (("route_localnet", "1"), ("rp_filter", "0")):
            (_SETTINGS / f"ipv4/conf/{device}/{key}").write_text(value)
    _without_ipv6(_LINE)
    network_tool("ip", "route", "add", "local", LOCAL_NETWORK, "dev", "lo", "table", "local")
    network_tool("ip", "route", "del", "local", "127.0.0.0/8", "dev", "lo", "table", "local")


def _delay(ports: Sequence[int], seconds: float) -> None:
    """Hold all that comes to ``ports`` of this namespace."""
    tun = delay.open_tun("delay")
    _without_ipv6("delay")
    network_tool("ip", "link", "set", "dev", "delay", "up", "mtu", str(MTU), "txqueuelen", "10000")
    divert(_LINE, ports, "delay")
    threading.Thread(target=delay.hold_packets, args=(tun, seconds), daemon=True).start()


def _without_ipv6(device: str) -> None:
    """It would send packets of its own accord; a kernel may have none."""
    with suppress(FileNotFoundError):
        (_SETTINGS / f"ipv6/conf/{device}/disable_ipv6").write_text("1")
