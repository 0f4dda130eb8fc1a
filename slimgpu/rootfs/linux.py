"""System calls that Python has no function for, or only since 3.12; each raises OSError that names what it was for.

This module and what else runs before an image's command (`slimgpu.rootfs.launch`, `slimgpu.rootfs.first`) imports
nothing that takes long, ``typing`` included: it starts twice for each command.
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
_MS_RELATIME = 1 << 21
_SAME_FLAGS = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME
"""Those that statvfs(3) gives with the value that mount(2) takes."""
_MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION = 0x20080522

_AF_INET, _SOCK_DGRAM, _SOCK_CLOEXEC = 2, 2, 0o2000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces of these kinds for new ones; the one of process ids is for children."""
    _checked(_libc.unshare(flags), "new namespaces")


def setns(handle: int, kind: int) -> None:
    """Enter the namespace of this ``CLONE_NEW*`` kind that a handle of ``/proc/<pid>/ns/*`` names."""
    _checked(_libc.setns(handle, kind), "the namespace of a process")


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """Mount ``source`` at ``target``; see the manual of the system call."""
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode(), flags, options.encode() or None)
    _checked(_libc.mount(*arguments), target)


def remount(target: str, flags: int) -> None:
    """Add ``flags`` to the mount at ``target``, which keeps those that it has."""
    found = os.statvfs(target).f_flag
    kept = found & _SAME_FLAGS | (_MS_RELATIME if found & os.ST_RELATIME else 0)
    mount("", target, "", MS_BIND | MS_REMOUNT | kept | flags)


def pivot_root() -> None:
    """Make the working directory, which is a mount, the root, and let go of the one before."""
    _checked(_libc.pivot_root(b".", b"."), "/")
    _checked(_libc.umount2(b".", _MNT_DETACH), "/")
    os.chdir("/")


def prctl(operation: int, argument: int = 0, more: int = 0) -> int:
    """Ask for or change what holds for this process; see the manual of the system call."""
    return _checked(_libc.prctl(operation, argument, more, 0, 0), "the rights of a command")


def sethostname(name: str) -> None:
    """Name this machine, in this UTS namespace."""
    data = name.encode()
    _checked(_libc.sethostname(data, len(data)), name)


def limit_capabilities(allowed: int) -> None:
    """Have no capability in effect that is not in the bits ``allowed``, and pass none on."""
    _set_capabilities(_capabilities() & allowed, 0)


def pass_on_capabilities() -> None:
    """Let the next program have every capability that this one has, whatever user it is."""
    held = _capabilities()
    _set_capabilities(held, held)
    for number in range(held.bit_length()):
        if held >> number & 1:
            prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)


def _capabilities() -> int:
    """The bits of those that this process may have in effect."""
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice, for 64 capabilities
    _checked(_libc.capget((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), data), "the rights of a command")
    return int(data[1]) | int(data[4]) << 32


def _set_capabilities(held: int, inherited: int) -> None:
    low, high = (held & 0xFFFFFFFF, inherited & 0xFFFFFFFF), (held >> 32, inherited >> 32)
    data = (ctypes.c_uint32 * 6)(low[0], low[0], low[1], high[0], high[0], high[1])
    _checked(_libc.capset((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), data), "the rights of a command")


def inet_socket() -> int:
    """A handle for requests to network interfaces; what it costs to import ``socket``, this does not."""
    return _checked(_libc.socket(_AF_INET, _SOCK_DGRAM | _SOCK_CLOEXEC, 0), "a socket")
