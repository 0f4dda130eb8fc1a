"""Helpers: what they say, how they fail, and that they end with their owner, however that ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from slimgpu.bench.link.helper import helper
from slimgpu.bench.link.keep import keep_arguments
from slimgpu.errors import MissingComponentError
from tests.support.processes import free_port, is_running, started, wait_until_gone

if TYPE_CHECKING:
    from pathlib import Path

_OWNER = """
import json, signal, sys, time
from slimgpu.bench.link.helper import helper
from slimgpu.bench.link.keep import keep_arguments
signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts tests may ignore it
server = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", sys.argv[1]]
with helper("a server", keep_arguments("127.0.0.1", int(sys.argv[1]), server)) as kept:
    print(json.dumps([kept.pid, kept.said]), flush=True)
    time.sleep(600)
"""


def test_a_server_is_kept_as_long_as_the_block_lasts(tmp_path: Path) -> None:
    port = free_port()
    server = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "-d", str(tmp_path), str(port)]
    with helper("a server", keep_arguments("127.0.0.1", port, server)) as kept:
        assert is_running(kept.said)
        socket.create_connection(("127.0.0.1", port)).close()
    wait_until_gone(kept.pid, kept.said)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_outlives_its_owner(how: signal.Signals) -> None:
    with started(sys.executable, "-c", _OWNER, str(free_port())) as (owner, line):
        processes = json.loads(line)
        assert all(is_running(process) for process in processes)
        owner.send_signal(how)
        owner.wait()
    wait_until_gone(*processes)


def test_a_server_that_ends_says_why() -> None:
    broken = [sys.executable, "-c", "import sys; sys.exit('the disk is full')"]
    with (
        pytest.raises(MissingComponentError, match=r"^a server ended: the disk is full$"),
        helper("a server", keep_arguments("127.0.0.1", free_port(), broken)),
    ):
        pass


def test_a_program_that_is_missing_is_named() -> None:
    with (
        pytest.raises(MissingComponentError, match=r"^a server ended: .*no-such-program"),
        helper("a server", keep_arguments("127.0.0.1", free_port(), ["no-such-program"])),
    ):
        pass


def test_a_helper_that_was_killed_is_told_when_it_is_asked() -> None:
    port = free_port()
    with helper("the trial's server", ["send", "127.0.0.1", str(port)]) as sender:
        assert sender.ask("anything") == "anything"
        os.kill(sender.pid, signal.SIGKILL)
        wait_until_gone(sender.pid)
        with pytest.raises(MissingComponentError, match=r"^the trial's server ended: it said nothing$"):
            sender.ask("again")


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(MissingComponentError, match="Address already in use"),
            helper("the trial's server", ["send", "127.0.0.1", str(port)]),
        ):
            pass
