from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from slimgpu.coldstart.run import VARIABLE, run_beside
from slimgpu.errors import MissingComponentError
from slimgpu.oci.reference import parse_reference

if TYPE_CHECKING:
    from pathlib import Path

_NOWHERE = parse_reference("oci:/nowhere:x")
_ONCE_SAID = "until [ -s /proc/$$/fd/2 ]; do sleep 0.05; done;"
"""Shell that waits for the fetch's complaint: it goes to the same file as what the shell itself would say."""


@pytest.mark.parametrize(("command", "code"), [("exit 0", 0), ("exit 42", 42), ("kill -KILL $$", 137)])
def test_the_commands_exit_code(command: str, code: int, capfd: pytest.CaptureFixture[str]) -> None:
    """A fetch that fails says so, and no more."""
    assert run_beside(_NOWHERE, ["sh", "-c", f"{_ONCE_SAID} {command}"], keep=False) == code
    assert capfd.readouterr().err == "slimgpu: /nowhere does not exist; check the path in oci:/nowhere:x\n"


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
