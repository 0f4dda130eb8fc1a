"""Links as the kernel makes them, and as a proxy does: what goes over them, what is counted, what is left behind."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slimgpu.bench.link.helper import helper
from slimgpu.bench.link.link import free_ports, link
from slimgpu.bench.link.measure import measure
from slimgpu.bench.link.proxied import proxied
from slimgpu.bench.link.values import Shape
from slimgpu.bench.registry import debian_registry, layout_registry
from slimgpu.store.cache import Cache
from tests.support.images import hello_image
from tests.support.processes import is_running, run, started, wait_until_gone
from tests.support.store import put

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from slimgpu.bench.link.values import Link

    Opening = Callable[[Shape], AbstractContextManager[Link]]

SIZE = 4 << 20
MOST_HEADERS = 64 << 10
"""Of a transfer of `SIZE`, with its questions."""
REGISTRY, NODES = free_ports(2)
_CONNECT = """
import socket, sys
held = [socket.create_connection((sys.argv[1], int(sys.argv[2]))) for _ in range(int(sys.argv[3]))]
print("open", flush=True)
sys.stdin.read()
"""
_OWNER = """
import json, signal, subprocess, sys, time
from pathlib import Path
from slimgpu.bench.link.link import link
from slimgpu.bench.link.values import Shape
from slimgpu.bench.registry import layout_registry
signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts tests may ignore it
shape = Shape(1e9, (5000,), 0.001, 1e8, nodes=2)
with link(shape) as on, layout_registry(on, 5000, {"test": Path(sys.argv[1])}):
    where = [on.command(["readlink", "/proc/self/ns/net"], node) for node in (None, 0, 1)]
    print(json.dumps([subprocess.check_output(each, text=True).strip() for each in where]), flush=True)
    time.sleep(600)
"""
_AS_USER = """
from slimgpu.bench.link.link import link
from slimgpu.bench.link.measure import measure
from slimgpu.bench.link.values import Shape
shape = Shape(1e9, (5000,), connection=1e9)
with link(shape) as on:
    reached = measure(on, shape, 2, 1 << 20)
    print(on.how, on.counted().registry >= 1 << 20, sep=";")
