"""Images pulled to a root file system: from real registries, against umoci, and from those that misbehave."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slimgpu.coldstart import pull
from slimgpu.coldstart.pull import pulled
from slimgpu.errors import (
    DestinationError,
    DigestError,
    ImageError,
    NotFoundError,
    RegistryError,
    SlimgpuError,
    UsageError,
)
from slimgpu.events import Recorder, Stage
from slimgpu.oci.digest import digest_bytes
from slimgpu.oci.reference import parse_reference
from slimgpu.rootfs.attributes import LeftOut
from slimgpu.rootfs.entry import Kind
from slimgpu.store.context import Context
from slimgpu.store.serve import serving
from slimgpu.store.shelf import LayoutShelf
from slimgpu.weights import schedule
from tests.support import faults
from tests.support.disks import limited_disk
from tests.support.faults import Faults
from tests.support.processes import run
from tests.support.store import AMD64, skopeo_copy
from tests.support.trees import File, Hardlink, Special, Symlink, tar_of, write_layout
from tests.support.walk import describe, differences

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from slimgpu.coldstart.pull import PulledImage
    from slimgpu.store.cache import Cache
    from tests.support.faults import Fault
    from tests.support.registry import Registry
    from tests.support.trees import Layer
    from tests.support.walk import Facts

pytestmark = pytest.mark.timeout(300)

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
NOISE = random.Random(1)  # noqa: S311 - no secret
LAYERS: Sequence[Layer] = [
    {
        "": None,
        "bin": Symlink("usr/bin"),
        "usr": None,
        "usr/bin": None,
        "usr/bin/su": File(NOISE.randbytes(9_000_000), mode=0o4755, xattrs=(("security.capability", CAPABILITY),)),
        "etc": File(b"") and None,
        "etc/old": b"goes",
        "etc/kept": File(b"stays", uid=7, mtime=1_600_000_000 * 10**9 + 5),
        "opt": None,
        "opt/full": None,
        "opt/full/1": b"1",
        "pipe": Special(Kind.FIFO),
        "null": Special(Kind.CHARACTER, (1, 3)),
    },
    {"etc": None, "etc/.wh.old": b"", "opt": None, "opt/full": None, "opt/full/.wh..wh..opq": b"", "opt/full/2": b"2"},
    {f"many/{number // 50}/{number}": NOISE.randbytes(number) for number in range(1000)},
    {"many/new": Hardlink("many/0/3"), "many/0/link": Symlink("../1/51"), "x": b"", "bin": Symlink("usr/bin")},
]
"""The third layer names no directories, and the last has a hard link to a file of the third."""
TARS = [tar_of(layer) for layer in LAYERS]


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pull") / "gzip"
    write_layout(root, TARS, {"Cmd": ["/bin/su"]})
    return root


@pytest.fixture(scope="session")
def expected(layout: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Facts]:
    """What umoci makes of the image."""
    copy, target = tmp_path_factory.mktemp("named") / "layout", tmp_path_factory.mktemp("umoci") / "root"
    skopeo_copy(f"oci:{layout}", f"oci:{copy}:it")
    run("umoci", "raw", "unpack", "--image", f"{copy}:it", target)
    return _comparable(describe(target))


def _comparable(facts: Mapping[str, Facts]) -> dict[str, Facts]:
    """Without the times of directories that no layer names, and of the root, which umoci does not set."""
    unnamed = {".", "many", *(f"many/{number}" for number in range(20))}
    return {path: (*each[:3], *each[4:]) if path in unnamed else each for path, each in facts.items()}


@contextmanager
def serve(layout: Path) -> Iterator[str]:
    with serving(LayoutShelf(layout)) as server:
        yield f"docker://127.0.0.1:{server.port}/image:latest"


@contextmanager
def pulling(reference: str, folder: Path, cache: Cache, **more: object) -> Iterator[tuple[PulledImage, Recorder]]:
    events = Recorder()
    context = Context(cache, jobs=2)
    with pulled(parse_reference(reference), folder, context, events, platform=AMD64, **more) as image:  # type: ignore[arg-type]
        yield image, events


def assert_clean(folder: Path) -> None:
    assert list(folder.iterdir()) == []
    assert f"{folder}/" not in Path("/proc/self/mountinfo").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "roots"
    path.mkdir()
    return path


@pytest.mark.parametrize("form", ["gzip", "zstd", "tar"])
def test_from_a_real_registry_as_umoci_unpacks_it(
    form: str, registry: Registry, folder: Path, cache: Cache, expected: Mapping[str, Facts], tmp_path: Path
) -> None:
    name = f"docker://{registry.host}/pull/{form}:v1"
    skopeo_copy(write_layout(tmp_path / "layout", TARS, {"Cmd": ["/bin/su"]}, form=form), name, "--format", "oci")
    with pulling(name, folder, cache) as (image, events):
        facts = _comparable(describe(image.root))
        assert differences(facts, expected) == []
        assert image.overlay
        assert image.config.runtime["Cmd"] == ["/bin/su"]
        assert image.left_out == LeftOut()
        assert image.unpacked == sum(map(len, TARS))
        assert image.files == sum(len(layer) for layer in LAYERS) - 2
        layers = [event.what for event in events.events if event.stage is Stage.PULL]
        assert [event.stage for event in events.events].count(Stage.RESOLVE) == 1
        assert len(set(layers)) == len(TARS)
        assert set(layers) == {event.what for event in events.events if event.stage is Stage.UNPACK}
        assert all(event.begin <= event.end for event in events.events)
        (image.root / "etc/new").write_text("written")
        assert (image.root / "bin/su").exists()
    assert_clean(folder)


def test_from_our_own_registry_and_layouts(
    layout: Path, folder: Path, cache: Cache, expected: Mapping[str, Facts]
) -> None:
    with serve(layout) as name:
        for reference in (name, f"oci:{layout}"):
            with pulling(reference, folder, cache, connections=3) as (image, _):
                assert differences(_comparable(describe(image.root)), expected) == []
                index = (layout / "index.json").read_text()
                assert image.digest in index
    assert_clean(folder)


def test_to_one_directory_where_nothing_can_be_mounted(
    layout: Path, folder: Path, cache: Cache, expected: Mapping[str, Facts], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "can_overlay", lambda _: False)
    with serve(layout) as name, pulling(name, folder, cache) as (image, events):
        assert not image.overlay
        facts = describe(image.root)
        assert differences(_comparable(facts), expected) == []
        assert len(events.events) == 1 + 2 * len(TARS)
    assert_clean(folder)


def test_both_ways_come_to_the_same(layout: Path, folder: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    with pulling(f"oci:{layout}", folder, cache) as (image, _):
        mounted = describe(image.root)
    monkeypatch.setattr(pull, "can_overlay", lambda _: False)
    with pulling(f"oci:{layout}", folder, cache) as (image, _):
        assert differences(describe(image.root), mounted) == []


@pytest.mark.parametrize("count", [0, 1, 57, 120])
def test_any_number_of_layers(count: int, folder: Path, cache: Cache, tmp_path: Path) -> None:
    tars = [tar_of({"top": f"{number}", f"own/{number}": b""}) for number in range(count)]
    with pulling(write_layout(tmp_path / "layout", tars), folder, cache) as (image, _):
        assert image.overlay
        assert len(list(image.root.glob("own/*"))) == count
        assert not count or (image.root / "top").read_text() == str(count - 1)
    assert_clean(folder)


def test_a_large_layer_comes_over_many_connections(folder: Path, cache: Cache, tmp_path: Path) -> None:
    content = NOISE.randbytes(80_000_000)
    name = write_layout(tmp_path / "layout", [tar_of({"large": content, "small": b"s"})], form="tar")
    with serve(tmp_path / "layout") as served, Faults(f"http://{parse_reference(served).host}") as proxy:  # type: ignore[union-attr]
        with pulling(f"docker://{proxy.host}/image:latest", folder, cache, connections=6) as (image, _):
            assert digest_bytes((image.root / "large").read_bytes()) == digest_bytes(content)
        ranges = [each for each in proxy.exchanges if "Range" in each.headers]
        assert len(ranges) >= 20
    assert name
    assert_clean(folder)


_PASSING = [
    faults.drop(),
    faults.truncate(),
    faults.corrupt(),
    faults.wrong_length(),
    faults.wrong_length(-100),
    faults.wrong_range(),
    faults.html(),
    faults.html(206),
    faults.status(500),
    faults.status(503, headers={"Retry-After": "0"}),
    faults.status(429, headers={"Retry-After": "0"}),
]


def _blobs(method: str, path: str, headers: Mapping[str, str]) -> bool:
    return method == "GET" and "/blobs/" in path and "Range" in headers


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_PAUSE", 0.01)


@contextmanager
def misbehaving(layout: Path) -> Iterator[tuple[str, Faults]]:
    with serve(layout) as name, Faults(f"http://{parse_reference(name).host}") as proxy:  # type: ignore[union-attr]
        yield f"docker://{proxy.host}/image:latest", proxy


@pytest.mark.parametrize("fault", _PASSING, ids=lambda fault: fault.name)
def test_faults_that_pass(
    fault: Fault, layout: Path, folder: Path, cache: Cache, expected: Mapping[str, Facts]
) -> None:
    with misbehaving(layout) as (name, proxy):
        proxy.plan(fault, match=_blobs, times=1, skip=1)
        with pulling(name, folder, cache) as (image, _):
            assert differences(_comparable(describe(image.root)), expected) == []
        assert fault.name in [each.fault for each in proxy.exchanges]
    assert_clean(folder)


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (faults.drop(), RegistryError, "broke off"),
        (faults.corrupt(), DigestError, "has the digest"),
        (faults.status(404), NotFoundError, "lacks bytes"),
        (faults.status(403), RegistryError, "does not let us use"),
        (faults.status(500), RegistryError, "answered 500"),
        (faults.disappear(), RegistryError, "out of reach|broke off"),
        (faults.ignore_range(), RegistryError, "serves no parts of blobs"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_faults_that_stay(
    fault: Fault, kind: type[SlimgpuError], message: str, folder: Path, cache: Cache, tmp_path: Path
) -> None:
    write_layout(tmp_path / "layout", [tar_of({"f": NOISE.randbytes(9_000_000)})], form="tar")
    with misbehaving(tmp_path / "layout") as (name, proxy):
        proxy.plan(fault, match=_blobs, skip=1)
        with pytest.raises(kind, match=message) as caught, pulling(name, folder, cache):
            pass
        assert "sha256:" in str(caught.value) or proxy.host in str(caught.value)
    assert_clean(folder)


@pytest.mark.parametrize("overlay", [True, False])
def test_layers_that_are_wrong(
    overlay: bool,  # noqa: FBT001
    folder: Path,
    cache: Cache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not overlay:
        monkeypatch.setattr(pull, "can_overlay", lambda _: False)
    good, broken = tar_of({"f": b"x" * 100_000}), tar_of({"f": b"y" * 100_000})[:50_000]
    wrong = write_layout(tmp_path / "wrong", [good], form="tar", blobs={0: good.replace(b"x", b"z")})
    cut = write_layout(tmp_path / "cut", [good, broken])
    hostile = write_layout(tmp_path / "hostile", [good, tar_of({"f/../../../out": b""})])
    for name, kind in ((wrong, DigestError), (cut, ImageError), (hostile, ImageError)):
        with pytest.raises(kind, match="layer sha256:"), pulling(name, folder, cache):
            pass
        assert_clean(folder)


def test_a_tar_that_is_not_the_one_of_the_configuration(folder: Path, cache: Cache, tmp_path: Path) -> None:
    """The blob is right, the diff id is another one's."""
    one, other = tar_of({"f": b"1"}), tar_of({"f": b"2"})
    name = write_layout(tmp_path / "layout", [one])
    text = (tmp_path / "layout/index.json").read_text()
    layout = tmp_path / "layout/blobs/sha256"
    config = next(path for path in layout.iterdir() if b"diff_ids" in path.read_bytes())
    changed = config.read_bytes().replace(digest_bytes(one).encode(), digest_bytes(other).encode())
    manifest = next(path for path in layout.iterdir() if b'"layers": [' in path.read_bytes() and path != config)
    swapped = manifest.read_bytes().replace(config.name.encode(), digest_bytes(changed)[7:].encode())
    (layout / digest_bytes(changed)[7:]).write_bytes(changed)
    (layout / digest_bytes(swapped)[7:]).write_bytes(swapped)
    (tmp_path / "layout/index.json").write_text(text.replace(manifest.name, digest_bytes(swapped)[7:]))
    with pytest.raises(DigestError, match="the unpacked layer sha256:"), pulling(name, folder, cache):
        pass
    assert_clean(folder)


