"""Running a command of an image in its root file system without an engine.

The command has namespaces of its own (mounts, processes, IPC, host name and, unless it shares ours, network) and, when
we are not root, one of users. There is no seccomp filter and no cgroup: it can do what root with Docker's
capabilities can do to the kernel, and may use what memory there is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import slimgpu
from slimgpu import errors
from slimgpu.errors import NotFoundError, SlimgpuError
from slimgpu.events import Event, Stage
from slimgpu.rootfs.command import EXEC_VARIABLE
from slimgpu.rootfs.launch import START
from slimgpu.rootfs.users import identity_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from slimgpu.events import Events
    from slimgpu.rootfs.command import Command
    from slimgpu.rootfs.specification import Specification

_KILLED = 137


@contextmanager
def running(root: Path, command: Command, events: Events) -> Iterator[RunningCommand]:
    """``command`` in the root file system ``root``, until the block ends; then it is killed, with all that it started.

    So it is when we die, however that comes. ``root`` gets the places that are mounted on, empty, where it lacks
    them, as engines do it; nothing outside of it and of writable mounts is written. `Stage.START` is told from the
    call to the moment at which the command began, and the command finds that moment in ``SLIMGPU_PROBE_EXEC``.

    Not as root, the command's user is the only one that there is inside, whatever its number, and stands for us.
    Raises `MissingComponentError` when namespaces are refused, `NotFoundError` for a command, user or mount that is
    not there, and `ImageError` for an image in whose root it cannot be run.
    """
    called = time.monotonic()
    specification = _specification(root, command)
    receiving, telling = os.pipe()
    with open(receiving, "rb") as told:  # noqa: PTH123 - a handle
        try:
            process = _launch(telling)
        finally:
            os.close(telling)
        assert process.stdin is not None
        with process:
            try:
                with suppress(BrokenPipeError):  # it says why
                    process.stdin.write(json.dumps(specification).encode() + b"\n")
                    process.stdin.flush()
                started = _answer(told, process.stderr, command.arguments[0])
                events.tell(Event(Stage.START, called, started["began"], command.arguments[0]))
                yield RunningCommand(process, told, started["pid"])
            finally:
                _end(process)


def _specification(root: Path, command: Command) -> Specification:
    identity = identity_of(root, command.user)
    for mount in command.mounts:
        if not mount.source.exists():
            raise NotFoundError(f"{mount.source}, to be mounted at {mount.target}, does not exist; check the path")
    return {
        "root": str(root.resolve()),
        "arguments": list(command.arguments),
        "environment": {"HOME": identity.home, **command.environment},
        "variable": EXEC_VARIABLE,
        "uid": identity.uid,
        "gid": identity.gid,
        "groups": list(identity.groups),
        "directory": command.directory,
        "mounts": [(str(mount.source.resolve()), mount.target, mount.writable) for mount in command.mounts],
        "hostname": command.hostname,
        "files": _files(command),
        "network": command.network,
        "shared_memory": command.shared_memory,
        "new_privileges": command.new_privileges,
    }


def _files(command: Command) -> dict[str, str]:
    """The files about the network that engines give, whose places in an image are often links to nowhere."""
    names = f"127.0.0.1\tlocalhost {command.hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    own = {"/etc/hostname": f"{command.hostname}\n", "/etc/hosts": names, "/etc/resolv.conf": ""}
    if command.network:
        for path in ("/etc/hosts", "/etc/resolv.conf"):
            with suppress(OSError):
                own[path] = Path(path).read_text(errors="replace")
    return own


def _launch(telling: int) -> subprocess.Popen[bytes]:
    """In a session of its own, because what is typed at a terminal is our affair."""
    package = str(Path(slimgpu.__file__).resolve().parent.parent)
    python = str(Path(sys.executable).resolve())
    return subprocess.Popen(  # noqa: S603 - ourselves
        [python, "-I", "-S", "-c", START.format("launch"), package, python, str(telling)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(telling,),
        start_new_session=True,
    )


def _answer(told: IO[bytes], complaints: IO[bytes] | None, program: str) -> Mapping[str, Any]:
    """The pid and the moment of a command that has begun; raises what was said instead."""
    answer = _document(told)
    if "error" in answer:
        kind, sentence = answer["error"]
        raise getattr(errors, kind)(sentence)
    if "began" not in answer:
        said = complaints.read().decode(errors="replace").strip() if complaints else ""
        raise SlimgpuError(f"{program} was killed before it began ({said or 'no word'}); look for a lack of memory")
    return answer


def _document(told: IO[bytes]) -> Mapping[str, Any]:
    document = json.loads(told.readline() or b"{}")
    return document if isinstance(document, dict) else {}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask for the command's end, and wait until nothing of it is left."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    process.wait()


class RunningCommand:
    """See `slimgpu.rootfs.running.Running`; the process that we started stands for the first one inside."""

    def __init__(self, process: subprocess.Popen[bytes], told: IO[bytes], pid: int) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.pid = pid
        self.stdout: IO[bytes] = process.stdout
        self.stderr: IO[bytes] = process.stderr
        self.processor: float | None = None
        """Seconds of processor time of all that ran inside, once it has ended and was waited for."""
        self._process = process
        self._told = told
        self._code: int | None = None

    def poll(self) -> int | None:
        """See `Running.poll`."""
        return None if self._process.poll() is None else self._ended()

    def wait(self, timeout: float | None = None) -> int:
        """See `Running.wait`."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"the command still runs after {timeout} s") from error
        return self._ended()

    def _ended(self) -> int:
        if self._code is None:
            last = _document(self._told)
            self._code = int(last.get("code", _KILLED))
            self.processor = last.get("processor")
        return self._code

    def kill(self) -> None:
        """See `Running.kill`."""
        _end(self._process)