"""


@contextmanager
def _proxied(shape: Shape) -> Iterator[Link]:
    with proxied(shape, "it is asked for") as opened:
        yield opened


@pytest.fixture(params=[link, _proxied], ids=["namespaces", "proxy"])
def opening(request: pytest.FixtureRequest) -> Opening:
    """Both kinds of link."""
    found: Opening = request.param
    return found


def between(on: Link, server: int, client: int, size: int = SIZE) -> float:
    """Let one node take bytes of another's; bit/s."""
    host, port = on.address(NODES, client, server)
    with (
        helper("the server", ["send", on.host(server), str(NODES)], on.command([], server)),
        helper("the client", ["fetch", host, str(port), "2", str(size // 2)], on.command([], client)) as taken,
    ):
        assert taken.said["bytes"] == size
        return size * 8 / float(taken.said["seconds"])


@contextmanager
def connected(on: Link, node: int, count: int) -> Iterator[None]:
    host, port = on.address(REGISTRY, node)
    command = on.command([sys.executable, "-c", _CONNECT, host, str(port), str(count)], node)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield
        process.communicate()


def test_the_kernel_shapes_links_here() -> None:
    with link(Shape(1e9, (REGISTRY,), 0.001, 1e8)) as on:
        assert on.how.startswith("network namespaces shaped by the kernel")
        assert on.notes == ()


def test_bytes_count_for_the_node_that_they_reach(opening: Opening) -> None:
    shape = Shape(None, (REGISTRY,), nodes=3, node_ports=(NODES,))
    with opening(shape) as on:
        measure(on, shape, 4, SIZE)
        counts = [on.counted(node) for node in range(3)]
        assert SIZE <= counts[0].registry < SIZE + MOST_HEADERS
        assert [each.peers for each in counts] == [0, 0, 0]
        assert [each.registry for each in counts[1:]] == [0, 0]
        on.reset()
        between(on, server=0, client=2)
        counts = [on.counted(node) for node in range(3)]
        assert [each.registry for each in counts] == [0, 0, 0]
        assert SIZE <= counts[2].peers < SIZE + MOST_HEADERS
        assert [each.peers for each in counts[:2]] == [0, 0]
        on.reset()
        assert on.counted(2).peers == 0


def test_open_connections_to_the_registry_count(opening: Opening) -> None:
    with (
        opening(Shape(None, (REGISTRY,), nodes=2)) as on,
        helper("the server", ["send", on.host(), str(REGISTRY)], on.command([])),
    ):
        with connected(on, 0, 5), connected(on, 1, 2):
            wait_for(lambda: [on.counted(node).connections for node in (0, 1)] == [5, 2])
        with connected(on, 0, 1):
            assert [on.counted(node).connections for node in (0, 1)] == [5, 2]
        wait_for(lambda: (on.reset(), on.counted(0).connections)[1] == 0)


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():  # the suite's own limit ends it
        pass


def test_a_limit_is_kept(opening: Opening) -> None:
    free, narrow = Shape(None, (REGISTRY,)), Shape(2e7, (REGISTRY,))
    with opening(free) as on:
        fast = measure(on, free, 4, SIZE)
    with opening(narrow) as on:
        slow = measure(on, narrow, 4, SIZE)
    assert slow.bandwidth < 2e7 * 1.1 < fast.bandwidth
    assert (slow.expected, fast.expected) == (2e7, None)


def test_all_nodes_share_the_registry_s_bandwidth(opening: Opening) -> None:
    with (
        opening(Shape(2e7, (REGISTRY,), nodes=2)) as on,
        helper("the server", ["send", on.host(), str(REGISTRY)], on.command([])),
        ThreadPoolExecutor(2) as threads,
    ):

        def take(node: int) -> int:
            host, port = on.address(REGISTRY, node)
            with helper("the client", ["fetch", host, str(port), "1", str(SIZE)], on.command([], node)) as taken:
                return int(taken.said["bytes"])

        began = time.monotonic()
        size = sum(threads.map(take, range(2)))
        assert size * 8 / (time.monotonic() - began) < 2e7 * 1.1
        assert size == 2 * SIZE


def test_nodes_do_not_take_of_the_registry_s_bandwidth(opening: Opening) -> None:
    with opening(Shape(1e6, (REGISTRY,), nodes=2, node_bandwidth=math.inf, node_ports=(NODES,))) as on:
        assert between(on, server=0, client=1) > 1e6 * 1.1


def test_a_node_s_own_line_is_a_limit_both_ways(opening: Opening) -> None:
    shape = Shape(None, (REGISTRY,), nodes=2, node_bandwidth=2e7, node_ports=(NODES,))
    with opening(shape) as on:
        assert measure(on, shape, 4, SIZE).bandwidth < 2e7 * 1.1
        assert between(on, server=1, client=0) < 2e7 * 1.1


def test_each_connection_has_its_own_limit(opening: Opening) -> None:
    shape = Shape(None, (REGISTRY,), connection=1e7)
    with opening(shape) as on:
        one, four = measure(on, shape, 1, SIZE // 2), measure(on, shape, 4, SIZE)
    assert one.bandwidth < 1e7 * 1.1 < four.bandwidth < 4e7 * 1.1
    assert four.expected == 4e7


def test_latency_is_added_to_every_trip(opening: Opening) -> None:
    shape = Shape(None, (REGISTRY,), 0.02, nodes=2, node_ports=(NODES,))
    with opening(shape) as on:
        assert measure(on, shape, 1, SIZE).answer >= 4 * 0.02
        host, port = on.address(NODES, 0, 1)
        with (
            helper("the server", ["send", on.host(1), str(NODES)], on.command([], 1)),
            helper("the client", ["fetch", host, str(port), "1", "0"], on.command([], 0)) as taken,
        ):
            assert taken.said["answer"] >= 4 * 0.02


@pytest.mark.parametrize("connection", [None, 1e9])
def test_registries_serve_over_a_link(opening: Opening, tmp_path: Path, connection: float | None) -> None:
    layout = tmp_path / "layout"
    put(hello_image(), f"oci:{layout}:v1", Cache(tmp_path / "cache"))
    shape = Shape(1e9, (REGISTRY, NODES), 0.001, connection)
    with (
        opening(shape) as on,
        layout_registry(on, REGISTRY, {"before": layout}),
        debian_registry(on, NODES, tmp_path / "storage"),
    ):
        source, target = ("docker://{}:{}/before:v1".format(*on.address(port)) for port in shape.ports)
        plain = ("--src-tls-verify=false", "--dest-tls-verify=false")
        run(*on.command(["skopeo", "copy", "--insecure-policy", *plain, source, target], 0))
        again = f"oci:{tmp_path}/again:v1"
        run(*on.command(["skopeo", "copy", "--insecure-policy", plain[0], target, again], 0))
        stored = sum(layer.descriptor.size for layer in hello_image().layers)
        assert on.counted(0).registry > 2 * stored
    names = {path.name for path in (layout / "blobs/sha256").iterdir()}
    assert {path.name for path in (tmp_path / "again/blobs/sha256").iterdir()} == names


def test_a_link_of_sixteen_nodes() -> None:
    shape = Shape(None, (REGISTRY,), nodes=16, node_ports=(NODES,))
    with link(shape) as on:
        between(on, server=15, client=14)
        assert on.counted(14).peers >= SIZE
        assert sum(on.counted(node).peers for node in range(14)) == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_when_the_owner_ends(tmp_path: Path, how: signal.Signals) -> None:
    put(hello_image(), f"oci:{tmp_path}/layout:v1", Cache(tmp_path / "cache"))
    with started(sys.executable, "-c", _OWNER, tmp_path / "layout") as (owner, line):
        namespaces = set(json.loads(line))
        assert len(namespaces) == 3
        inside = [process for process in processes() if namespace(process) in namespaces]
        helpers = [process for process in processes() if parent(process) == owner.pid]
        assert len(inside) == 2, "the proxy and the registry"
        assert len(helpers) == 3, "and the network, which is in the switch"
        owner.send_signal(how)
        owner.wait()
    wait_until_gone(*helpers)
    assert [process for process in processes() if namespace(process) in namespaces] == []


def processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and is_running(int(path.name))]


def namespace(process: int) -> str:
    try:
        return str(Path(f"/proc/{process}/ns/net").readlink())
    except OSError:  # it has ended, or is none of ours
        return ""


def parent(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def test_a_user_has_namespaces_of_its_own() -> None:
    """A user namespace in which this process is not root stands for a user."""
    said = run("unshare", "--user", "--map-user=1000", "--map-group=1000", sys.executable, "-c", _AS_USER)
    assert said == "network namespaces shaped by the kernel, a proxy that paces connections;True\n"


def test_without_its_tools_a_link_is_proxied_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    shape = Shape(None, (REGISTRY,))
    with link(shape) as on:
        assert on.how == "splice proxy"
        assert on.notes[0] == "a proxy shapes the link, as namespaces take util-linux, which must be installed"
        measure(on, shape, 1, SIZE)
        assert on.counted().registry == SIZE + 11, "and an answer of a byte eleven times"