def test_a_full_disk(layout: Path, cache: Cache, tmp_path: Path) -> None:
    with limited_disk(tmp_path / "disk", 5 * 2**20) as disk:
        with pytest.raises(DestinationError, match="No space left on device"), pulling(f"oci:{layout}", disk, cache):
            pass
        assert_clean(disk)


def test_a_folder_that_cannot_be_written(layout: Path, cache: Cache) -> None:
    with (
        pytest.raises(DestinationError, match="/proc/nothing cannot be written"),
        pulling(f"oci:{layout}", Path("/proc/nothing"), cache),
    ):
        pass


def test_what_keeps_no_compressed_layers(folder: Path, cache: Cache) -> None:
    for name in ("docker-archive:x.tar", "docker-daemon:x:y"):
        with pytest.raises(UsageError, match="keeps no compressed layers"), pulling(name, folder, cache):
            pass
    assert_clean(folder)


_PULL = """
import sys, time
from pathlib import Path
from slimgpu.coldstart.pull import pulled
from slimgpu.errors import SlimgpuError
from slimgpu.events import Recorder
from slimgpu.oci.manifest import Platform
from slimgpu.oci.reference import parse_reference
from slimgpu.store.cache import Cache
from slimgpu.store.context import Context
if __name__ == "__main__":
    context = Context(Cache(Path(sys.argv[3])))
    try:
        reference, platform = parse_reference(sys.argv[1]), Platform("amd64", "linux")
        with pulled(reference, Path(sys.argv[2]), context, Recorder(), platform=platform) as image:
            print(image.root, image.overlay, image.left_out, flush=True)
            sys.stdin.read()
    except SlimgpuError as error:
        print(type(error).__name__, error)
"""


