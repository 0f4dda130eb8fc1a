"""A link of network namespaces: the registry's side and each node have one, with a line to a switch.

They end with the process that made them (`slimgpu.bench.link.network`), once nothing runs in them any more.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from slimgpu.bench.link.addresses import LOCAL, REGISTRY, node_address
from slimgpu.bench.link.helper import Helper, helper
from slimgpu.bench.link.netns import find_tool
from slimgpu.bench.link.proxy import Route, proxy_arguments
from slimgpu.bench.link.values import Counters, Shape
from slimgpu.errors import MissingComponentError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TOOLS: Final = {"ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}


@dataclass(frozen=True, slots=True)
class _Namespaces:
    """See `slimgpu.bench.link.values.Link`."""

    helper: Helper
    shape: Shape
    own_users: bool
    how: str
    notes: tuple[str, ...] = ()

    def command(self, command: Sequence[str], node: int | None = None) -> list[str]:
        holder = f"/proc/{self.helper.pid}"
        place = self.helper.said["registry" if node is None else "nodes"]
        enter = ["nsenter", f"--net={holder}/fd/{place if node is None else place[node]}"]
        users = ["--preserve-credentials", f"--user={holder}/ns/user"] if self.own_users else []
        return [*enter, *users, "--", *command]

    def host(self, node: int | None = None) -> str:
        if node is not None:
            return node_address(node)
        return LOCAL if self.shape.connection else REGISTRY

    def address(self, port: int, node: int = 0, server: int | None = None) -> tuple[str, int]:
        del node
        return (REGISTRY if server is None else node_address(server)), port

    def reset(self) -> None:
        self.helper.ask("reset")

    def counted(self, node: int = 0) -> Counters:
        return Counters(*self.helper.ask("counted")[node])


@contextmanager
def namespaces(shape: Shape) -> Iterator[_Namespaces]:
    """A link that the kernel shapes; raises `MissingComponentError` where the machine refuses it.

    Root makes the namespaces directly; anyone else in a user namespace, in which commands then seem to run as root.
    """
    missing = sorted({package for tool, package in _TOOLS.items() if find_tool(tool) is None})
    if missing:
        raise MissingComponentError(f"namespaces take {' and '.join(missing)}, which must be installed")
    own_users = os.geteuid() != 0
    prefix = ["unshare", "--user", "--map-root-user"] if own_users else []
    how = "network namespaces shaped by the kernel" + (", a TUN device for latency" if shape.latency else "")
    if shape.connection:
        how += ", a proxy that paces connections"
    with ExitStack() as stack:
        network = stack.enter_context(helper("the link's network", ["network", json.dumps(asdict(shape))], prefix))
        found = _Namespaces(network, shape, own_users, how)
        if shape.connection:
            routes = [Route((REGISTRY, port), (LOCAL, port)) for port in shape.ports]
            arguments = proxy_arguments(routes, (), 0.0, shape.connection)
            stack.enter_context(helper("the link's proxy", arguments, found.command([])))
        yield found
