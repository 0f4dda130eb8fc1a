"""A command of an image under way, whoever runs it."""

from __future__ import annotations

from typing import IO, Protocol


class Running(Protocol):
    """The first process of a command and what it started; all of it ends with the block that it was got from."""

    @property
    def pid(self) -> int:
        """The first process, as this machine numbers it."""

    @property
    def stdout(self) -> IO[bytes]:
        """What it writes; a pipe, to be read to its end."""

    @property
    def stderr(self) -> IO[bytes]:
        """The same for its errors; whoever reads neither holds it up."""

    def poll(self) -> int | None:
        """Its exit code, 128 and the signal's number when one ended it; None as long as it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """The same when it has ended; TimeoutError after ``timeout`` seconds."""

    def kill(self) -> None:
        """End it, with everything that it started, now."""
