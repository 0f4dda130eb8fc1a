"""Network namespaces of this process, held by open files, so that they go when it does.

Python has ``os.unshare`` and ``os.setns`` from 3.12 on.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slimgpu.errors import MissingComponentError

if TYPE_CHECKING:
    from collections.abc import Iterator

_FOR_ROOT: Final = "/usr/sbin:/sbin"
_CLONE_NEWNET: Final = 0x40000000
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Namespace:
    """One that somebody may enter through ``/proc`` as long as this process lives."""

    handle: int
    """The open file."""

    @classmethod
    def entered(cls) -> Namespace:
        """A new one, in which the calling thread is from now on; raises `MissingComponentError` if that is refused."""
        _check(_LIBC.unshare(_CLONE_NEWNET), "making")
        return cls(os.open("/proc/thread-self/ns/net", os.O_RDONLY))

    @property
    def path(self) -> str:
        """Its name for other processes."""
        return f"/proc/{os.getpid()}/fd/{self.handle}"

    def enter(self) -> None:
        """Move the calling thread there."""
        _check(_LIBC.setns(self.handle, _CLONE_NEWNET), "entering")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Be there as long as the block lasts."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            self.enter()
            yield
        finally:
            Namespace(before).enter()
            os.close(before)


def _check(result: int, what: str) -> None:
    if result:
        why = os.strerror(ctypes.get_errno())
        raise MissingComponentError(f"{what} a network namespace is refused here ({why}); it takes root")


def find_tool(name: str) -> str | None:
    """Where the program is; users' PATH often lacks what only root used to start."""
    return shutil.which(name) or shutil.which(name, path=_FOR_ROOT)


def network_tool(*command: str) -> str:
    """What ``ip`` or ``tc`` says; raises `MissingComponentError` with what it complains of."""
    program = find_tool(command[0]) or command[0]
    result = subprocess.run(  # noqa: S603 - our own arguments
        [program, *command[1:]], capture_output=True, text=True, check=False
    )
    if result.returncode:
        complaint = " ".join(result.stderr.split())
        raise MissingComponentError(f"{' '.join(command)}: {complaint}")
    return result.stdout
