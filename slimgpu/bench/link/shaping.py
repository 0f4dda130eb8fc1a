"""The kernel's queues at both ends of a line.

What a side sends goes through a token bucket (``tbf``) at its end; what a node gets, through classes (``htb``) at the
switch's end: one for the registry and one for other nodes' servers, which borrow from each other and count apart.

Packets have 64 KiB, the most there is, so their headers are 0.1 %, which is added to the rates: they are payload's.
What Ethernet with its packets of 1500 bytes would spend (5.9 %) is not simulated. The congestion
control is the machine's.

Sources: https://man7.org/linux/man-pages/man8/tc-tbf.8.html, tc-htb.8.html, tc-u32.8.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slimgpu.bench.link.addresses import REGISTRY
from slimgpu.bench.link.netns import network_tool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MTU: Final = 65535
FROM_REGISTRY: Final = "1:10"
FROM_NODES: Final = "1:20"
_ALL: Final = "1:1"
_OTHER: Final = "1:30"
_HEADERS: Final = 20 + 32 + 14
"""Of IP, TCP with its time stamp, and the line."""
_OVERHEAD: Final = (MTU + 14) / (MTU + 14 - _HEADERS)
_QUEUE: Final = 64 << 20
"""Bytes that wait in a sender's queue at most; senders on the same machine are held back before that."""
_LEAST_SWITCH_QUEUE: Final = 1 << 20
_SWITCH_SECONDS: Final = 0.004
"""What waits in the switch at most, before packets are lost as in real ones."""
_LEAST_BURST: Final = 256 << 10
_BURST_SECONDS: Final = 0.001
_UNLIMITED: Final = 1e12
_QUANTUM: Final = 128 << 10


def limit_sending(device: str, bits_per_second: float) -> None:
    """A token bucket before what ``device`` sends."""
    rate = bits_per_second * _OVERHEAD
    shape = ("rate", f"{rate:.0f}bit", "burst", str(_burst(rate)), "limit", str(_QUEUE))
    network_tool("tc", "qdisc", "add", "dev", device, "root", "tbf", *shape)


def sort_arrivals(device: str, bits_per_second: float | None, node_ports: Sequence[int]) -> None:
    """Classes for what goes through the switch's ``device`` to a node, at a rate for all of them together."""
    at = ("dev", device)
    rate = _UNLIMITED if bits_per_second is None else bits_per_second * _OVERHEAD
    network_tool("tc", "qdisc", "add", *at, "root", "handle", "1:", "htb", "default", _OTHER.partition(":")[2])
    _add_class(device, "1:", _ALL, rate)
    for name in (FROM_REGISTRY, FROM_NODES, _OTHER):
        _add_class(device, _ALL, name, rate)
        waiting = max(_LEAST_SWITCH_QUEUE, int(rate / 8 * _SWITCH_SECONDS))
        network_tool("tc", "qdisc", "add", *at, "parent", name, "bfifo", "limit", str(waiting))
    _choose(device, ("match", "ip", "src", f"{REGISTRY}/32"), FROM_REGISTRY, 1)
    for port in node_ports:
        _choose(device, _tcp("sport", port), FROM_NODES, 2)


def _add_class(device: str, parent: str, name: str, rate: float) -> None:
    burst = str(_burst(rate))
    speed = ("rate", f"{rate:.0f}bit", "ceil", f"{rate:.0f}bit", "burst", burst, "cburst", burst)
    place = ("dev", device, "parent", parent, "classid", name)
    network_tool("tc", "class", "add", *place, "htb", *speed, "quantum", str(_QUANTUM))


def _choose(device: str, match: Sequence[str], name: str, order: int) -> None:
    place = ("dev", device, "parent", "1:", "protocol", "ip", "prio", str(order))
    network_tool("tc", "filter", "add", *place, "u32", *match, "flowid", name)


def _burst(rate: float) -> int:
    return max(_LEAST_BURST, int(rate / 8 * _BURST_SECONDS))


def divert(device: str, ports: Sequence[int], to: str) -> None:
    """Lead what comes for ``ports`` through the device ``to`` first."""
    network_tool("tc", "qdisc", "add", "dev", device, "clsact")
    redirect = ("action", "mirred", "egress", "redirect", "dev", to)
    for port in ports:
        chosen = ("ingress", "protocol", "ip", "u32", *_tcp("dport", port))
        network_tool("tc", "filter", "add", "dev", device, *chosen, *redirect)


def _tcp(field: str, port: int) -> tuple[str, ...]:
    return ("match", "ip", "protocol", "6", "0xff", "match", "ip", field, str(port), "0xffff")


def arrived(device: str) -> dict[str, int]:
    """Bytes that have gone through each class of `sort_arrivals`."""
    return dict(_sent(network_tool("tc", "-s", "class", "show", "dev", device)))


def _sent(said: str) -> Iterator[tuple[str, int]]:
    name = ""
    for line in said.splitlines():
        words = line.split()
        if words[:2] == ["class", "htb"]:
            name = words[2]
        elif words[:1] == ["Sent"]:
            yield name, int(words[1])
