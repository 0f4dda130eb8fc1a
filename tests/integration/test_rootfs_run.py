"""Commands of an image in a root file system, without an engine: as root here, as anybody in the module beside."""

from __future__ import annotations

import errno
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slimgpu.errors import ImageError, NotFoundError
from slimgpu.events import Recorder, Stage
from slimgpu.rootfs.command import DEFAULT_PATH, EXEC_VARIABLE, Command, Mount
from slimgpu.rootfs.network import namespace_of
from slimgpu.rootfs.run import running
from tests.support.processes import free_port, run
from tests.support.roots import debian_root, tiny_root

if TYPE_CHECKING:
    from collections.abc import Iterator

_SERVER = """
use IO::Socket::INET;
my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 8000, Listen => 5) or die $@;
$| = 1; print "ready\\n";
while (my $client = $server->accept) {
  while (<$client>) { last if /^\\r?$/ }
  print $client "HTTP/1.0 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nhello"; close $client;
}
"""
_OWNER = """
import sys, time
from pathlib import Path
from slimgpu.events import Recorder
from slimgpu.rootfs.command import DEFAULT_PATH, Command
from slimgpu.rootfs.run import running
command = Command(("sh", "-c", "sleep 1000 & sleep 1000 & echo ready; wait"), {"PATH": DEFAULT_PATH})
with running(Path(sys.argv[1]), command, Recorder()) as process:
    process.stdout.readline()
    print(process.pid, flush=True)
    time.sleep(1000)
"""


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = debian_root(tmp_path_factory.mktemp("debian") / "root")
    yield root
    shutil.rmtree(root)


def shell(text: str, **changes: object) -> Command:
    command = Command(("sh", "-c", text), {"PATH": DEFAULT_PATH})
    return Command(**{name: changes.get(name, getattr(command, name)) for name in Command.__slots__})  # type: ignore[arg-type]


def said(root: Path, command: Command) -> list[str]:
    """The lines of what the command writes, when it ends well."""
    with running(root, command, Recorder()) as process:
        lines = process.stdout.read().decode().splitlines()
        assert process.wait(60) == 0, process.stderr.read()
    return lines


def gone(pid: int) -> None:
    """Wait until the process is no more, or at least no more than a zombie; a test that hangs here fails."""
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/root").exists():
        assert time.monotonic() < deadline, f"{pid} still runs"
        time.sleep(0.01)