@contextmanager
def started(name: str, folder: Path, cache: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _PULL, name, folder, cache], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _processes(folder: Path) -> list[str]:
    listed = run("ps", "-eo", "args")
    return [line for line in listed.splitlines() if str(folder) in line]


def test_a_killed_pull_is_cleaned_by_the_next_one(layout: Path, folder: Path, cache: Cache, tmp_path: Path) -> None:
    with started(f"oci:{layout}", folder, tmp_path / "cache") as process:
        assert process.stdout is not None
        root = Path(process.stdout.readline().split()[0])
        assert (root / "etc/kept").exists()
        process.kill()
        process.wait()
        assert root.is_mount()
    with pulling(f"oci:{layout}", folder, cache) as (image, _):
        assert not root.exists()
        assert image.root.parent.parent == root.parent.parent
        assert sum(path.is_dir() for path in folder.iterdir()) == 1
    assert_clean(folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_ended_while_layers_arrive(number: int, layout: Path, folder: Path, cache: Cache, tmp_path: Path) -> None:
    with misbehaving(layout) as (name, proxy):
        proxy.plan(faults.stall(), match=_blobs, skip=2)
        with started(name, folder, tmp_path / "cache") as process:
            while not any(each.fault for each in proxy.exchanges):
                time.sleep(0.01)
            process.send_signal(number)
            process.wait()
    while _processes(folder):
        time.sleep(0.01)
    if number == signal.SIGKILL:
        assert any(folder.iterdir())
        with pulling(f"oci:{layout}", folder, cache):
            pass
    assert_clean(folder)


def test_a_process_that_is_killed(layout: Path, folder: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel does it when memory runs out."""
    give = pull.Flow.give

    def killing(self: pull.Flow, blob: object, reader: pull.Unpacker) -> None:
        assert reader._process.pid is not None
        os.kill(reader._process.pid, signal.SIGKILL)
        give(self, blob, reader)  # type: ignore[arg-type]

    monkeypatch.setattr(pull.Flow, "give", killing)
    with (
        pytest.raises(SlimgpuError, match="was killed, most likely for lack of memory"),
        pulling(f"oci:{layout}", folder, cache),
    ):
        pass
    assert_clean(folder)


def test_without_privileges(layout: Path, folder: Path, tmp_path: Path) -> None:
    """Who may not mount, make devices or give files away has them in one directory, and is told what it lacks."""
    command = ["unshare", "--user", sys.executable, "-c", _PULL, f"oci:{layout}", folder, tmp_path / "cache"]
    told = subprocess.run(command, input="", capture_output=True, text=True, check=True).stdout
    named = sum(len(layer) for layer in LAYERS) - 4  # without whiteouts, and what has no owner of its own
    lacking = LeftOut(owners=named + 21, devices=1, xattrs=1)
    assert told.split(maxsplit=1)[1].strip() == f"False {lacking}"
    assert_clean(folder)
