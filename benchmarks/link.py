"""A loopback link of a set bandwidth and latency: a network namespace that the kernel shapes, or a proxy without root.

In the namespace both server and client run on its own ``127.0.0.1``, through a token bucket (``tbf``) on ``lo``: no
copy and no hop more than loopback has. This kernel has no ``netem``, so latency comes from a TUN device: what goes *to*
the server's port (requests and acknowledgements, which are small) passes through `hold`, which keeps each packet for a
whole round trip, and what comes back goes straight. TCP sees the true round trip in its handshake, its slow start and
its window.

Loopback's packets have 64 KiB (its MTU), so headers are 0.1 % of what the bucket counts, where Ethernet with an MTU of
1500 spends 5.9 %: the rate set here is one of payload. Without latency both directions share the one bucket; with
latency each has its own. The congestion control is the machine's, as a namespace may not choose another.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_LOOPBACK = "127.0.0.1"
_QUEUE = 64 << 20
"""Bytes that wait in a bucket's queue at most; senders on the same machine are held back before that."""
_LEAST_BURST = 256 << 10
_BURST_SECONDS = 0.001
_CREDIT_SECONDS = 0.002
"""What the proxy may catch up after it slept too long."""
_PIPE = 1 << 20
_PACKET = 65536
_BATCH = 64
_MOST_DELAYED = 1 << 16
"""Pieces that a delay holds before it lets the sender wait."""
_TRIAL_SECONDS = 2
_ANSWERS = 11
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001
_F_SETPIPE_SZ = 1031


@dataclass(frozen=True)
class Link:
    """Where servers and clients of the link run, and how they find each other."""

    how: str
    """What shapes it, for a report."""
    prefix: tuple[str, ...] = ()
    ports: Mapping[int, int] = field(default_factory=dict)

    def command(self, command: Sequence[str]) -> list[str]:
        """``command`` as it has to be started to be on the link; servers and clients both are."""
        return [*self.prefix, *command]

    def address(self, port: int) -> tuple[str, int]:
        """Where a client finds the server that listens on ``port`` of 127.0.0.1."""
        return _LOOPBACK, self.ports.get(port, port)


@contextmanager
def link(bits_per_second: float, latency_seconds: float = 0, ports: Sequence[int] = ()) -> Iterator[Link]:
    """A link whose servers listen on ``ports``: a namespace where the machine permits one, else proxies.

    A namespace's ports are all free, so any will do there; the proxy needs ones that are free on the machine.
    """
    if refusal(latency_seconds):
        with _proxies(bits_per_second, latency_seconds, ports) as proxied:
            yield proxied
    else:
        with namespace(bits_per_second, latency_seconds, ports) as inside:
            yield inside


