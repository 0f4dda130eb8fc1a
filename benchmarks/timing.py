"""A command's wall time, processor time and peak memory, with those of every process that it leaves behind."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from resource import struct_rusage

_PR_SET_CHILD_SUBREAPER = 36
_SAMPLE_SECONDS = 0.1
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Usage:
    """What one run of a command took: seconds, and bytes of resident memory."""

    wall: float
    """Until the command itself ended."""
    user: float
    system: float
    largest: int
    """Peak of the largest single process, as the kernel counts it; never below this harness's own size."""
    together: int
    """Peak of the sum over all processes, sampled ten times a second; pages they share count in each."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One arm in one round."""

    round: int
    arm: str
    load: float
    """The machine's load average when it began."""
    usage: Usage


def measure(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Usage:
    """Run a command to its end with its output thrown away; raises `click.ClickException` when it fails."""
    _adopt_orphans()
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            env=os.environ | (environment or {}),
        )
        with _Sampler(process.pid) as sampler:
            usage = _wait(process)
            wall = time.perf_counter() - started
        if process.returncode:
            raise click.ClickException(f"{' '.join(command)[:200]} failed: {_last_line(errors)}")
    usages = [usage, *_reaped()]
    return Usage(
        wall=round(wall, 3),
        user=round(sum(u.ru_utime for u in usages), 3),
        system=round(sum(u.ru_stime for u in usages), 3),
        largest=max(u.ru_maxrss for u in usages) * 1024,
        together=sampler.peak,
    )


def _adopt_orphans() -> None:
    """Become the parent of what outlives its own, so that no process escapes the count."""
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise click.ClickException("this kernel cannot hand orphaned processes to the benchmark (Linux 3.4 can)")


def _wait(process: subprocess.Popen[bytes]) -> struct_rusage:
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage


def _reaped() -> Iterator[struct_rusage]:
    """The orphans of the command, once each has ended."""
    while True:
        try:
            yield os.wait4(-1, 0)[2]
        except ChildProcessError:
            return


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").splitlines()
    return lines[-1] if lines else "it said nothing"


class _Sampler:
    """Watches a session's resident memory while the ``with`` block runs."""

    def __init__(self, session: int) -> None:
        self.peak = 0
        self._session = session
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            self.peak = max(self.peak, sum(_resident(self._session)))


def _resident(session: int) -> Iterator[int]:
    """Resident bytes of each process of a session."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            # What follows the parenthesized name: state, parent, group, session and so on.
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(fields[3]) == session:
            yield int(fields[21]) * _PAGE
