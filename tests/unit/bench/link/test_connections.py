"""Connections to one address, as the kernel's table has them."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from slimgpu.bench.link.connections import Connections


def test_only_connections_to_the_address_count() -> None:
    table = Connections("127.7.7.7")
    assert table.most() == 0
    with ExitStack() as opened:
        wanted, other = (opened.enter_context(socket.create_server((f"127.7.7.{last}", 0))) for last in (7, 8))
        opened.enter_context(socket.create_connection(other.getsockname()))
        with socket.create_connection(wanted.getsockname()), socket.create_connection(wanted.getsockname()):
            assert table.most() == 2
        assert table.most() == 2
        table.reset()
        assert table.most() == 0
