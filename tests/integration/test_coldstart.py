"""``prefetch`` and ``run`` with a real registry, killed and interrupted at any time, and neighbours that serve."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slimgpu.errors import RegistryError
from slimgpu.oci.reference import parse_reference
from slimgpu.progress import SILENT
from slimgpu.store.cache import Cache
from slimgpu.store.transport import open_artifact
from slimgpu.weights.load import load
from slimgpu.weights.stripes import Stripes
from tests.support.command import slimgpu, slimgpu_json
from tests.support.models import tree_of, write_model
from tests.support.processes import answers, free_port, service
from tests.support.registry import running_registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.registry import Registry

_COMMAND = [sys.executable, "-m", "slimgpu"]
_LOAD = """
import hashlib, os, sys
import slimgpu.weights
total = hashlib.sha256()
for name, tensor in sorted(slimgpu.weights.load(os.environ["SLIMGPU_WEIGHTS"]).items()):
    data = tensor if isinstance(tensor, memoryview) else tensor.contiguous().view(-1).view(__import__("torch").uint8)
    total.update(name.encode() + bytes(data))
print(total.hexdigest())
"""
_WAIT = """
import os, signal, sys, time
def ended(number, frame):
    print("signal", number, flush=True)
    if number == signal.SIGTERM:
        sys.exit(9)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, ended)
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMGPU_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SLIMGPU_MEMORY_DIR", str(tmp_path / "memory"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "large", width=2048)


@pytest.fixture
def packed(registry: Registry, model: Path) -> str:
    reference = f"docker://{registry.host}/coldstart/large:v1"
    slimgpu("-q", "weights", "pack", str(model), "--to", reference)
    return reference


def region_of(tmp_path: Path) -> Path:
    (found,) = (path.parent for path in (tmp_path / "memory").glob("*/index"))
    return found


def chunks_there(tmp_path: Path) -> int:
    return sum(sum(map(bool, path.read_bytes())) for path in (tmp_path / "memory").glob("*/state"))


