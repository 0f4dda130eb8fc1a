"""A build that is stopped, collides with another, or runs out of disk leaves nothing behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from slimgpu.cli.main import main
from tests.support.trees import tar_of, write_layout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_COMMAND = [sys.executable, "-m", "slimgpu"]
_HOLD = """
import sys
from pathlib import Path
from slimgpu.store.files import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def noise() -> bytes:
    """Nothing that compresses; a build of it takes a second or more."""
    return random.Random(7).randbytes(60_000_000)  # noqa: S311 - no secret


def image_of(path: Path, content: bytes) -> str:
    return write_layout(path / "image", [tar_of({"opt/noise": content, "var/lib/apt/lists/l": b"x"})], form="tar")


def listing(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


def interrupted(build: subprocess.Popen[str], number: int = signal.SIGINT) -> tuple[int, str]:
    """Interrupt the build with its children, as a terminal does; gives exit code and stderr."""
    os.killpg(build.pid, number)
    _, error = build.communicate(timeout=60)
    return build.returncode, error.lstrip("\n")


def _heed_interrupts() -> None:
    """Shells start what they put into the background with SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def started(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*_COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_heed_interrupts,  # noqa: PLW1509 - a test has no threads yet
    )


@pytest.mark.parametrize("to", ["oci:{}/slim", "oci-archive:{}/slim.tar", "docker-archive:{}/slim.tar"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_before_the_first_layer(tmp_path: Path, to: str, number: int) -> None:
    """The plan comes through a pipe, so the build stands where it reads it: locked, unpacked, nothing written."""
    image = image_of(tmp_path, b"x" * 1000)
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "plan")
    build = started("build", image, "--to", to.format(tmp_path / "out"), "--plan", tmp_path / "plan")
    with (tmp_path / "plan").open("wb"):
        assert listing(tmp_path / "out"), "the destination is locked by now"
        code, error = interrupted(build, number)
    assert (code, error) == (130, "slimgpu: interrupted; nothing was left half-written\n")
    assert listing(tmp_path / "out") == []


def size_of(path: Path) -> int:
    """0 for a file that has just got its name."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_interrupted_while_layers_are_written(tmp_path: Path, noise: bytes, form: str, cache: Path) -> None:
    image = image_of(tmp_path, noise)
    out = tmp_path / "out"
    out.mkdir()
    build = started("build", image, "--to", f"oci:{out}/slim", "--format", form, "-j", 1)
    while build.poll() is None and not any(map(size_of, out.glob(".slim*/blobs/sha256/.blob*"))):
        os.sched_yield()
    assert build.poll() is None, build.communicate()
    code, error = interrupted(build)
    assert (code, error) == (130, "slimgpu: interrupted; nothing was left half-written\n")
    assert listing(out) == []
    assert not [path for path in cache.rglob("*") if path.name.endswith(".partial") or path.parent.name == "tmp"]
    assert main(["-q", "build", image, "--to", f"oci:{out}/slim"]) == 0


def test_killed_and_run_again(tmp_path: Path) -> None:
    """What a kill leaves does not stand in the way of the next build."""
    image = image_of(tmp_path, b"x" * 1000)
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "plan")
    build = started("build", image, "--to", f"oci:{tmp_path}/out/slim", "--plan", tmp_path / "plan")
    with (tmp_path / "plan").open("wb"):
        assert interrupted(build, signal.SIGKILL)[0] == -signal.SIGKILL
    assert main(["-q", "build", image, "--to", f"oci:{tmp_path}/out/slim"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["slim"]


@contextmanager
def held(path: Path) -> Iterator[None]:
    """The destination in the hands of another process."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield
        other.communicate()


@pytest.mark.parametrize("to", ["oci:{}/slim", "oci:{}/slim:v2", "oci-archive:{}/slim", "docker-archive:{}/slim"])
def test_two_builds_into_one_destination(tmp_path: Path, capfd: pytest.CaptureFixture[str], to: str) -> None:
    image = image_of(tmp_path, b"x" * 1000)
    (tmp_path / "out").mkdir()
    with held(tmp_path / "out" / "slim"):
        before = listing(tmp_path / "out")
        assert main(["build", image, "--to", to.format(tmp_path / "out")]) == 1
        assert "is being written by another slimgpu" in capfd.readouterr().err
        assert listing(tmp_path / "out") == before
    assert main(["-q", "build", image, "--to", to.format(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["slim"]


@contextmanager
def disk(path: Path, size: str) -> Iterator[None]:
    """A small disk at the directory; mounting takes root."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize("to", ["oci:{}/slim", "oci-archive:{}/slim.tar", "docker-archive:{}/slim.tar"])
def test_a_full_disk_at_the_destination(
    tmp_path: Path, noise: bytes, capfd: pytest.CaptureFixture[str], to: str
) -> None:
    image = image_of(tmp_path, noise[:12_000_000])
    with disk(tmp_path / "out", "8m"):
        assert main(["build", image, "--to", to.format(tmp_path / "out")]) == 1
        out, error = capfd.readouterr()
        assert (out, len(error.splitlines())) == ("", 1)
        assert "no space is left on the disk" in error
        assert "--to" in error
        assert listing(tmp_path / "out") == []


def test_a_full_disk_under_an_existing_layout(tmp_path: Path, noise: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    small, large = image_of(tmp_path / "a", b"x" * 1000), image_of(tmp_path / "b", noise[:12_000_000])
    with disk(tmp_path / "out", "8m"):
        assert main(["-q", "build", small, "--to", f"oci:{tmp_path}/out/slim:small"]) == 0
        before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
        assert main(["build", large, "--to", f"oci:{tmp_path}/out/slim:large"]) == 1
        assert "no space is left on the disk" in capfd.readouterr().err
        assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_a_full_disk_under_the_cache(
    tmp_path: Path, noise: bytes, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_of(tmp_path, noise[:12_000_000])
    (tmp_path / "out").mkdir()
    with disk(tmp_path / "cache", "8m"):
        monkeypatch.setenv("SLIMGPU_CACHE_DIR", str(tmp_path / "cache"))
        assert main(["build", image, "--to", f"oci:{tmp_path}/out/slim"]) == 1
        error = capfd.readouterr().err
        assert "no space is left on the disk" in error
        assert "SLIMGPU_CACHE_DIR" in error
        assert not list((tmp_path / "cache").rglob("*.partial"))
    assert listing(tmp_path / "out") == []
