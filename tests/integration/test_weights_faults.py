"""Weights from a real registry behind a proxy that misbehaves: what arrives is right, or an error in one sentence."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from slimgpu.errors import RegistryError, SlimgpuError
from slimgpu.oci.reference import parse_reference
from slimgpu.store import peer
from slimgpu.store import registry as registry_module
from slimgpu.store.cache import Cache
from slimgpu.store.context import Context
from slimgpu.weights import load, schedule, stream
from slimgpu.weights.artifact import open_weights
from slimgpu.weights.copy import copy_artifact, write_tree
from tests.support import faults
from tests.support.faults import Fault, Faults
from tests.support.weights import (
    child,
    content,
    digests,
    ended,
    kill,
    noise,
    pack_to,
    small_model,
    trained,
    write_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.support.registry import Registry

pytestmark = pytest.mark.timeout(300)

_PASSING = [
    faults.drop(),
    faults.truncate(),
    faults.corrupt(),
    faults.wrong_length(),
    faults.wrong_length(-100),
    faults.wrong_range(),
    faults.ignore_range(),
    faults.html(),
    faults.html(206),
    faults.status(500),
    faults.status(503, headers={"Retry-After": "0"}),
    faults.status(429, headers={"Retry-After": "0"}),
]
_FOR_GOOD = [*_PASSING, faults.status(404), faults.status(416), faults.status(403), faults.stall(), faults.stall(0.0)]


def _named(fault: Fault) -> str:
    return fault.name


def _tensors() -> dict[str, object]:
    return {**small_model(), "model.layers.1.large": trained("BF16", 3_000_000, seed=77)}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faults") / "model"
    write_model(root, _tensors())  # type: ignore[arg-type]
    return root


@pytest.fixture(scope="session")
def repository(registry: Registry, model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of the artifact, behind any host that leads to the registry."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIMGPU_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        pack_to(f"docker://{registry.host}/faults/model:v1", model)
    return "faults/model:v1"


@pytest.fixture(scope="session")
def expected() -> str:
    return digests({name: memoryview(values.data) for name, values in _tensors().items()})  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLIMGPU_MEMORY_DIR", str(tmp_path / "memory"))
    monkeypatch.setenv("SLIMGPU_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(schedule, "RANGE", 300_000)  # many ranges of a small model
    return tmp_path / "memory"


@pytest.fixture
def proxy(registry: Registry) -> Iterator[Faults]:
    with Faults(f"http://{registry.host}") as running:
        yield running


def _is_range(method: str, path: str, headers: Mapping[str, str]) -> bool:
    return method == "GET" and "/blobs/" in path and "Range" in headers


def _left(memory: Path) -> list[str]:
    return [path.name for path in memory.glob("*/")]


@pytest.mark.parametrize("fault", _PASSING, ids=_named)
def test_a_passing_fault_of_the_only_source(
    proxy: Faults, repository: str, expected: str, memory: Path, fault: Fault
) -> None:
    proxy.plan(fault, _is_range, times=2)
    assert digests(load(f"docker://{proxy.host}/{repository}")) == expected
    assert [exchange.fault for exchange in proxy.asked() if exchange.fault]
    assert _left(memory) == []


_TOLD = [
    faults.drop(),
    faults.truncate(),
    faults.corrupt(),
    faults.wrong_length(-100),
    faults.wrong_range(),
    faults.ignore_range(),
    faults.html(),
    faults.status(404),
    faults.status(416),
    faults.status(403),
]


@pytest.mark.parametrize("fault", _TOLD, ids=_named)
def test_the_only_source_is_broken_for_good(proxy: Faults, repository: str, memory: Path, fault: Fault) -> None:
    proxy.plan(fault, _is_range)
    with pytest.raises(SlimgpuError) as caught:
        load(f"docker://{proxy.host}/{repository}")
    assert "\n" not in str(caught.value)
    assert proxy.host in str(caught.value)
    assert _left(memory) == []


@pytest.fixture(params=["first", "second"])
def two(request: pytest.FixtureRequest, proxy: Faults, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> str:
    """The host to name, with the other one as a peer: the proxy first or second."""
    hosts = [proxy.host, registry.host] if request.param == "first" else [registry.host, proxy.host]
    monkeypatch.setenv("SLIMGPU_PEERS", hosts[1])
    return hosts[0]


@pytest.mark.parametrize("fault", _FOR_GOOD, ids=_named)
def test_a_broken_source_beside_a_whole_one(
    proxy: Faults, two: str, repository: str, expected: str, memory: Path, fault: Fault
) -> None:
    proxy.plan(fault, _is_range)
    assert digests(load(f"docker://{two}/{repository}")) == expected
    assert [exchange for exchange in proxy.asked() if exchange.fault]
    assert _left(memory) == []


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What may take ten seconds, or a minute, may take one; what drips takes hours."""
    monkeypatch.setattr(registry_module, "RANGE_TIMEOUT", (5.0, 1.0))
    monkeypatch.setattr(registry_module, "TIMEOUT", (5.0, 1.0))
    monkeypatch.setattr(peer, "_TIMEOUT", (5.0, 1.0))