def users_of(root: Path) -> list[str]:
    """The processes that see a mount of ``root``, or run in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            inside = str((process / "root").readlink()).startswith(str(root))
            if inside or f" {root} " in (process / "mountinfo").read_text():
                found.append(f"{process.name}: {(process / 'cmdline').read_text()}")
        except OSError:
            continue
    return found


def test_what_a_command_writes_and_its_exit_code(debian: Path) -> None:
    events = Recorder()
    with running(debian, shell("echo out; echo err >&2; exit 7"), events) as process:
        assert process.stdout.read() == b"out\n"
        assert process.stderr.read() == b"err\n"
        assert process.wait(60) == 7
        assert process.poll() == 7
        assert process.processor is not None
    assert [event.stage for event in events.events] == [Stage.START]
    assert said(debian, shell("kill -9 $$; kill -TERM 1; echo still here")) == ["still here"], "as process 1 of engines"
    with running(debian, shell("sh -c 'kill -9 $$'"), Recorder()) as process:
        assert process.wait(60) == 137


def test_the_moment_of_its_begin(debian: Path) -> None:
    events = Recorder()
    before = time.monotonic()
    with running(debian, shell(f"echo ${EXEC_VARIABLE}"), events) as process:
        moment = float(process.stdout.read())
    (event,) = events.events
    assert before <= event.begin < event.end == moment < time.monotonic()


def test_it_ends_with_the_block(debian: Path) -> None:
    with running(debian, shell("sleep 1000 & echo ready; sleep 1000"), Recorder()) as process:
        process.stdout.readline()
        assert process.poll() is None
        with pytest.raises(TimeoutError, match=r"still runs after 0\.01 s"):
            process.wait(0.01)
        pid = process.pid
        assert Path(f"/proc/{pid}/root").resolve() == Path("/")
    assert not Path(f"/proc/{pid}").exists()
    assert not users_of(debian)

    with running(debian, shell("sleep 1000"), Recorder()) as process:
        process.kill()
        assert process.wait(0) == process.poll() == 137

    with pytest.raises(KeyboardInterrupt), running(debian, shell("sleep 1000"), Recorder()):
        raise KeyboardInterrupt
    assert not users_of(debian)


@pytest.mark.parametrize("victim", ["owner", "launcher"])
def test_it_ends_with_whoever_is_killed(debian: Path, victim: str) -> None:
    owner = subprocess.Popen([sys.executable, "-c", _OWNER, debian], stdout=subprocess.PIPE)
    with owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        inside = [int(p.name) for p in Path("/proc").glob("[0-9]*") if _namespace(p.name) == _namespace(str(pid))]
        assert len(inside) == 3
        launcher = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        assert launcher != owner.pid
        os.kill(owner.pid if victim == "owner" else launcher, signal.SIGKILL)
        for process in inside:
            gone(process)
        owner.kill()
    gone(launcher)
    assert not users_of(debian)


def _namespace(pid: str) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return ""


def test_what_there_is_inside(debian: Path) -> None:
    mounts = dict(line.split()[1:3] for line in said(debian, shell("cat /proc/mounts")))
    assert {"/proc": "proc", "/sys": "sysfs", "/dev": "tmpfs", "/dev/pts": "devpts"}.items() <= mounts.items()
    assert {"/dev/shm": "tmpfs", "/dev/mqueue": "mqueue"}.items() <= mounts.items()  # noqa: S108
    assert not [path for path in mounts if str(debian) in path or path.startswith("/work")]
    names = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    assert said(
        debian, shell("echo $(ls /dev); for d in null zero random tty ptmx; do test -c /dev/$d || exit 1; done")
    )
    assert said(debian, shell("echo $(ls /dev)")) == [names]
    assert said(debian, shell("echo a > /dev/null && head -c 3 /dev/zero | wc -c; echo b > /dev/stdout")) == ["3", "b"]
    assert said(debian, shell("hostname; cat /etc/hostname; echo $HOME; pwd; umask")) == [
        *["slimgpu"] * 2,
        *["/root", "/", "0022"],
    ]
    assert said(debian, shell("grep -c localhost /etc/hosts; cat /etc/resolv.conf")) == ["2"]
    assert said(debian, shell("ls -l /proc/self/fd | grep -c '[0-9] ->'; ls /proc | grep -c '^1$'")) == ["4", "1"]
    assert said(
        debian, shell("for s in INT PIPE TERM CHLD; do trap | grep $s; done; grep Sig[BI] /proc/self/status")
    ) == [
        *["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"],
    ]


def test_what_it_may_not(debian: Path) -> None:
    """User 0 without a namespace of users is user 0 of this machine."""
    disk = Path("/").stat().st_dev
    os.mknod(debian / "disk", 0o600 | 0o060000, disk)
    try:
        refused = (
            "echo x > /proc/sys/kernel/core_pattern",
            "echo x > /proc/sysrq-trigger",
            "mkdir /sys/kernel/x",
            f"mknod /tmp/disk b {os.major(disk)} {os.minor(disk)}",
            "head -c 1 /disk",
            "mount -t tmpfs none /mnt",
            "umount /proc",
            "hostname other",
            "chroot / mount -t proc proc /proc",
        )
        for text in refused:
            with running(debian, shell(text), Recorder()) as process:
                assert process.wait(60) != 0, text
        assert said(debian, shell("cat /proc/keys /proc/interrupts; ls /sys/firmware")) == []
    finally:
        (debian / "disk").unlink()
    bounded = said(debian, shell("grep -i cap /proc/self/status"))
    assert [line.split()[1] for line in bounded] == ["0" * 16, *["00000000a00425fb"] * 3, "0" * 16]
    plain = said(debian, shell("grep -i 'cap[pe]\\|newpriv' /proc/self/status", user="daemon", new_privileges=False))
    assert [line.split()[1] for line in plain] == ["0" * 16, "0" * 16, "1"]


def test_users_and_directories(debian: Path) -> None:
    with (debian / "etc/group").open("a") as file:
        file.write("first:x:501:daemon\nsecond:x:502:daemon\n")
    assert said(debian, shell("id -u; id -g; id -G; echo $HOME; pwd", user="daemon", directory="/tmp/new/one")) == [  # noqa: S108
        *["1", "1", "1 501 502", "/usr/sbin", "/tmp/new/one"]  # noqa: S108
    ]
    assert said(debian, shell("id -u; id -g; id -G; echo x > /dev/stderr; echo $HOME", user="4242:501")) == [
        *["4242", "501", "501", "/"]
    ]
    with pytest.raises(NotFoundError, match="no user 'nosuch'"), running(debian, shell("", user="nosuch"), Recorder()):
        pass


def test_what_cannot_be_run(debian: Path) -> None:
    (debian / "opt/script").write_text("#!/no/such/shell\n")
    (debian / "opt/script").chmod(0o755)
    for program, error, message in (
        ("nosuch", NotFoundError, "nosuch is not in the image; check the command and the image's PATH"),
        ("/opt/nosuch", NotFoundError, "/opt/nosuch is not in the image"),
        ("/etc/passwd", ImageError, r"/etc/passwd of the image cannot be run \(Permission denied\)"),
        ("/opt/script", ImageError, "the interpreter that it names is not in the image"),
        ("/opt", ImageError, "cannot be run"),
    ):
        with (
            pytest.raises(error, match=message),
            running(debian, Command((program,), {"PATH": DEFAULT_PATH}), Recorder()),
        ):
            pass
    with (
        pytest.raises(ImageError, match="/etc/passwd of the image is no place for a directory that"),
        running(debian, shell("true", directory="/etc/passwd"), Recorder()),
    ):
        pass
    with (
        pytest.raises(NotFoundError, match="/no/such, to be mounted at /x, does not exist; check the path"),
        running(debian, shell("true", mounts=(Mount(Path("/no/such"), "/x"),)), Recorder()),
    ):
        pass
    assert not users_of(debian)


def test_mounts(debian: Path, tmp_path: Path) -> None:
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe/file").write_text("text\n")
    mounts = (
        Mount(tmp_path / "probe", "/probe"),
        Mount(tmp_path / "probe", "/out/put", writable=True),
        Mount(tmp_path / "probe/file", "/etc/passwd"),
        Mount(Path("/dev/zero"), "/dev/zeros"),
    )
    text = "cat /probe/file /etc/passwd; echo x > /probe/no; echo y > /out/put/yes; head -c 2 /dev/zeros | wc -c"
    assert said(debian, shell(text, mounts=mounts)) == ["text", "text", "2"]
    assert sorted(path.name for path in (tmp_path / "probe").iterdir()) == ["file", "yes"]


def test_shared_memory(debian: Path) -> None:
    """Of its own, of a size; or a part of this machine's."""
    ours = Path(f"/dev/shm/slimgpu-test-{os.getpid()}")  # noqa: S108
    ours.mkdir()
    try:
        (ours / "region").write_text("weights\n")
        size = "echo $(df -B1 --output=size /dev/shm | tail -1)"
        assert said(debian, shell(f"ls /dev/shm; {size}", shared_memory=1 << 20)) == [str(1 << 20)]
        shared = shell(f"ls /dev/shm; cat {ours}/region; echo x > {ours}/x", mounts=(Mount(ours, str(ours)),))
        with running(debian, shared, Recorder()) as process:
            assert process.stdout.read().decode().split() == [ours.name, "weights"]
            assert process.wait(60)
        whole = (Mount(Path("/dev/shm"), "/dev/shm", writable=True),)  # noqa: S108
        assert said(debian, shell(f"cat {ours}/region; rm {ours}/region", mounts=whole)) == ["weights"]
        assert not list(ours.iterdir())
    finally:
        shutil.rmtree(ours)


