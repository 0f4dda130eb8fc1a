"""The first process inside the namespaces of a command: it puts the root together, steps down, and becomes the command.

Until it does, it has every right that it needs for that, and the image's files around it. So nothing is imported once
they are: a module of the image would run with these rights (as in CVE-2019-14271). Users are numbers by now, and no
library of the image is asked for anything.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import stat
import sys
import time
from contextlib import suppress

from slimgpu.errors import ImageError, NotFoundError, SlimgpuError
from slimgpu.rootfs import linux
from slimgpu.rootfs.mounts import Root

TYPE_CHECKING = False  # as type checkers know it; importing typing takes long
if TYPE_CHECKING:
    from slimgpu.rootfs.specification import Specification

_CAPABILITIES = (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 29, 31)
"""Docker's: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT,
AUDIT_WRITE, SETFCAP; without MKNOD, which engines can give because a cgroup of devices stands behind it."""
_MOST_CAPABILITIES = 64
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFF_UP = 1
_INTERFACE_REQUEST = 40


def main() -> None:
    """Arguments: the folder of our package, handles of what to run and to report on, whether users are mapped."""
    given, report, mapped = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "1"
    os.set_inheritable(report, False)  # so it ends when the command begins
    try:
        with open(given, "rb") as file:
            specification: Specification = json.loads(file.read())
        _enter(specification, mapped=mapped)
        _step_down(specification, mapped=mapped)
        _execute(specification, report)
    except SlimgpuError as error:
        _fail(report, type(error).__name__, str(error))
    except OSError as error:
        where = f" at {error.filename}" if error.filename else ""
        _fail(report, SlimgpuError.__name__, f"the command's root cannot be set up ({error.strerror}{where})")


def _enter(specification: Specification, *, mapped: bool) -> None:
    os.umask(0o022)
    if not specification["network"]:
        _raise_loopback()
    linux.sethostname(specification["hostname"])
    root = Root(specification["root"])
    root.add_kernel(specification["shared_memory"], mapped=mapped)
    for target, content in specification["files"].items():
        root.add_file(target, content)
    for source, target, writable in specification["mounts"]:
        root.bind(source, target, writable=writable)
    root.add_directory(specification["directory"])
    root.protect()
    sys.meta_path.clear()
    sys.path.clear()
    root.enter()
    os.chdir(specification["directory"])


def _raise_loopback() -> None:
    request = bytearray(_INTERFACE_REQUEST)  # struct ifreq: a name of 16 bytes, then flags
    request[:2] = b"lo"
    handle = linux.inet_socket()
    fcntl.ioctl(handle, _SIOCGIFFLAGS, request)
    request[16] |= _IFF_UP
    fcntl.ioctl(handle, _SIOCSIFFLAGS, request)
    os.close(handle)


def _step_down(specification: Specification, *, mapped: bool) -> None:
    """Have the user's identity and no more rights than an engine would leave."""
    uid, gid = specification["uid"], specification["gid"]
    _own_output(uid, gid)
    for number in range(_MOST_CAPABILITIES):
        if number not in _CAPABILITIES and _has_capability(number):
            linux.prctl(linux.PR_CAPBSET_DROP, number)
    if not mapped:  # else there is only this one user, and no right to set groups
        os.setgroups(specification["groups"])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    linux.limit_capabilities(sum(1 << number for number in _CAPABILITIES) if uid == 0 else 0)
    if not specification["new_privileges"]:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)


def _has_capability(number: int) -> bool:
    try:
        return linux.prctl(linux.PR_CAPBSET_READ, number) == 1
    except OSError:
        return False  # newer than the kernel


def _own_output(uid: int, gid: int) -> None:
    """Let the user open ``/dev/stdout``, which is a pipe of ours."""
    for handle in (1, 2):
        if stat.S_ISFIFO(os.fstat(handle).st_mode):
            with suppress(OSError):  # another user's, in a namespace that does not know it
                os.fchown(handle, uid, gid)


def _execute(specification: Specification, report: int) -> None:
    """Become the command, with signals as nobody has touched them; raises when it cannot be."""
    arguments = specification["arguments"]
    environment = specification["environment"]
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for number in signal.valid_signals():
        with suppress(OSError, ValueError):  # SIGKILL, SIGSTOP
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    began = time.monotonic()
    os.write(report, json.dumps({"began": began}).encode())  # taken back by an error
    environment[specification["variable"]] = repr(began)
    refused: OSError | None = None
    for candidate in _candidates(arguments[0], environment.get("PATH", "")):
        try:
            os.execve(candidate, arguments, environment)  # noqa: S606 - what was asked for
        except OSError as error:
            if os.path.lexists(candidate) and (refused is None or error.errno != errno.ENOENT):
                refused = error
    _refuse(arguments[0], refused)


def _candidates(program: str, path: str) -> list[str]:
    if "/" in program:
        return [program]
    return [f"{folder or '.'}/{program}" for folder in path.split(":")]


def _refuse(program: str, refused: OSError | None) -> None:
    if refused is None:
        raise NotFoundError(f"{program} is not in the image; check the command and the image's PATH")
    if refused.errno == errno.ENOENT:
        raise ImageError(f"{program} of the image cannot be run: the interpreter that it names is not in the image")
    raise ImageError(f"{program} of the image cannot be run ({refused.strerror}); name another command")


def _fail(report: int, kind: str, sentence: str) -> None:
    os.write(report, b"\n" + json.dumps({"error": [kind, sentence]}).encode())
    os._exit(1)