_DRIPS = [faults.drip(), faults.drip(0.0), faults.drip_head()]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", _DRIPS, ids=["half", "body", "head"])
def test_a_source_that_drips_beside_a_whole_one(
    proxy: Faults, two: str, repository: str, expected: str, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody helps at the end, so that what it has been given is only had elsewhere when it is given up."""
    monkeypatch.setattr(schedule, "_HEDGE_AFTER", 10_000.0)
    proxy.plan(fault, _is_range)
    assert digests(load(f"docker://{two}/{repository}")) == expected
    assert [exchange for exchange in proxy.asked() if exchange.fault]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", _DRIPS, ids=["half", "body", "head"])
def test_the_only_source_drips_for_good(proxy: Faults, repository: str, memory: Path, fault: Fault) -> None:
    proxy.plan(fault, _is_range)
    with pytest.raises(RegistryError) as caught:
        load(f"docker://{proxy.host}/{repository}")
    assert "\n" not in str(caught.value)
    assert proxy.host in str(caught.value)
    assert _left(memory) == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", _DRIPS, ids=["half", "body", "head"])
@pytest.mark.parametrize("what", ["manifest", "index", "blob"])
def test_documents_and_whole_blobs_that_drip(
    proxy: Faults, repository: str, tmp_path: Path, fault: Fault, what: str
) -> None:
    reference = parse_reference(f"docker://{proxy.host}/{repository}")
    with open_weights(reference, Context(Cache(), 2)) as weights:
        manifest = weights.artifact.manifest
    part = {"manifest": "/manifests/", "index": manifest.config.digest, "blob": manifest.layers[0].digest}[what]
    proxy.plan(fault, lambda method, path, _: method == "GET" and part in path)
    with pytest.raises(RegistryError) as caught:
        copy_artifact(reference, parse_reference(f"oci:{tmp_path}/copy:v1"), Context(Cache(), 2))
    assert "\n" not in str(caught.value)
    assert proxy.host in str(caught.value)
    assert [exchange for exchange in proxy.asked() if exchange.fault]
    assert not (tmp_path / "copy").exists()


def test_a_source_that_disappears_in_the_middle(proxy: Faults, two: str, repository: str, expected: str) -> None:
    proxy.plan(faults.disappear(), _is_range, skip=4)
    assert digests(load(f"docker://{two}/{repository}")) == expected


def test_a_source_that_comes_back(proxy: Faults, repository: str, expected: str) -> None:
    proxy.plan(faults.disappear(), _is_range, times=1, skip=4)
    back = threading.Timer(1.0, proxy.appear)
    back.start()
    assert digests(load(f"docker://{proxy.host}/{repository}")) == expected
    back.join()


def test_peers_that_are_not_there_are_left_out(
    proxy: Faults, repository: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Faults("http://127.0.0.1:1") as gone:
        host = gone.host
    monkeypatch.setenv("SLIMGPU_PEERS", f" {host} ,,{host}")
    assert digests(load(f"docker://{proxy.host}/{repository}")) == expected


@contextmanager
def _silent() -> Iterator[str]:
    """A peer that takes requests and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def _refusing() -> Iterator[str]:
    with Faults("http://127.0.0.1:1") as gone:
        host = gone.host
    yield host


@pytest.mark.timeout(60)  # Linux itself gives up a connection after two minutes
@pytest.mark.parametrize("dead", [faults.blackhole, _silent, _refusing])
def test_the_first_tensors_do_not_wait_for_a_peer_that_is_dead(
    proxy: Faults,
    repository: str,
    expected: str,
    dead: Callable[[], AbstractContextManager[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor for the end of the fetch: the last range only comes when the first tensors are there."""
    monkeypatch.setattr(peer, "_TIMEOUT", (100_000.0, 100_000.0))
    monkeypatch.setattr(schedule, "_HEDGE_AFTER", 100_000.0)
    with open_weights(parse_reference(f"docker://{proxy.host}/{repository}"), Context(Cache(), 2)) as weights:
        chunks = weights.index.chunks
    last = schedule.ranges(weights.index, range(len(chunks)))[-1]
    assert len(schedule.ranges(weights.index, range(len(chunks)))) > 4
    here = threading.Event()
    proxy.plan(faults.hold(here), lambda *asked: f"bytes={last.offset}-" in asked[2].get("Range", ""))
    tensors = {}
    with dead() as host:
        monkeypatch.setenv("SLIMGPU_PEERS", host)
        for name, data in stream(f"docker://{proxy.host}/{repository}"):
            tensors[name] = data
            if len(tensors) == 3:
                here.set()
    assert digests(tensors) == expected


@pytest.mark.parametrize("seed", range(6))
def test_any_mixture_of_faults_on_both_sources(
    registry: Registry, repository: str, expected: str, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    kinds = [fault for fault in _PASSING if not fault.name.startswith("status 50")]
    with Faults(f"http://{registry.host}") as one, Faults(f"http://{registry.host}") as other:
        for number, source in enumerate((one, other)):
            source.plan_randomly(kinds, 0.3, 10 * seed + number, _is_range)
        monkeypatch.setenv("SLIMGPU_PEERS", other.host)
        assert digests(load(f"docker://{one.host}/{repository}")) == expected


@pytest.mark.parametrize("seed", range(3))
def test_files_that_are_written_back_through_faults(
    proxy: Faults, repository: str, model: Path, tmp_path: Path, seed: int
) -> None:
    proxy.plan_randomly(
        [faults.drop(), faults.corrupt(), faults.truncate(), faults.wrong_range()], 0.2, seed, _is_range
    )
    context = Context(Cache(), 2)
    with open_weights(parse_reference(f"docker://{proxy.host}/{repository}"), context) as weights:
        write_tree(weights, tmp_path / "out", context)
    assert content(tmp_path / "out") == content(model)


def test_a_pull_that_broke_off_is_gone_on_from(proxy: Faults, repository: str, model: Path, tmp_path: Path) -> None:
    context = Context(Cache(), 2)

    def pull() -> None:
        with open_weights(parse_reference(f"docker://{proxy.host}/{repository}"), context) as weights:
            write_tree(weights, tmp_path / "out", context)

    proxy.plan(faults.status(403), _is_range, skip=3)
    with pytest.raises(SlimgpuError):
        pull()
    assert not (tmp_path / "out").exists()
    before = len(proxy.asked("/blobs/"))
    proxy.heal()
    pull()
    assert content(tmp_path / "out") == content(model)
    again = {exchange.headers["Range"] for exchange in proxy.asked("/blobs/")[before:] if "Range" in exchange.headers}
    first = {e.headers["Range"] for e in proxy.asked("/blobs/")[:before] if "Range" in e.headers and not e.fault}
    assert len(first) == 3
    assert not first & again


def _kept(tmp_path: Path) -> Path:
    return max((tmp_path / "cache" / "weights" / "blobs").iterdir(), key=lambda path: path.stat().st_size)


def _load_until_kept(proxy: Faults, repository: str, expected: str) -> None:
    """What is kept is not waited for, so some of it may only be there after the next run."""
    for _ in range(20):
        proxy.exchanges.clear()
        assert digests(load(f"docker://{proxy.host}/{repository}")) == expected
        if not [exchange for exchange in proxy.asked() if "Range" in exchange.headers]:
            return
    raise AssertionError("always fetched again")


def test_what_is_on_the_disk_is_not_fetched_again(proxy: Faults, repository: str, expected: str) -> None:
    _load_until_kept(proxy, repository, expected)


def test_a_wrong_byte_on_the_disk_is_noticed_and_fetched_again(
    proxy: Faults, repository: str, expected: str, tmp_path: Path
) -> None:
    _load_until_kept(proxy, repository, expected)
    kept = _kept(tmp_path)
    before = kept.read_bytes()
    with kept.open("r+b") as file:
        file.seek(len(before) // 2)
        file.write(bytes([before[len(before) // 2] ^ 1]))
    proxy.exchanges.clear()
    assert digests(load(f"docker://{proxy.host}/{repository}")) == expected
    assert [exchange for exchange in proxy.asked() if "Range" in exchange.headers]
    _load_until_kept(proxy, repository, expected)
    assert _kept(tmp_path).read_bytes() == before


def test_the_disk_has_its_bound(
    proxy: Faults, repository: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMGPU_WEIGHTS_CACHE_SIZE", "1MB")
    assert digests(load(f"docker://{proxy.host}/{repository}")) == expected
    used = sum(path.stat().st_blocks * 512 for path in (tmp_path / "cache" / "weights" / "blobs").iterdir())
    assert used < 1_200_000


@pytest.mark.parametrize("seed", range(5))
def test_killed_while_it_fetched_from_a_registry(
    proxy: Faults, repository: str, expected: str, memory: Path, seed: int
) -> None:
    ref = f"docker://{proxy.host}/{repository}"
    proxy.plan(faults.stall(0.5, seconds=0.05), _is_range)
    process = child("load", ref)
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()
    process.stdin.write("\n")
    process.stdin.flush()
    while len(proxy.asked("/blobs/")) < 2 + 3 * seed:
        assert process.poll() is None
        threading.Event().wait(0.001)
    kill(process)
    other = child("load", ref)
    assert other.communicate("\n", timeout=60)[0].split()[-1] == expected
    assert digests(load(ref)) == expected
    assert _left(memory) == []


def test_two_at_once_fetch_once(proxy: Faults, repository: str, expected: str, memory: Path) -> None:
    ref = f"docker://{proxy.host}/{repository}"
    proxy.plan(faults.stall(0.5, seconds=0.2), _is_range)
    processes = [child("load", ref) for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [ended(process).split()[-1] for process in processes] == [expected] * 3
    asked = [exchange.headers["Range"] for exchange in proxy.asked("/blobs/") if "Range" in exchange.headers]
    assert len(asked) == len(set(asked))
    assert _left(memory) == []


def test_bytes_that_are_wrong_in_the_registry_itself(registry: Registry, tmp_path: Path, memory: Path) -> None:
    (tmp_path / "file.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    write_model(tmp_path / "wrong", {"w": trained("BF16", 100_000, seed=123)})
    packed = pack_to(f"docker://{registry.host}/faults/wrong:v1", tmp_path / "wrong")
    blob = registry.blob(packed.index.blobs[0].digest)
    os.chmod(blob, 0o644)  # noqa: PTH101 - of the registry's own file
    blob.write_bytes(noise(blob.stat().st_size))
    with pytest.raises(SlimgpuError, match="does not have the digest that its index names"):
        load(f"docker://{registry.host}/faults/wrong:v1")
    assert _left(memory) == []
