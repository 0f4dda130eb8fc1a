"""Processes of nodes, on a link: told what to do, started at one moment, asked for what came of it."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Final

from pydantic import ValidationError

from slimgpu.bench.node import ORDERS, READY, REPORTS
from slimgpu.errors import SlimgpuError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.bench.link.values import Link
    from slimgpu.bench.order import Order, Report

_STARTS_WITHIN: Final = 60.0
_ENDS_WITHIN: Final = 60.0
_PRIVATE: Final = ("unshare", "--mount", "--propagation", "private", "--")
"""What a node mounts goes with it, however it ends."""


class NodeProcess:
    """A node that has its order."""

    def __init__(self, process: subprocess.Popen[bytes], order: Order) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._input: IO[bytes] = process.stdin
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._limit = 2 * order.wanted.timeout + _ENDS_WITHIN
        threading.Thread(target=self._read, args=(process.stdout,), daemon=True).start()
        self._tell(ORDERS.dump_json(order))
        if self._line(_STARTS_WITHIN).strip() != READY.encode():
            raise SlimgpuError("a node of the benchmark did not start; the reason is above")

    def _read(self, stream: IO[bytes]) -> None:
        with suppress(OSError, ValueError):
            for line in stream:
                self._lines.put(line)
        self._lines.put(b"")

    def _tell(self, line: bytes) -> None:
        with suppress(BrokenPipeError):  # what it says, or that it says nothing, tells why
            self._input.write(line + b"\n")
            self._input.flush()

    def _line(self, seconds: float) -> bytes:
        try:
            return self._lines.get(timeout=seconds)
        except queue.Empty:
            return b""

    def go(self) -> None:
        """Begin now."""
        self._tell(b"")

    def report(self) -> Report:
        """What came of it, once it is over; `SlimgpuError` when the node broke down."""
        try:
            return REPORTS.validate_json(self._line(self._limit))
        except ValidationError as error:
            raise SlimgpuError("a node of the benchmark ended without a report; the reason is above") from error


@contextmanager
def running_node(order: Order, link: Link) -> Iterator[NodeProcess]:
    """A node that waits for `NodeProcess.go`; when the block ends so does the node, and all that it made goes."""
    prefix = _PRIVATE if os.geteuid() == 0 else ()
    process = subprocess.Popen(  # noqa: S603 - ourselves
        link.command([*prefix, sys.executable, "-m", "slimgpu.bench.node"], order.node),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,  # Ctrl-C is for us, who then end it
    )
    with process:
        try:
            yield NodeProcess(process, order)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(_ENDS_WITHIN)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
