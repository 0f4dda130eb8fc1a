"""Processes of our own that serve a benchmark: each says when it is ready, answers questions, and never outlives us.

A helper ends when its standard input does, and so when its owner is killed, too. Both sides speak JSON, a line each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, Final

from slimgpu.errors import MissingComponentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MODULE: Final = "slimgpu.bench.link"
_ENDS_WITHIN: Final = 10.0


class Helper:
    """A helper that is ready."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[bytes], what: str) -> None:
        self._process = process
        self._errors = errors
        self._what = what
        self._lock = threading.Lock()
        self.pid = process.pid
        self.said = self._listen()
        """What it said once ready."""

    def ask(self, question: str) -> Any:
        """Its answer; any thread may ask."""
        assert self._process.stdin is not None
        with self._lock:
            with suppress(BrokenPipeError):  # it has ended, and has left its reason
                self._process.stdin.write(f"{question}\n")
                self._process.stdin.flush()
            return self._listen()

    def _listen(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        raise MissingComponentError(f"{self._what} ended: {said[-1] if said else 'it said nothing'}")


@contextmanager
def helper(what: str, arguments: Sequence[str], prefix: Sequence[str] = (), module: str = MODULE) -> Iterator[Helper]:
    """``python -m module arguments`` until the block ends; ``what`` names it in an error.

    It is in a group of its own, since Ctrl-C is its owner's affair. Raises `MissingComponentError` when it can't do
    its work.
    """
    command = [*prefix, sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603 - ourselves
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, process_group=0
        )
        try:
            yield Helper(process, errors, what)
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):  # it was killed before it read our last question
        process.stdin.close()
    try:
        process.wait(_ENDS_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


# In the helper


def say(answer: Any) -> None:
    """Tell the owner."""
    print(json.dumps(answer), flush=True)  # noqa: T201 - the owner reads it


def serve(answer: Callable[[str], Any]) -> None:
    """Answer questions until the owner is gone."""
    for line in sys.stdin:
        say(answer(line.strip()))
