"""What is held for a while comes out whole and in order."""

from __future__ import annotations

import os
import threading
import time

import pytest

from slimgpu.bench.link.delay import hold


@pytest.fixture
def pipe() -> tuple[int, int]:
    out, into = os.pipe()
    os.set_blocking(out, False)
    return out, into


def test_pieces_are_held_and_keep_their_order(pipe: tuple[int, int]) -> None:
    out, into = pipe
    came: list[tuple[float, bytes]] = []
    thread = threading.Thread(
        target=hold, args=(out, lambda: os.read(out, 4), lambda piece: came.append((time.monotonic(), piece)), 0.05)
    )
    thread.start()
    sent = []
    for number in range(5):
        sent.append(time.monotonic())
        os.write(into, f"{number:04}".encode())
    os.close(into)
    thread.join()
    os.close(out)
    assert b"".join(piece for _, piece in came) == b"00000001000200030004"
    assert all(at - before >= 0.05 for (at, _), before in zip(came, sent, strict=False))


def test_nothing_comes_before_the_first_moment(pipe: tuple[int, int]) -> None:
    out, into = pipe
    os.write(into, b"data")
    os.close(into)
    came: list[float] = []
    first = time.monotonic() + 0.1
    hold(out, lambda: os.read(out, 4), lambda _: came.append(time.monotonic()), 0, first)
    os.close(out)
    assert len(came) == 1
    assert came[0] >= first
