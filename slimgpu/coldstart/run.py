"""A command and the fetching of its weights, started at the same time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from slimgpu.errors import MissingComponentError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType

    from slimgpu.oci.reference import Reference

VARIABLE: Final = "SLIMGPU_WEIGHTS"
"""Where the command finds the reference of its weights."""
_PASSED_ON: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
    signal.SIGWINCH,
)
_FROM_TERMINAL: Final = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH})
_KILLED: Final = 128
"""Added to the number of the signal that ended a command, as shells do."""
_ENDS_WITHIN: Final = 10.0


def run_beside(reference: Reference, command: Sequence[str], *, keep: bool) -> int:
    """Run ``command`` while its weights are fetched by a process of its own; gives the command's exit code.

    The command finds the reference in ``SLIMGPU_WEIGHTS``, gets the signals that are sent to us, and outlives a fetch
    that fails. When it ends, so does the fetch, and what was fetched goes unless ``keep`` is set or others use it.
    Raises `MissingComponentError` when the command cannot be started.
    """
    if shutil.which(command[0]) is None:
        raise MissingComponentError(f"{command[0]} is no command that can be run; check its name and PATH")
    with _fetcher(reference, keep=keep):
        process = _started(command, {**os.environ, VARIABLE: str(reference)})
        with _ended_with_us(process), _signals_to(process):
            code = process.wait()
    return code if code >= 0 else _KILLED - code


@contextmanager
def _fetcher(reference: Reference, *, keep: bool) -> Iterator[None]:
    """``slimgpu prefetch`` as long as the block lasts; it ends when its standard input does, so it never outlives us.

    It is in a group of its own, since Ctrl-C is the command's affair.
    """
    chosen = "--keep" if keep else "--no-keep"
    arguments = [sys.executable, "-m", "slimgpu", "-q", "prefetch", str(reference), chosen, "--until-eof"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLIMGPU_PREFETCH_")}
    fetcher = subprocess.Popen(  # noqa: S603 - ourselves
        arguments, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, process_group=0
    )
    try:
        yield
    finally:
        assert fetcher.stdin is not None
        fetcher.stdin.close()
        try:
            fetcher.wait(_ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            fetcher.kill()
            fetcher.wait()


def _started(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(command, env=environment)  # noqa: S603 - the user's command
    except OSError as error:
        raise MissingComponentError(f"{command[0]} cannot be run ({error.strerror}); check the command") from error


@contextmanager
def _ended_with_us(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """No command is left behind when something goes wrong here."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


@contextmanager
def _signals_to(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass on what is sent to us; a terminal sends its own to the command as well."""

    def passed_on(number: int, frame: FrameType | None) -> None:
        del frame
        if number not in _FROM_TERMINAL or not _is_in_foreground():
            process.send_signal(number)

    before = {number: signal.signal(number, passed_on) for number in _PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_in_foreground() -> bool:
    """Whether a terminal sends what is typed at it to our group, and so to the command, too."""
    try:
        with open("/dev/tty", "rb", buffering=0) as terminal:  # noqa: PTH123 - the standard input may be something else
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False
