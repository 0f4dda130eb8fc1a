"""Bytes from socket to socket, counted and in order."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from slimgpu.bench.link.pump import Bucket, Tally, pump, pump_late

DATA = os.urandom(300_000)


def carried(data: bytes, *buckets: Bucket, tally: Tally | None = None) -> bytes:
    """What comes out when ``data`` goes in."""
    (source, inside), (outside, sink) = socket.socketpair(), socket.socketpair()
    with source, inside, outside, sink:
        thread = threading.Thread(target=pump, args=(inside, outside, buckets, tally))
        thread.start()
        writer = threading.Thread(target=lambda: (source.sendall(data), source.shutdown(socket.SHUT_WR)))
        writer.start()
        found = b"".join(iter(lambda: sink.recv(1 << 16), b""))
        writer.join()
        thread.join()
        return found


def test_all_bytes_come_in_order_and_are_counted() -> None:
    tally = Tally()
    assert carried(DATA, tally=tally) == DATA
    assert carried(DATA, Bucket(1e9), Bucket(2e9), tally=tally) == DATA
    assert tally.count == 2 * len(DATA)


def test_a_side_that_goes_away_ends_the_other() -> None:
    (source, inside), (outside, sink) = socket.socketpair(), socket.socketpair()
    with source, inside, outside:
        sink.close()
        source.sendall(b"x")
        pump(inside, outside)
        assert source.recv(1) == b""


def test_requests_come_late_but_whole() -> None:
    (client, inside), (outside, server) = socket.socketpair(), socket.socketpair()
    with client, inside, outside, server:
        thread = threading.Thread(target=pump_late, args=(inside, outside, 0.01))
        thread.start()
        client.sendall(b"one")
        client.sendall(b"two")
        client.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: server.recv(16), b"")) == b"onetwo"
        thread.join()


def test_a_bucket_holds_back(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("slimgpu.bench.link.pump.time.sleep", slept.append)
    monkeypatch.setattr("slimgpu.bench.link.pump.time.monotonic", lambda: 100.0)
    bucket = Bucket(8e6)
    bucket.take(500_000)
    bucket.take(500_000)
    assert slept == pytest.approx([0.5, 1.0])


def test_a_bucket_of_a_beginning_lets_the_rest_through(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("slimgpu.bench.link.pump.time.sleep", slept.append)
    monkeypatch.setattr("slimgpu.bench.link.pump.time.monotonic", lambda: 100.0)
    bucket = Bucket(8e6, 600_000)
    for _ in range(4):
        bucket.take(500_000)
    assert slept == pytest.approx([0.5, 1.0])


def test_a_bucket_that_was_idle_saves_nothing_but_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    now = [100.0]
    monkeypatch.setattr("slimgpu.bench.link.pump.time.sleep", slept.append)
    monkeypatch.setattr("slimgpu.bench.link.pump.time.monotonic", lambda: now[0])
    bucket = Bucket(8e6)
    now[0] = 200.0
    bucket.take(500_000)
    assert slept == pytest.approx([0.498])


def test_a_slow_bucket_takes_small_pieces() -> None:
    assert [Bucket(rate).piece for rate in (1e6, 1e9, 1e12)] == [1 << 16, 250_000, 1 << 20]


def test_the_most_connections_are_told() -> None:
    tally = Tally()
    with tally.open(), tally.open():
        pass
    with tally.open():
        assert tally.most == 2
        tally.reset()
        assert tally.most == 1
    tally.reset()
    assert tally.most == 0
