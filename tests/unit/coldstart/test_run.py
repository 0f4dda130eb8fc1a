from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from slimgpu.coldstart.run import VARIABLE, run_beside
from slimgpu.errors import MissingComponentError
from slimgpu.oci.reference import parse_reference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NOWHERE = parse_reference("oci:/nowhere:x")


@contextmanager
def _errors_in(pipe: Path) -> Iterator[int]:
    """What processes that are started now say on standard error goes to a named pipe, whose handle this is."""
    os.mkfifo(pipe)
    handle, before = os.open(pipe, os.O_RDWR | os.O_NONBLOCK), os.dup(2)
    writing = os.open(pipe, os.O_WRONLY)
    os.dup2(writing, 2)
    try:
        yield handle
    finally:
        os.dup2(before, 2)
        for each in (handle, before, writing):
            os.close(each)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("command", "code"), [("exit 0", 0), ("exit 42", 42), ("kill -KILL $$", 137)])
def test_the_commands_exit_code(command: str, code: int, tmp_path: Path) -> None:
    """A fetch that fails says so, for which the command waits, and no more."""
    waiting = f'read -r said < {tmp_path / "pipe"}; echo "$said" > {tmp_path / "said"}; {command}'
    with _errors_in(tmp_path / "pipe") as left:
        assert run_beside(_NOWHERE, ["sh", "-c", waiting], keep=False) == code
        with pytest.raises(BlockingIOError):
            os.read(left, 1)
    assert (tmp_path / "said").read_text() == "slimgpu: /nowhere does not exist; check the path in oci:/nowhere:x\n"


def test_the_command_gets_our_environment_and_the_reference(tmp_path: Path) -> None:
    program = f"import os; open({str(tmp_path / 'out')!r}, 'w').write(os.environ[{VARIABLE!r}] + os.environ['PATH'])"
    assert run_beside(_NOWHERE, [sys.executable, "-c", program], keep=False) == 0
    assert (tmp_path / "out").read_text() == f"oci:/nowhere:x{os.environ['PATH']}"


def test_commands_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x")
    (tmp_path / "script").write_text("x")
    (tmp_path / "script").chmod(0o755)
    for command, said in (("no-such", "is no command"), (str(tmp_path / "text"), "is no command")):
        with pytest.raises(MissingComponentError, match=said):
            run_beside(_NOWHERE, [command], keep=False)
    with pytest.raises(MissingComponentError, match="cannot be run"):
        run_beside(_NOWHERE, [str(tmp_path / "script")], keep=False)
