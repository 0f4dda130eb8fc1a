"""The file systems of a command, put together over its root before the command can see anything of this machine.

All mounts are made while this machine's ``/proc`` is at hand, on handles that were found within the root
(`slimgpu.rootfs.within`), so that a link of a hostile image leads to no place outside. ``pivot_root`` comes last, and
not ``chroot``: the mounts of this machine are gone then, and nothing that is root inside finds a way back to them.
What there is, is what engines give.
Source: https://github.com/opencontainers/runtime-spec/blob/v1.2.0/config-linux.md#default-filesystems and
https://github.com/moby/moby/blob/v27.0.0/oci/defaults.go
"""

from __future__ import annotations

import errno
import os
import stat

from slimgpu.errors import ImageError, SlimgpuError
from slimgpu.rootfs import linux
from slimgpu.rootfs.within import DIRECTORY, FILE, open_within

_GUARDED = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_HIDDEN = (
    *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats"),
    *("/sys/firmware", "/sys/devices/virtual/powercap"),
)
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""What user 0 may write without any capability: a core pattern is a program that this machine would run."""

_MISSHAPEN = (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG)


class Root:
    """A directory that becomes the root; ``open_folder`` is its handle once it is a mount of our own.

    Devices of the image's layers do nothing: without a cgroup of the command's own, nothing else keeps user 0 from
    this machine's disks.
    """

    def __init__(self, path: str) -> None:
        linux.unshare(linux.CLONE_NEWNS)  # pivot_root moves whoever shares this one, our watching parent included
        linux.mount(path, path, "", linux.MS_BIND | linux.MS_REC)
        linux.remount(path, linux.MS_NODEV)
        self._folder = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def add_kernel(self, shared_memory: int, *, mapped: bool) -> None:
        """``/proc``, ``/sys`` and ``/dev``, whose places may be no links; ``mapped`` in a namespace of users."""
        for path in ("/proc", "/sys", "/dev"):
            self._close(self._place(path, DIRECTORY, follow=False))
        self._mount("proc", "/proc", _GUARDED)
        self._add_sys()
        self._mount("tmpfs", "/dev", linux.MS_NOSUID, "mode=755,size=65536k")
        for name in _DEVICES:
            self.bind(f"/dev/{name}", f"/dev/{name}", writable=True)
        for name in ("pts", "shm", "mqueue"):
            self._close(self._place(f"/dev/{name}", DIRECTORY))
        group = "" if mapped else ",gid=5"  # tty; whose number means nothing where it is not mapped
        terminal = linux.MS_NOSUID | linux.MS_NOEXEC
        self._mount("devpts", "/dev/pts", terminal, f"newinstance,ptmxmode=0666,mode=0620{group}")
        self._mount("tmpfs", "/dev/shm", _GUARDED, f"mode=1777,size={shared_memory}")  # noqa: S108 - the command's own
        self._mount("mqueue", "/dev/mqueue", _GUARDED)
        dev = self._place("/dev", DIRECTORY)
        for name, target in _LINKS.items():
            os.symlink(target, name, dir_fd=dev)
        self._close(dev)

    def _add_sys(self) -> None:
        """A new one belongs to a network of our own; where we have none, this machine's, which is read only, too."""
        try:
            self._mount("sysfs", "/sys", _GUARDED | linux.MS_RDONLY)
        except PermissionError:
            place = self._place("/sys", DIRECTORY)
            linux.mount("/sys", _path(place), "", linux.MS_BIND | linux.MS_REC)
            self._close(place)
            self._remount("/sys", _GUARDED | linux.MS_RDONLY)

    def add_file(self, target: str, content: str) -> None:
        """A file that is the command's alone: it lies in ``/dev``, without a name, and is seen at ``target``."""
        dev = self._place("/dev", DIRECTORY)
        made = os.open("file", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=dev)
        os.write(made, content.encode())
        place = self._place(target, FILE)
        linux.mount(_path(made), _path(place), "", linux.MS_BIND)
        os.unlink("file", dir_fd=dev)
        self._close(made, place, dev)

    def bind(self, source: str, target: str, *, writable: bool) -> None:
        """Show what this machine has at ``source`` at ``target``."""
        mode = os.stat(source).st_mode  # noqa: PTH116 - pathlib takes long to import
        place = self._place(target, DIRECTORY if stat.S_ISDIR(mode) else FILE)
        linux.mount(source, _path(place), "", linux.MS_BIND)
        self._close(place)
        flags = linux.MS_NOSUID | (0 if stat.S_ISCHR(mode) else linux.MS_NODEV)
        self._remount(target, flags | (0 if writable else linux.MS_RDONLY))

    def add_directory(self, path: str) -> None:
        """Where the command works, which engines make when the image lacks it."""
        self._close(self._place(path, DIRECTORY))

    def protect(self) -> None:
        """Hide or fix what would tell of, or change, this machine."""
        for path in _READ_ONLY:
            if self._has(path):
                place = self._place(path)
                linux.mount(_path(place), _path(place), "", linux.MS_BIND | linux.MS_REC)
                self._close(place)
                self._remount(path, linux.MS_RDONLY)
        for path in _HIDDEN:
            if self._has(path):
                place = self._place(path)
                if stat.S_ISDIR(os.fstat(place).st_mode):
                    linux.mount("tmpfs", _path(place), "tmpfs", _GUARDED | linux.MS_RDONLY)
                else:
                    linux.mount("/dev/null", _path(place), "", linux.MS_BIND)
                self._close(place)

    def enter(self) -> None:
        """From here on, this is all that there is."""
        os.fchdir(self._folder)
        linux.pivot_root()
        os.close(self._folder)

    def _mount(self, kind: str, target: str, flags: int, options: str = "") -> None:
        place = self._place(target)
        try:
            linux.mount(kind, _path(place), kind, flags, options)
        except OSError as error:
            raise type(error)(error.errno, error.strerror, f"{kind} at {target}") from error
        finally:
            os.close(place)

    def _remount(self, target: str, flags: int) -> None:
        """Of the mount at ``target``, which is another file than what was there before."""
        place = self._place(target)
        linux.remount(_path(place), flags)
        os.close(place)

    def _has(self, path: str) -> bool:
        try:
            os.close(open_within(self._folder, path))
        except FileNotFoundError:
            return False
        return True

    def _place(self, path: str, create: str = "", *, follow: bool = True) -> int:
        try:
            return open_within(self._folder, path, create, follow=follow)
        except OSError as error:
            if error.errno in _MISSHAPEN:
                raise ImageError(
                    f"{path} of the image is no place for a {create or 'mount'} that its commands need "
                    f"({error.strerror}); build the image without it"
                ) from error
            if error.errno in (errno.EROFS, errno.EACCES, errno.ENOSPC):
                raise SlimgpuError(
                    f"{path} cannot be made in the root file system ({error.strerror}); "
                    "unpack it where it can be written"
                ) from error
            raise

    @staticmethod
    def _close(*handles: int) -> None:
        for handle in handles:
            os.close(handle)


def _path(handle: int) -> str:
    return f"/proc/self/fd/{handle}"
