"""The processes of `slimgpu.weights.crew`: each reads what to unpack, line by line, until nobody writes any more."""

from __future__ import annotations

import json
import mmap
import os
import socket
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from slimgpu.weights.buffer import Buffer
from slimgpu.weights.unpack import Piece, unpack

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import BufferedRWPair


def main() -> None:
    """Be one of them, and fork the others."""
    folder, total, chunks, file, size, handles = json.loads(sys.argv[1])
    buffer = Buffer(Path(folder), total, chunks)
    slots = memoryview(mmap.mmap(file, 0, mmap.MAP_SHARED, mmap.PROT_READ))
    _serve(buffer, slots, size, _forked([socket.socket(fileno=handle) for handle in handles]))


def _forked(theirs: Sequence[socket.socket]) -> socket.socket:
    """The socket of this process: there is one for each afterwards, and the other ends see when one is gone."""
    mine = 0
    for number in range(1, len(theirs)):
        if not os.fork():
            mine = number
            break
    for number, each in enumerate(theirs):
        if number != mine:
            each.close()
    return theirs[mine]


def _serve(buffer: Buffer, slots: memoryview, size: int, asked: socket.socket) -> None:
    with asked.makefile("rwb") as pipe:
        _say(pipe, os.getpid())
        for line in pipe:
            slot, planes, pieces = json.loads(line)
            found = [Piece(*piece) for piece in pieces]
            _say(pipe, unpack(found, slots[slot * size :], partial(_fill, buffer), planes=planes))


def _fill(buffer: Buffer, piece: Piece, content: memoryview, state: int) -> None:
    buffer.fill(piece.chunk, piece.places, content, state)


def _say(pipe: BufferedRWPair, answer: object) -> None:
    pipe.write(json.dumps(answer).encode() + b"\n")
    pipe.flush()
