"""Connections to what listens inside the network namespace of a command, whoever made that namespace.

A socket belongs to the namespace that it was made in, and is connected from anywhere. As root, a thread of its own
enters the namespace and makes it; else a process has to, because entering a namespace of users is for processes
with one thread.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import slimgpu
from slimgpu.errors import MissingComponentError, NotFoundError
from slimgpu.rootfs import linux
from slimgpu.rootfs.launch import START

_SPACES: Final = (("user", linux.CLONE_NEWUSER), ("net", linux.CLONE_NEWNET))
"""The one of users first, which gives the right to enter the other."""


@dataclass(frozen=True, slots=True)
class Network:
    """The network that a process sees."""

    pid: int

    def connect(self, address: tuple[str, int], timeout: float | None = None) -> socket.socket:
        """A TCP connection to ``address`` (numbers; names are resolved outside) as if from inside.

        Raises OSError as `socket.create_connection` does, `NotFoundError` when the process has ended, and
        `MissingComponentError` when we may not enter its namespace.
        """
        made = self._socket()
        try:
            made.settimeout(timeout)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.connect(address)
        except BaseException:
            made.close()
            raise
        return made

    def _socket(self) -> socket.socket:
        try:
            other = [(name, kind) for name, kind in _SPACES if _number("self", name) != _number(str(self.pid), name)]
            if not any(name == "net" for name, _ in other):
                return socket.socket()
            if any(name == "user" for name, _ in other):
                return _made_by_process(self.pid)
            with ThreadPoolExecutor(1) as thread:  # which ends in that namespace; ours stays where it is
                return thread.submit(made_in, self.pid, ("net",)).result()
        except FileNotFoundError as error:
            raise NotFoundError(
                f"process {self.pid} has ended, and nothing listens there; look at its output"
            ) from error
        except PermissionError as error:
            raise MissingComponentError(
                f"the network of process {self.pid} cannot be entered ({error.strerror}); run as root"
            ) from error


def namespace_of(pid: int) -> Network:
    """The network of a process, as of now."""
    return Network(pid)


def _number(pid: str, name: str) -> int:
    return os.stat(f"/proc/{pid}/ns/{name}").st_ino  # noqa: PTH116 - a link that pathlib would resolve, too


def made_in(pid: int, names: tuple[str, ...]) -> socket.socket:
    """A socket made after entering these namespaces of a process, which this thread never leaves."""
    handles = [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in names]
    try:
        for handle, name in zip(handles, names, strict=True):
            linux.setns(handle, dict(_SPACES)[name])
        return socket.socket()
    finally:
        for handle in handles:
            os.close(handle)


def _made_by_process(pid: int) -> socket.socket:
    package = str(Path(slimgpu.__file__).resolve().parent.parent)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-I", "-S", "-c", START.format("network"), package, str(pid), str(theirs.fileno())]
        ended = subprocess.run(command, pass_fds=(theirs.fileno(),), capture_output=True, check=False)  # noqa: S603
        if ended.returncode:
            raise PermissionError(ended.returncode, os.strerror(ended.returncode))
        _, handles, _, _ = socket.recv_fds(ours, 1, 1)
        return socket.socket(fileno=handles[0])


def main() -> None:
    """The process: arguments are the folder of our package, the other's pid, and the socket to answer on."""
    try:
        made = made_in(int(sys.argv[2]), tuple(name for name, _ in _SPACES))
    except OSError as error:
        sys.exit(error.errno)
    with socket.socket(fileno=int(sys.argv[3])) as answers:
        socket.send_fds(answers, [b"."], [made.fileno()])
