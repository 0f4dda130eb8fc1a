"""The helper that runs somebody else's server where it is itself, and ends it with its owner."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from typing import Final

from slimgpu.bench.link.helper import say

_ANSWERS_WITHIN: Final = 30.0
_ENDS_WITHIN: Final = 5.0
_PAUSE: Final = 0.02


def keep_arguments(host: str, port: int, command: list[str]) -> list[str]:
    """How the helper is started; it is ready, and says the process, once something answers on ``host`` and ``port``."""
    return ["keep", host, str(port), *command]


def run(host: str, port: str, *command: str) -> None:
    """Be the keeper. What the server says goes to the standard error."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)  # noqa: S603 - the owner's
    try:
        _wait(process, (host, int(port)))
        say(process.pid)
        sys.stdin.read()
    finally:
        process.terminate()
        try:
            process.wait(_ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], address: tuple[str, int]) -> None:
    deadline = time.monotonic() + _ANSWERS_WITHIN
    while not _answers(address):
        if process.poll() is not None:
            sys.exit(1)  # its last words say why
        if time.monotonic() > deadline:
            sys.exit(f"nothing answers on {address[0]}:{address[1]} after {_ANSWERS_WITHIN:g} s")
        time.sleep(_PAUSE)


def _answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, _ANSWERS_WITHIN).close()
    except OSError:
        return False
    return True
