"""A command of an image, as ``docker run IMAGE ARGUMENTS`` understands it.

Source: https://docs.docker.com/reference/dockerfile/#understand-how-cmd-and-entrypoint-interact
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import normpath
from typing import TYPE_CHECKING, Final

from slimgpu.errors import ImageError, UsageError

if TYPE_CHECKING:
    from slimgpu.oci.config import ImageConfig

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOSTNAME: Final = "slimgpu"
EXEC_VARIABLE: Final = "SLIMGPU_PROBE_EXEC"
"""Where a program that no engine started finds the moment at which it began: seconds of ``CLOCK_MONOTONIC``."""
_SHARED_MEMORY: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Mount:
    """A file, directory, socket or device of this machine that the command sees.

    One below ``/dev/shm`` shares a part of this machine's shared memory (a region of weights), one at ``/dev/shm``
    all of it. Only devices keep what a device does; nothing has its setuid bit there.
    """

    source: Path
    target: str
    """An absolute path inside; what is missing of it is made, empty."""
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, ready for every way to run it."""

    arguments: tuple[str, ...]
    """The program, which is looked for in its ``PATH`` unless it has a slash, and its arguments."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """All of it, but for ``HOME``, which is the user's unless it is set here."""
    user: str = ""
    """``name|number[:group]``; root when empty."""
    directory: str = "/"
    mounts: tuple[Mount, ...] = ()
    """In this order."""
    hostname: str = HOSTNAME
    network: bool = False
    """Whether the command shares this machine's network; else it has a loopback device of its own, and no more."""
    shared_memory: int = _SHARED_MEMORY
    """Bytes that ``/dev/shm`` may hold."""
    new_privileges: bool = True
    """Whether setuid programs and file capabilities mean anything, as with engines."""
    gpu: bool = False
    """Whether an engine is asked for all of this machine's GPUs; without one see `slimgpu.rootfs.driver`."""


def command_of(
    config: ImageConfig,
    arguments: Sequence[str] = (),
    *,
    entrypoint: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
    mounts: Sequence[Mount] = (),
    network: bool = False,
) -> Command:
    """The command of an image.

    ``arguments`` take the place of its ``Cmd``, ``entrypoint`` that of its ``Entrypoint``, and then its ``Cmd`` does
    not count; ``environment`` is added to its own. Raises `UsageError` when there is nothing to run, and `ImageError`
    when the configuration breaks its format.
    """
    runtime = config.runtime
    first = _words(runtime, "Entrypoint") if entrypoint is None else tuple(entrypoint)
    rest = tuple(arguments) or (_words(runtime, "Cmd") if entrypoint is None else ())
    if not (*first, *rest):
        raise UsageError("the image names no command to run; give one after --")
    variables = {"PATH": DEFAULT_PATH, "HOSTNAME": HOSTNAME, **config.environment, **(environment or {})}
    command = Command(
        arguments=(*first, *rest),
        environment={name: value for name, value in variables.items() if name},
        user=_text(runtime, "User"),
        directory=normpath(f"/{_text(runtime, 'WorkingDir').lstrip('/')}"),
        mounts=tuple(mounts),
        network=network,
    )
    _check(command)
    return command


def _words(runtime: Mapping[str, object], key: str) -> tuple[str, ...]:
    """A list of words; old engines wrote a single one as text."""
    value = runtime.get(key) or []
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ImageError(f"{key} of the image's configuration is no list of words; give the command after --")
    return tuple(words)


def _text(runtime: Mapping[str, object], key: str) -> str:
    value = runtime.get(key) or ""
    if not isinstance(value, str):
        raise ImageError(f"{key} of the image's configuration is no text; build the image again")
    return value


def _check(command: Command) -> None:
    """No value may end early where C reads it, or be no text that a process could be given."""
    pairs = (f"{name}={value}" for name, value in command.environment.items())
    for text in (*command.arguments, *pairs, command.user, command.directory):
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ImageError("the command, environment, user or directory of the image holds a NUL or half a letter")
