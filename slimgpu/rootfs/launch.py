"""The process between us and a command: it makes the namespaces, starts their first process, and ends it with us.

It reads what to run as one line of JSON from its standard input, which stays open as long as the command shall live:
a process that is killed closes it, whatever becomes of its threads. What happens, it tells as lines of JSON on a pipe:
``{"pid", "began"}`` once the command has begun or ``{"error": [class, sentence]}``, and ``{"code", "processor"}`` in
the end. See `slimgpu.rootfs.first` for what comes next.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from contextlib import suppress

from slimgpu.errors import MissingComponentError
from slimgpu.rootfs import linux

TYPE_CHECKING = False  # as type checkers know it; importing typing takes long
if TYPE_CHECKING:
    from slimgpu.rootfs.specification import Specification

START = "import sys; sys.path.insert(0, sys.argv[1]); from slimgpu.rootfs.{0} import main; main()"
"""Run with ``-I -S``: our own modules and Python's, and nothing that an environment could add."""
_SPACES = linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS
_OWNER = 0
"""The standard input."""
_NEEDED = (
    "an image's command needs namespaces of its own; run as root with CAP_SYS_ADMIN, or allow user namespaces here "
    "(sysctl user.max_user_namespaces, on Ubuntu also kernel.apparmor_restrict_unprivileged_userns=0)"
)


def main() -> None:
    """Arguments: the folder of our package, the interpreter, and the pipe to tell on."""
    package, python, told = sys.argv[1], sys.argv[2], int(sys.argv[3])
    os.set_inheritable(told, False)
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return  # whoever wanted it is gone
    try:
        mapped = _enter_namespaces(json.loads(line))
        _protect(python)
    except OSError as error:
        sentence = f"{_NEEDED}: {error.strerror}, {error.filename}"
        _tell(told, {"error": [MissingComponentError.__name__, sentence]})
        return
    report, reported = os.pipe()
    woken = _woken_by_children()
    pid = os.fork()
    if pid == 0:
        _become_first(package, python, line, reported, mapped=mapped)
    os.close(reported)
    _leave_output()
    _watch(pid, report, woken, told)


def _enter_namespaces(specification: Specification) -> bool:
    """Gives whether it took a namespace of users, where only the command's own user exists."""
    spaces = _SPACES | (0 if specification["network"] else linux.CLONE_NEWNET)
    mapped = False
    user, group = os.geteuid(), os.getegid()
    try:
        linux.unshare(spaces)
    except PermissionError:
        linux.unshare(spaces | linux.CLONE_NEWUSER)
        mapped = True
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{specification['uid']} {user} 1"),
            ("gid_map", f"{specification['gid']} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123 - pathlib takes long to import
                file.write(text)
        linux.pass_on_capabilities()  # to the first process, which may not be user 0
    linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    return mapped


def _protect(python: str) -> None:
    """Make the interpreter a file that cannot be written through its process's ``/proc/<pid>/exe``.

    An image whose program is a link to that, or a script that names it, would run the interpreter inside and could
    then write over this machine's (CVE-2019-5736). That is why the first process is a program of its own: a fork of
    this one would still be what was started before the mount.
    """
    linux.mount(python, python, "", linux.MS_BIND)
    linux.remount(python, linux.MS_RDONLY)


def _become_first(package: str, python: str, line: bytes, reported: int, *, mapped: bool) -> None:
    try:
        given = os.memfd_create("command", 0)
        os.write(given, line)
        os.lseek(given, 0, os.SEEK_SET)
        os.set_inheritable(reported, True)
        arguments = [package, str(given), str(reported), str(int(mapped))]
        os.execv(python, [python, "-I", "-S", "-c", START.format("first"), *arguments])  # noqa: S606 - ourselves
    finally:
        os._exit(1)


def _leave_output() -> None:
    """The command's output ends with the command."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def _woken_by_children() -> int:
    """What can be read from when a child has ended; who has left its namespace of processes can have no threads."""
    woken, waking = os.pipe()
    os.set_blocking(waking, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waking)
    return woken


def _watch(pid: int, report: int, woken: int, told: int) -> None:
    """Kill the first process, and with it all that is inside, when our owner ends; tell how it went."""
    poll = select.poll()
    for handle in (_OWNER, report, woken):
        poll.register(handle, select.POLLIN)
    ended, begun, said = False, False, b""
    while not (ended and begun):
        for handle, _ in poll.poll():
            data = os.read(handle, 4096)
            if handle == woken:
                ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            elif handle == report:
                said += data
            elif not data:
                os.kill(pid, signal.SIGKILL)  # its number is no other's before it is waited for
            if not data:
                poll.unregister(handle)
                if handle == report:
                    begun = True
                    _tell(told, {"pid": pid, **(json.loads(said.splitlines()[-1]) if said else {})})
    _, status, used = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    _tell(told, {"code": code if code >= 0 else 128 - code, "processor": used.ru_utime + used.ru_stime})


def _tell(handle: int, what: dict[str, object]) -> None:
    with suppress(BrokenPipeError):  # nobody listens any more, and the first process is killed for that
        os.write(handle, json.dumps(what).encode() + b"\n")