def test_a_server_in_a_network_of_its_own(debian: Path) -> None:
    devices = "tail -n +3 /proc/net/dev | cut -d: -f1"
    assert [line.strip() for line in said(debian, shell(devices))] == ["lo"]
    command = Command(("perl", "-e", _SERVER), {"PATH": DEFAULT_PATH})
    with running(debian, command, Recorder()) as process:
        assert process.stdout.readline() == b"ready\n", process.stderr.read()
        network = namespace_of(process.pid)
        for _ in range(3):
            connection = http.client.HTTPConnection("127.0.0.1", 8000)
            connection.sock = network.connect(("127.0.0.1", 8000), timeout=30)
            connection.request("GET", "/")
            assert connection.getresponse().read() == b"hello"
            connection.close()
        with pytest.raises(ConnectionRefusedError):
            network.connect(("127.0.0.1", 8001))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", 8000))
    with pytest.raises(NotFoundError, match="has ended"):
        network.connect(("127.0.0.1", 8000))


def test_the_network_of_this_machine(debian: Path) -> None:
    port = free_port()
    server = _SERVER.replace("8000", str(port))
    with running(debian, Command(("perl", "-e", server), {"PATH": DEFAULT_PATH}, network=True), Recorder()) as process:
        assert process.stdout.readline() == b"ready\n", process.stderr.read()
        socket.create_connection(("127.0.0.1", port)).close()
        namespace_of(process.pid).connect(("127.0.0.1", port)).close()
    assert (
        said(debian, shell("cat /etc/resolv.conf", network=True)) == Path("/etc/resolv.conf").read_text().splitlines()
    )