def refusal(latency_seconds: float = 0) -> str | None:
    """Why no namespace can be shaped here, if so."""
    missing = [tool for tool in ("unshare", "nsenter", "ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} must be installed"
    ports = [1] if latency_seconds else []
    try:
        with namespace(1e9, latency_seconds, ports):
            return None
    except click.ClickException as error:
        return error.message


@contextmanager
def namespace(bits_per_second: float, latency_seconds: float = 0, ports: Sequence[int] = ()) -> Iterator[Link]:
    """A network namespace with nothing but a shaped loopback; raises `click.ClickException` where it is refused.

    Latency is one way, and reaches connections to ``ports``.
    """
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    arguments = [str(bits_per_second), str(latency_seconds), *map(str, ports)]
    with _helper(["unshare", *own, "--net"], "hold", arguments) as (process, _):
        enter = ["nsenter", f"--net=/proc/{process}/ns/net"]
        if own:
            enter = ["nsenter", "--preserve-credentials", f"--user=/proc/{process}/ns/user", *enter[1:]]
        yield Link("tbf on a namespace's loopback" + (", TUN delay" if latency_seconds else ""), (*enter, "--"))


@contextmanager
def shaped(
    host: str, port: int, bits_per_second: float, latency_seconds: float = 0, connection_bits_per_second: float = 0
) -> Iterator[tuple[str, int]]:
    """A proxy on 127.0.0.1 in front of a server that runs already; 0 bits are no limit."""
    arguments = [host, str(port), str(bits_per_second), str(latency_seconds), str(connection_bits_per_second)]
    with _helper([], "proxy", arguments) as (_, said):
        yield _LOOPBACK, int(said)


@contextmanager
def _proxies(bits_per_second: float, latency_seconds: float, ports: Sequence[int]) -> Iterator[Link]:
    """One proxy, so that all ports share one bucket."""
    targets = ",".join(str(port) for port in ports)
    with _helper([], "proxy", [_LOOPBACK, targets, str(bits_per_second), str(latency_seconds), "0"]) as (_, said):
        yield Link("splice proxy", ports=dict(zip(ports, map(int, said.split()), strict=True)))


@contextmanager
def _helper(prefix: Sequence[str], role: str, arguments: Sequence[str]) -> Iterator[tuple[int, str]]:
    """A process of this file in ``role``: its id and the line that it said once ready."""
    command = [*prefix, sys.executable, str(Path(__file__).resolve()), role, *arguments]
    with tempfile.TemporaryFile() as errors:
        # A helper ends when its standard input does, so it can't outlive a killed benchmark.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            said = process.stdout.readline().decode()
            if not said.strip():
                process.wait()
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines()
                raise click.ClickException(lines[-1] if lines else f"{role} ended without a word")
            yield process.pid, said.strip()
        finally:
            process.stdin.close()
            process.kill()
            process.wait()
            process.stdout.close()


def _end_with_parent() -> None:
    """End this process once whoever started it is gone."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _ready(text: object = "ready") -> None:
    print(text, flush=True)


# The namespace


def _shape(device: str, bits_per_second: float) -> None:
    """A token bucket before what ``device`` sends."""
    burst = max(_LEAST_BURST, int(bits_per_second / 8 * _BURST_SECONDS))
    rate = ("rate", f"{bits_per_second:.0f}bit", "burst", str(burst), "limit", str(_QUEUE))
    _network("tc", "qdisc", "add", "dev", device, "root", "tbf", *rate)


def _network(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise click.ClickException(f"{' '.join(command)}: {result.stderr.strip()}")


def _divert(ports: Sequence[int], bits_per_second: float) -> int:
    """A TUN device that gets each packet to ``ports``, and takes it back as if it had come in."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"delay", _IFF_TUN_NO_PI))
    for key, value in (("route_localnet", "1"), ("accept_local", "1"), ("rp_filter", "0")):
        for device in ("all", "delay"):
            Path(f"/proc/sys/net/ipv4/conf/{device}/{key}").write_text(value)
    Path("/proc/sys/net/ipv6/conf/delay/disable_ipv6").write_text("1")
    _network("ip", "link", "set", "delay", "up", "mtu", "65535", "txqueuelen", "10000")
    _shape("delay", bits_per_second)
    _network("tc", "qdisc", "add", "dev", "lo", "clsact")
    redirect = ("action", "mirred", "egress", "redirect", "dev", "delay")
    for port in ports:
        match = ("match", "ip", "protocol", "6", "0xff", "match", "ip", "dport", str(port), "0xffff")
        _network("tc", "filter", "add", "dev", "lo", "egress", "protocol", "ip", "u32", *match, *redirect)
    return tun


def _delay(
    source: int, read: Callable[[], bytes], write: Callable[[bytes], object], seconds: float, first: float
) -> None:
    """Hand on each piece after ``seconds``, none before the clock says ``first``; `read` must not block."""
    waiting: deque[tuple[float, bytes]] = deque()
    ended = False
    while not ended or waiting:
        while waiting and waiting[0][0] <= time.monotonic():
            write(waiting.popleft()[1])
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        if ended or len(waiting) > _MOST_DELAYED:
            time.sleep(pause or 0)
        elif select.select([source], [], [], pause)[0]:
            ended = _take_all(read, waiting, seconds, first)


def _take_all(read: Callable[[], bytes], waiting: deque[tuple[float, bytes]], seconds: float, first: float) -> bool:
    """Queue what has come; tells whether it was the last."""
    for _ in range(_BATCH):
        try:
            piece = read()
        except BlockingIOError:
            return False
        if not piece:
            return True
        waiting.append((max(first, time.monotonic() + seconds), piece))
    return False


# The proxy


class Bucket:
    """Hands out bytes at a rate; several threads may take from one."""

    def __init__(self, bits_per_second: float) -> None:
        self._seconds_each = 8 / bits_per_second if bits_per_second else 0
        due = int(bits_per_second / 8 * _CREDIT_SECONDS) or _PIPE
        self.piece = min(_PIPE, max(_PACKET, due))
        """What to take at most at once, so that a slow link doesn't come in lumps."""
        self._paid_until = time.monotonic()
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Wait until ``count`` bytes more are due."""
        with self._lock:
            now = time.monotonic()
            self._paid_until = max(self._paid_until, now - _CREDIT_SECONDS) + count * self._seconds_each
            pause = self._paid_until - now
        if pause > 0:
            time.sleep(pause)


@dataclass(frozen=True)
class _Limits:
    latency: float
    each: float
    down: Bucket
    up: Bucket


def _relay(client: socket.socket, target: tuple[str, int], limits: _Limits) -> None:
    """Carry one connection until both directions have ended."""
    trip = 2 * limits.latency
    opened = time.monotonic()
    with client, suppress(OSError), socket.create_connection(target) as server:
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        upward = threading.Thread(target=_up, args=(client, server, limits, opened + 2 * trip), daemon=True)
        upward.start()
        _pump(server, client, (limits.down, Bucket(limits.each)))
        upward.join()


def _up(client: socket.socket, server: socket.socket, limits: _Limits, first: float) -> None:
    """Requests: the whole round trip is waited here, as they are small; the first waits for the handshake too."""
    buckets = (limits.up, Bucket(limits.each))
    if not limits.latency:
        _pump(client, server, buckets)
        return

    def write(piece: bytes) -> None:
        for bucket in buckets:
            bucket.take(len(piece))
        server.sendall(piece)

    def read() -> bytes:
        return client.recv(_PACKET, socket.MSG_DONTWAIT)

    with suppress(OSError):
        _delay(client.fileno(), read, write, 2 * limits.latency, first)
    with suppress(OSError):
        server.shutdown(socket.SHUT_WR)


def _pump(source: socket.socket, sink: socket.socket, buckets: Sequence[Bucket]) -> None:
    """Move bytes from one socket to the other through a pipe, without reading them."""
    out, into = os.pipe()
    most = min(bucket.piece for bucket in buckets)
    with suppress(OSError):
        fcntl.fcntl(into, _F_SETPIPE_SZ, _PIPE)
    try:
        while count := os.splice(source.fileno(), into, most):
            for bucket in buckets:
                bucket.take(count)
            while count:
                count -= os.splice(out, sink.fileno(), count)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
    finally:
        os.close(out)
        os.close(into)


def _accept(listener: socket.socket, target: tuple[str, int], limits: _Limits) -> None:
    while True:
        client, _ = listener.accept()
        threading.Thread(target=_relay, args=(client, target, limits), daemon=True).start()


# Its own measurement


def _file(length: int) -> int:
    """A file in memory."""
    descriptor = os.memfd_create("link")
    block = os.urandom(_PIPE)
    for offset in range(0, length, _PIPE):
        os.pwrite(descriptor, block[: length - offset], offset)
    return descriptor


def _send_all(client: socket.socket, descriptor: int) -> None:
    """Answer ``?`` with the whole file, all else with one byte."""
    with client, suppress(OSError):
        if client.recv(1) != b"?":
            client.sendall(b"!")
            return
        length, offset = os.fstat(descriptor).st_size, 0
        while offset < length:
            offset += os.sendfile(client.fileno(), descriptor, offset, length - offset)


def _fetch(address: tuple[str, int]) -> None:
    """Take what a `send` server has."""
    piece = bytearray(_PIPE)
    with socket.create_connection(address) as connection:
        connection.sendall(b"?")
        while connection.recv_into(piece):
            pass


def _answer_seconds(address: tuple[str, int]) -> float:
    """From connecting to the first byte, on an idle link: two round trips and the server's own time."""
    started = time.perf_counter()
    with socket.create_connection(address) as connection:
        connection.sendall(b"-")
        connection.recv(1)
    return time.perf_counter() - started


def _try_out(gigabits: float, latency: float, connections: int, *, proxied: bool) -> None:
    """One line of figures for one link."""
    length = int(gigabits * 1e9 / 8 * _TRIAL_SECONDS) // connections
    port = 5000 if not proxied else _free_port()
    opened = _proxies if proxied else namespace
    script = str(Path(__file__).resolve())
    with opened(gigabits * 1e9, latency, [port]) as to:
        server = subprocess.Popen(to.command([sys.executable, script, "send", str(port), str(length)]), stdout=-1)
        try:
            assert server.stdout is not None
            server.stdout.readline()
            host, at = to.address(port)
            busy = _busy()
            said = subprocess.run(
                to.command([sys.executable, script, "fetch", host, str(at), str(connections)]),
                capture_output=True,
                text=True,
                check=True,
            )
            busy = _busy() - busy
        finally:
            server.kill()
            server.wait()
    seconds, first = map(float, said.stdout.split())
    reached = length * connections * 8 / seconds / 1e9
    print(
        f"{to.how:42} {gigabits:5g} Gbit/s {latency * 1e3:5g} ms {connections:3} connections: "
        f"{reached:6.2f} Gbit/s ({reached / gigabits:4.0%}), first answer after {first * 1e3:6.2f} ms, "
        f"machine busy {busy / seconds:.1f} cores"
    )


def _busy() -> float:
    """Seconds that all cores together have worked."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    user, nice, system, _, _, interrupt, soft = map(int, fields[1:8])
    return (user + nice + system + interrupt + soft) / os.sysconf("SC_CLK_TCK")


def _free_port() -> int:
    with socket.create_server((_LOOPBACK, 0)) as probe:
        return int(probe.getsockname()[1])


# The commands


@click.group()
def main() -> None:
    """Measure what links reach; the other commands are what this file starts itself as."""


@main.command()
@click.option("--gigabits", multiple=True, type=float, default=(1, 10, 25), show_default=True)
@click.option("--latency", multiple=True, type=float, default=(0, 0.0005), show_default=True, help="Seconds, one way.")
@click.option("--connections", multiple=True, type=int, default=(1, 16), show_default=True)
def measure(gigabits: Sequence[float], latency: Sequence[float], connections: Sequence[int]) -> None:
    """Print what each kind of link reaches here."""
    for rate in gigabits:
        for seconds in latency:
            for count in connections:
                for proxied in (False, True):
                    _try_out(rate, seconds, count, proxied=proxied)


@main.command(hidden=True)
@click.argument("rate", type=float)
@click.argument("latency", type=float)
@click.argument("ports", type=int, nargs=-1)
def hold(rate: float, latency: float, ports: Sequence[int]) -> None:
    """Shape this namespace's loopback, and delay what goes to the ports."""
    _end_with_parent()
    _network("ip", "link", "set", "lo", "up")
    _shape("lo", rate)
    tun = _divert(ports, rate) if latency else -1
    _ready()
    if latency:
        _delay(tun, lambda: os.read(tun, _PACKET), lambda packet: os.write(tun, packet), 2 * latency, 0)
    threading.Event().wait()


@main.command(hidden=True)
@click.argument("host")
@click.argument("ports")
@click.argument("rate", type=float)
@click.argument("latency", type=float)
@click.argument("each", type=float)
def proxy(host: str, ports: str, rate: float, latency: float, each: float) -> None:
    """Listen on a free port for each of the ports."""
    _end_with_parent()
    limits = _Limits(latency, each, Bucket(rate), Bucket(rate))
    listeners = [socket.create_server((_LOOPBACK, 0), backlog=128) for _ in ports.split(",")]
    for listener, port in zip(listeners, ports.split(","), strict=True):
        threading.Thread(target=_accept, args=(listener, (host, int(port)), limits), daemon=True).start()
    _ready(" ".join(str(listener.getsockname()[1]) for listener in listeners))
    threading.Event().wait()


@main.command(hidden=True)
@click.argument("port", type=int)
@click.argument("length", type=int)
def send(port: int, length: int) -> None:
    """Serve the same bytes to everyone."""
    descriptor = _file(length)
    with socket.create_server((_LOOPBACK, port), backlog=128) as listener:
        _ready()
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_send_all, args=(client, descriptor), daemon=True).start()


@main.command(hidden=True)
@click.argument("host")
@click.argument("port", type=int)
@click.argument("connections", type=int)
def fetch(host: str, port: int, connections: int) -> None:
    """Take the bytes over several connections; says the seconds, and the median ones to an answer on the idle link."""
    first = median(_answer_seconds((host, port)) for _ in range(_ANSWERS))
    threads = [threading.Thread(target=_fetch, args=((host, port),)) for _ in range(connections)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _ready(f"{time.perf_counter() - started} {first}")


if __name__ == "__main__":
    main()