def is_right(tmp_path: Path, model: Path, packed: str) -> bool:
    """Whether the region holds all files, byte for byte."""
    folder = region_of(tmp_path)
    files = slimgpu_json("weights", "list", packed)["files"]
    places = [0, *accumulate(-(-file["bytes"] // 4096) * 4096 for file in files)]
    with ExitStack() as stack:
        data = Stripes(folder, places[-1])
        data.open(stack)
        view = data.view()
    for at, file in zip(places, files, strict=False):
        if view[at : at + file["bytes"]] != (model / file["path"]).read_bytes():
            return False
    return all((folder / "state").read_bytes())


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*_COMMAND, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_interrupts,  # noqa: PLW1509 - a test has no threads yet
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_prefetch_that_is_ended_and_started_again(
    packed: str, model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    first = started("prefetch", packed)
    while first.poll() is None and not chunks_there(tmp_path):
        time.sleep(0.001)
    first.send_signal(number)
    error = first.communicate()[1]
    if number is not signal.SIGKILL:
        assert (first.returncode, error.strip()) == (
            130,
            "slimgpu: interrupted; what has been fetched stays, and the next start goes on from there",
        )
    assert 0 < chunks_there(tmp_path) < len((region_of(tmp_path) / "state").read_bytes()), "it was in the middle"
    found = slimgpu("-q", "prefetch", packed).strip()
    assert found == str(region_of(tmp_path))
    assert is_right(tmp_path, model, packed)


def test_without_keep_the_memory_is_given_back_in_the_end(packed: str, model: Path, tmp_path: Path) -> None:
    held = started("-q", "prefetch", packed, "--no-keep")
    assert held.stdout is not None
    assert held.stdout.readline().strip() == str(region_of(tmp_path))
    assert is_right(tmp_path, model, packed)
    held.terminate()
    held.communicate()
    assert held.returncode == 130
    assert not list((tmp_path / "memory").glob("*/data.*"))


def test_two_prefetches_and_a_consumer_at_once(packed: str, model: Path, tmp_path: Path) -> None:
    both = [started("-q", "prefetch", packed) for _ in range(2)]
    expected = loaded(f"oci:{tmp_path}/plain:v1", packed)
    outs = [each.communicate() for each in both]
    assert [each.returncode for each in both] == [0, 0], outs
    assert outs[0] == outs[1]
    assert is_right(tmp_path, model, packed)
    assert loaded(packed, packed) == expected


def loaded(reference: str, packed: str) -> str:
    """The digest over what a program gets that loads the artifact from a layout, or from where it is."""
    if reference != packed:
        slimgpu("weights", "push", packed, reference)
    environment = {**os.environ, "SLIMGPU_WEIGHTS": reference}
    called = [sys.executable, "-c", _LOAD]
    return subprocess.run(called, env=environment, capture_output=True, text=True, check=True).stdout


def test_run_beside_a_consumer(packed: str, tmp_path: Path) -> None:
    expected = loaded(f"oci:{tmp_path}/plain:v1", packed)
    run = subprocess.run(
        [*_COMMAND, "run", packed, "--", sys.executable, "-c", _LOAD], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, expected, "")
    assert not list((tmp_path / "memory").glob("*/data.*"))


def test_run_keeps_what_it_is_told_to(packed: str, model: Path, tmp_path: Path) -> None:
    called = [*_COMMAND, "run", "--keep", packed, "--", sys.executable, "-c", _LOAD]
    subprocess.run(called, capture_output=True, check=True)
    assert is_right(tmp_path, model, packed)


def test_signals_are_passed_on_and_the_fetcher_ends(packed: str, tmp_path: Path) -> None:
    run = started("run", packed, "--", sys.executable, "-c", _WAIT)
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        time.sleep(0.1)
        run.send_signal(number)
        assert run.stdout.readline() == f"signal {int(number)}\n"
    error = run.communicate(timeout=30)[1]
    assert (run.returncode, error) == (9, "")
    assert not list((tmp_path / "memory").glob("*/data.*"))


def fetchers(reference: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"prefetch" in words and reference.encode() in words:
            found.append(int(path.parent.name))
    return found


def test_a_run_that_is_killed_leaves_no_fetcher_behind(packed: str) -> None:
    run = started("run", packed, "--", sys.executable, "-c", _WAIT)
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 20
    while not fetchers(packed) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert fetchers(packed)
    (child,) = children(run.pid, but=fetchers(packed))
    run.kill()
    while fetchers(packed) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not fetchers(packed)
    os.kill(child, signal.SIGTERM)
    run.communicate()


def children(parent: int, but: list[int]) -> list[int]:
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [pid for pid in map(int, found) if pid not in but]


def test_a_fetch_that_fails_does_not_end_the_command(registry: Registry) -> None:
    """It ends when its complaint has been read."""
    run = started("run", f"{registry.host}/no/such:thing", "--", "sh", "-c", "read -r told; exit 4")
    assert run.stdin is not None
    assert run.stderr is not None
    assert "does not exist" in run.stderr.readline()
    assert run.poll() is None
    out, error = run.communicate("\n", timeout=60)
    assert (run.returncode, out, error) == (4, "", "")


@contextmanager
def neighbour(tmp_path: Path, *source: str) -> Iterator[str]:
    port = free_port()
    command = [*_COMMAND, "weights", "serve", *source, "--listen", f"127.0.0.1:{port}"]
    with service(command, lambda: answers(port), tmp_path / "serve.log"):
        yield f"127.0.0.1:{port}"


def test_a_neighbours_cache_is_a_source(
    packed: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slimgpu("-q", "prefetch", packed)
    digest = slimgpu_json("weights", "list", packed)["digest"]
    with neighbour(tmp_path) as host:
        monkeypatch.setenv("SLIMGPU_CACHE_DIR", str(tmp_path / "cache2"))
        monkeypatch.setenv("SLIMGPU_MEMORY_DIR", str(tmp_path / "memory2"))
        for name in ("v1", f"v1@{digest}"):
            served = f"{host}/coldstart/large:{name}"
            assert slimgpu_json("weights", "verify", served)["digest"] == digest
        slimgpu("weights", "pull", f"{host}/coldstart/large:v1", str(tmp_path / "back"))
        assert tree_of(tmp_path / "back") == tree_of(model)
        with pytest.raises(RuntimeError, match="does not exist"):
            slimgpu("weights", "list", f"{host}/coldstart/other:v1")


def test_what_is_here_and_named_by_its_digest_needs_no_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "registry").mkdir()
    with running_registry(tmp_path / "registry") as registry:
        tagged = f"docker://{registry.host}/coldstart/small:v1"
        slimgpu("-q", "weights", "pack", str(tmp_path / "model"), "--to", tagged)
        found = slimgpu_json("weights", "list", tagged)
        named = f"{tagged}@{found['digest']}"
        with open_artifact(parse_reference(tagged), Cache(), SILENT) as (artifact, _):
            index = artifact.manifest.config.digest
        slimgpu("-q", "prefetch", tagged)
    for where in ("memory", "another"):  # from memory, then from the disk
        monkeypatch.setenv("SLIMGPU_MEMORY_DIR", str(tmp_path / where))
        tensors = load(named)
        assert len(tensors) == len(found["tensors"])
        assert {name: bytes(data) for name, data in load(tagged, index=index).items()} == tensors
        slimgpu("-q", "prefetch", named)
        with pytest.raises(RegistryError, match="out of reach"):
            load(tagged)
        with pytest.raises(RuntimeError, match="out of reach"):
            slimgpu("weights", "verify", named)  # which is about the registry


def test_what_a_neighbour_lacks_comes_from_the_registry(
    packed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The neighbour has a part of the blob only."""
    first = started("prefetch", packed)
    while first.poll() is None and not chunks_there(tmp_path):
        time.sleep(0.001)
    first.kill()
    first.communicate()
    with neighbour(tmp_path) as host:
        monkeypatch.setenv("SLIMGPU_CACHE_DIR", str(tmp_path / "cache2"))
        monkeypatch.setenv("SLIMGPU_MEMORY_DIR", str(tmp_path / "memory2"))
        monkeypatch.setenv("SLIMGPU_PEERS", host)
        folder = slimgpu("-q", "prefetch", packed).strip()
        assert all((tmp_path / folder / "state").read_bytes())
        assert slimgpu_json("weights", "load", packed, "--check")["tensors"] == 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serving_ends_when_it_is_told_to(number: signal.Signals) -> None:
    serving = started("weights", "serve", "--listen", "127.0.0.1:0")
    assert serving.stdout is not None
    assert serving.stdout.readline().startswith("127.0.0.1:")
    serving.send_signal(number)
    assert serving.communicate()[1] == ""
    assert serving.returncode == 0


def test_a_layout_is_served(packed: str, tmp_path: Path) -> None:
    slimgpu("weights", "push", packed, f"oci:{tmp_path}/layout:v1")
    with neighbour(tmp_path, f"oci:{tmp_path}/layout") as host:
        assert slimgpu_json("weights", "verify", f"{host}/any/name:v1")["chunks"] > 1