@pytest.mark.parametrize("path", ["proc", "sys", "dev"])
@pytest.mark.parametrize("kind", ["absolute", "relative", "dangling", "file"])
def test_places_that_must_be_directories(tmp_path: Path, path: str, kind: str) -> None:
    root, outside = tiny_root(tmp_path / "root"), tmp_path / "outside"
    outside.mkdir()
    if kind == "file":
        (root / path).write_text("")
    else:
        (root / path).symlink_to({"absolute": outside, "relative": "../outside", "dangling": "nowhere"}[kind])
    with pytest.raises(ImageError, match=f"/{path} of the image is no place for a directory that its commands need"):
        running(root, Command(("/bin/hello",)), Recorder()).__enter__()
    assert not list(outside.iterdir())
    assert not users_of(root)


@pytest.mark.parametrize(
    "link", ["{outside}", "../outside", "../../../../../../../../{outside}", "/proc/self/root{outside}"]
)
@pytest.mark.parametrize("place", ["etc", "etc/resolv.conf", "etc/hosts", "work", "probe"])
def test_links_at_places_to_mount_on(tmp_path: Path, link: str, place: str) -> None:
    """They mean what they mean inside: nothing outside is made, changed or mounted on."""
    root, outside = tiny_root(tmp_path / "root"), tmp_path / "outside"
    outside.mkdir()
    (outside / "hosts").write_text("outside")
    (root / place).parent.mkdir(exist_ok=True)
    (root / place).symlink_to(link.format(outside=outside))
    command = Command(("/bin/hello",), directory="/work", mounts=(Mount(tmp_path, "/probe"),))
    assert said(root, command) == ["hello"]
    assert [path.name for path in outside.iterdir()] == ["hosts"]
    assert (outside / "hosts").read_text() == "outside"
    assert not users_of(root)


def test_no_module_of_the_image_is_imported(tmp_path: Path) -> None:
    """Files that Python would take for its own, at the places where this machine's lie (as in CVE-2019-14271)."""
    root = tiny_root(tmp_path / "root")
    for name in sys.stdlib_module_names:
        for folder in ("", "lib-dynload/"):
            path = root / os.__file__.lstrip("/").replace("os.py", f"{folder}{name}.py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("open('/poison', 'w').close()")
    assert said(root, Command(("/bin/hello",))) == ["hello"]
    with pytest.raises(NotFoundError):
        said(root, Command(("nosuch",)))
    assert not (root / "poison").exists()


def test_the_interpreter_cannot_be_written(tmp_path: Path) -> None:
    """A program that is a link to what starts it (as in CVE-2019-5736): its loader, the image's, tries a chmod."""
    source = tmp_path / "loader.c"
    source.write_text(
        "static long call(long n, long a, long b) { long r;"
        '  __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b) : "rcx", "r11", "memory"); return r; }'
        'void _start(void) { call(60, -call(90, (long)"/proc/self/exe", 0755), 0); }'
    )
    root = tiny_root(tmp_path / "root")
    loader = run("readelf", "-p", ".interp", Path(sys.executable).resolve()).split()[-1]
    (root / loader.lstrip("/")).parent.mkdir(parents=True)
    run("gcc", "-nostdlib", "-static", "-fno-stack-protector", "-o", root / loader.lstrip("/"), source)
    (root / "program").symlink_to("/proc/self/exe")
    with running(root, Command(("/program",)), Recorder()) as process:
        assert process.wait(60) == errno.EROFS
