"""Opening a link: in namespaces where the machine permits them, else through a proxy."""

from __future__ import annotations

import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from slimgpu.bench.link.namespace import namespaces
from slimgpu.bench.link.proxied import proxied
from slimgpu.errors import MissingComponentError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.bench.link.values import Link, Shape


@contextmanager
def link(shape: Shape) -> Iterator[Link]:
    """A link of this shape until the block ends; whatever runs on it has to be ended before.

    In namespaces any port is free; the proxy needs ports that are free on the machine (`free_ports`). Raises
    `UsageError` for a shape that cannot be.
    """
    shape.check()
    with ExitStack() as stack:
        opened: Link
        try:
            opened = stack.enter_context(namespaces(shape))
        except MissingComponentError as error:
            opened = stack.enter_context(proxied(shape, str(error)))
        yield opened


def free_ports(count: int) -> tuple[int, ...]:
    """Ports of 127.0.0.1 that nobody listens on."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return tuple(int(probe.getsockname()[1]) for probe in probes)
