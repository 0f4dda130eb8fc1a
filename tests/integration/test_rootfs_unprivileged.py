"""Commands of an image in a root file system without an engine and without root: in a namespace of users."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import slimgpu
from tests.support.processes import run
from tests.support.roots import debian_root

if TYPE_CHECKING:
    from collections.abc import Iterator

_NOBODY = 65534
_PROGRAM = """
import http.client, json, os, sys
from pathlib import Path
from slimgpu.errors import SlimgpuError
from slimgpu.events import Recorder
from slimgpu.rootfs.command import DEFAULT_PATH, Command, Mount
from slimgpu.rootfs.network import namespace_of
from slimgpu.rootfs.run import running
root = Path(sys.argv[1])
def command(*words, **changes):
    return Command(words, {"PATH": DEFAULT_PATH}, **changes)
"""
_SAID = """
with running(root, command("sh", "-c", sys.argv[2], user=sys.argv[3]), Recorder()) as process:
    print(json.dumps([process.stdout.read().decode().splitlines(), process.stderr.read().decode(), process.wait(60)]))
"""
_SERVED = """
server = '''use IO::Socket::INET;
my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 8000, Listen => 5) or die $@;
$| = 1; print "ready\\n"; my $client = $server->accept; print $client "hello"; close $client; sleep 1000;'''
with running(root, command("perl", "-e", server), Recorder()) as process:
    assert process.stdout.readline() == b"ready\\n", process.stderr.read()
    connection = namespace_of(process.pid).connect(("127.0.0.1", 8000), timeout=30)
    assert connection.recv(100) == b"hello"
    print("served")
"""
_KILLED = """
import time
with running(root, command("sh", "-c", "sleep 1000 & echo ready; wait"), Recorder()) as process:
    process.stdout.readline()
    print(process.pid, flush=True)
    time.sleep(1000)
"""
_REFUSED = """
try:
    with running(root, command("true"), Recorder()):
        pass
except SlimgpuError as error:
    print(type(error).__name__, error)
"""


@dataclass(frozen=True)
class Nobody:
    """Somebody without any rights, an interpreter that they may read, and a root file system that is theirs."""

    folder: Path
    python: Path

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def command(self, program: str, *arguments: str, options: tuple[str, ...] = ()) -> list[str | Path]:
        identity = ("--reuid", str(_NOBODY), "--regid", str(_NOBODY), "--clear-groups")
        code = _PROGRAM + program
        return ["setpriv", *identity, *options, self.python, "-c", code, self.root, *arguments]

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.folder)}

    def said(self, text: str, user: str = "") -> list[str]:
        """The lines that a shell writes which ends well."""
        lines, errors, code = json.loads(run(*self.command(_SAID, text, user), env=self.env, cwd=Path("/")))
        assert (errors, code) == ("", 0)
        assert isinstance(lines, list)
        return lines


@pytest.fixture(scope="module")
def nobody() -> Iterator[Nobody]:
    with tempfile.TemporaryDirectory(prefix="slimgpu-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(Path(slimgpu.__file__).parent, folder / "slimgpu")
        run("chmod", "-R", "a+rX", folder / "slimgpu")
        debian_root(folder / "root")
        run("chown", "-R", f"{_NOBODY}:{_NOBODY}", folder / "root")
        yield Nobody(folder, _readable_python())


def _readable_python() -> Path:
    """Ours, or the system's where nobody else may read ours."""
    for python in (Path(sys.executable).resolve(), Path("/usr/bin/python3")):
        probe = [
            "setpriv",
            "--reuid",
            str(_NOBODY),
            "--regid",
            str(_NOBODY),
            "--clear-groups",
            "sh",
            "-c",
            'exec "$@"',
            "sh",
        ]
        check = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        found = subprocess.run([*probe, *check], check=False, cwd="/", capture_output=True)
        if found.returncode == 0:
            return python
    raise RuntimeError("nobody but root may run Python here; install the package python3")


def test_whoever_the_command_wants_to_be(nobody: Nobody) -> None:
    identity = "id -u; id -g; echo $HOME; cat /proc/self/uid_map"
    assert [line.split() for line in nobody.said(identity)] == [["0"], ["0"], ["/root"], ["0", str(_NOBODY), "1"]]
    assert [line.split() for line in nobody.said(identity, "daemon")] == [
        *[["1"], ["1"], ["/usr/sbin"], ["1", str(_NOBODY), "1"]]
    ]
    rights = [line.split()[1] for line in nobody.said("grep -i 'cap[pe]' /proc/self/status", "daemon")]
    assert rights == ["0" * 16] * 2


def test_what_there_is_inside(nobody: Nobody) -> None:
    mounts = dict(line.split()[1:3] for line in nobody.said("cat /proc/mounts"))
    assert {"/proc": "proc", "/sys": "sysfs", "/dev": "tmpfs", "/dev/pts": "devpts"}.items() <= mounts.items()
    assert nobody.said("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '; head -c 2 /dev/zero | wc -c") == ["lo", "2"]
    assert nobody.said("echo x > /dev/null; echo y > /tmp/y; stat -c %u /tmp/y; hostname") == ["0", "slimgpu"]
    assert nobody.said("echo x > /dev/stdout") == ["x"]


def test_a_server(nobody: Nobody) -> None:
    assert run(*nobody.command(_SERVED), env=nobody.env, cwd=Path("/")) == "served\n"


def test_it_ends_with_an_owner_that_is_killed(nobody: Nobody) -> None:
    with subprocess.Popen(nobody.command(_KILLED), env=nobody.env, stdout=subprocess.PIPE, cwd="/") as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        os.kill(owner.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_where_namespaces_of_users_are_refused(nobody: Nobody) -> None:
    """As root that has not all rights, in a namespace where the number of further ones is limited to none."""
    limited = [
        "unshare",
        "--user",
        "--map-root-user",
        "sh",
        "-c",
        'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"',
    ]
    dropped = ["setpriv", "--bounding-set", "-sys_admin", nobody.python, "-c", _PROGRAM + _REFUSED, nobody.root]
    answer = run(*limited, "sh", *dropped, env=nobody.env, cwd=Path("/"))
    assert answer.startswith("MissingComponentError an image's command needs namespaces of its own; run as root")
