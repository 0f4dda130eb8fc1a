"""One layer as files: faithful to what the tar says, and kept in by the root whatever it says."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.errors import DestinationError, ImageError
from slimgpu.rootfs import extract as module
from slimgpu.rootfs import tarwrite
from slimgpu.rootfs.attributes import LeftOut
from slimgpu.rootfs.content import FileBytes
from slimgpu.rootfs.entry import Entry, Kind
from slimgpu.rootfs.extract import extract
from slimgpu.rootfs.tarstream import TarStream
from tests.support.disks import limited_disk
from tests.support.fuzz import examples
from tests.support.processes import run
from tests.support.trees import MTIME, File, Hardlink, Special, Symlink, entry_of, tar_of
from tests.support.walk import describe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slimgpu.rootfs.extract import Extracted
    from tests.support.trees import Layer, What

NANOSECOND = MTIME + 123_456_789
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service, revision 2


def write(
    root: Path, layer: Layer | Iterable[tuple[str, What]] | bytes, *, alone: bool = True, pieces: int = 700
) -> Extracted:
    """A layer written from a stream of pieces."""
    tar = layer if isinstance(layer, bytes) else tar_of(layer)
    root.mkdir(exist_ok=True)
    stream = TarStream((tar[at : at + pieces] for at in range(0, len(tar), pieces)), "layer 3")
    return extract(stream, root, "layer 3", alone=alone)


def sparse(path: str, size: int, extents: tuple[tuple[int, bytes], ...]) -> bytes:
    """A sparse file as GNU tar writes it in PAX format 1.0."""
    numbers = [len(extents), *(number for at, data in extents for number in (at, len(data)))]
    table = b"".join(b"%d\n" % number for number in numbers)
    content = table.ljust(-(-len(table) // 512) * 512, b"\0") + b"".join(data for _, data in extents)
    records = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": path}
    records["GNU.sparse.realsize"] = str(size)
    body = b""
    for key, value in records.items():
        record = f" {key}={value}\n".encode()
        length = len(record) + len(str(len(record)))
        body += b"%d" % (length if len(str(length)) == len(str(len(record))) else length + 1) + record
    head = bytearray(tarwrite.header(Entry("pax", Kind.FILE, 0o644, size=len(body))))
    head[156:157] = b"x"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    entry = Entry("GNUSparseFile.0/it", Kind.FILE, 0o600, mtime=MTIME, size=len(content))
    return (
        bytes(head)
        + body
        + tarwrite.padding(len(body))
        + tarwrite.header(entry)
        + content
        + tarwrite.padding(len(content))
    )


EVERYTHING: Layer = {
    "bin": None,
    "bin/su": File(b"\x7fELF", mode=0o4755, uid=0, mtime=NANOSECOND, xattrs=(("security.capability", CAPABILITY),)),
    "bin/again": Hardlink("bin/su"),
    "bin/sh": Symlink("su"),
    "home": None,
    "home/file": File(b"x" * 300_000, mode=0o640, uid=1234, xattrs=(("user.note", b"\0\xff"),)),
    "home/closed": File(b"", mode=0),
    "home/out": Symlink("../../../../etc/passwd"),
    "home/caf\udce9": b"not UTF-8",
    "home/line\nfeed": b"",
    "pipe": Special(Kind.FIFO),
    "null": Special(Kind.CHARACTER, (1, 3)),
    "loop": Special(Kind.BLOCK, (7, 200)),
}


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("pieces", [100, 512, 5000, 10**7])
def test_everything_that_a_tar_can_say(tmp_path: Path, alone: bool, pieces: int) -> None:  # noqa: FBT001
    found = write(tmp_path / "root", EVERYTHING, alone=alone, pieces=pieces)
    assert (found.entries, found.left_out, found.leans) == (len(EVERYTHING), LeftOut(), False)
    facts = describe(tmp_path / "root")
    file, directory = stat.S_IFREG, stat.S_IFDIR
    assert sorted(facts) == sorted([".", *EVERYTHING])
    assert facts["bin"][:4] == (directory | 0o755, 0, 0, MTIME)
    assert facts["bin/su"][:4] == (file | 0o4755, 0, 0, NANOSECOND)
    assert facts["bin/su"][6] == {"security.capability": CAPABILITY}
    assert facts["bin/su"][7] == facts["bin/again"][7] == "bin/again"
    assert facts["bin/sh"][0] == stat.S_IFLNK | 0o777
    assert facts["bin/sh"][3:6] == (MTIME, 0, "su")
    assert facts["home/file"][:4] == (file | 0o640, 1234, 0, MTIME)
    assert facts["home/file"][6] == {"user.note": b"\0\xff"}
    assert facts["home/closed"][0] == file
    assert facts["home/out"][5] == "../../../../etc/passwd"
    assert facts["pipe"][0] == stat.S_IFIFO | 0o644
    assert facts["null"][0] == stat.S_IFCHR | 0o644
    assert facts["null"][4] == os.makedev(1, 3)
    assert facts["loop"][4] == os.makedev(7, 200)
    assert (tmp_path / "root/home/file").read_bytes() == b"x" * 300_000


def test_a_spooled_tar_gives_the_same(tmp_path: Path) -> None:
    (tmp_path / "tar").write_bytes(tar_of(EVERYTHING) + sparse("hole", 10**6, ((5000, b"s" * 100), (9000, b"t"))))
    write(tmp_path / "stream", (tmp_path / "tar").read_bytes())
    (tmp_path / "spool").mkdir()
    with FileBytes(tmp_path / "tar") as data:
        extract(data, tmp_path / "spool", "it", alone=True)
    stream, spool = describe(tmp_path / "stream"), describe(tmp_path / "spool")
    assert {**stream, ".": None} == {**spool, ".": None}


@pytest.mark.parametrize("pieces", [100, 4096, 10**7])
def test_sparse_files_stay_sparse(tmp_path: Path, pieces: int) -> None:
    extents = ((0, b"a" * 1000), (2**20, b"b" * 70_000), (2**25, b"c"))
    write(tmp_path / "root", sparse("hole", 2**26, extents) + tar_of({"after": b"x"}), pieces=pieces)
    path = tmp_path / "root/hole"
    assert path.stat().st_size == 2**26
    assert path.stat().st_blocks * 512 < 2**18
    data = path.read_bytes()
    for at, content in extents:
        assert data[at : at + len(content)] == content
    assert data.count(b"\0") == 2**26 - 71_001
    assert (tmp_path / "root/after").read_bytes() == b"x"


def test_a_bomb_of_holes(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="layer 3 has sparse files with"):
        write(tmp_path / "root", sparse("hole", 2**40, ((0, b"a"),)) + tarwrite.END)


def test_a_later_entry_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    pairs: list[tuple[str, What]] = [("a", b"before"), ("b", Hardlink("a")), ("a", b"now"), ("d/x", b""),
                                     ("d", b"f"), ("l", Symlink("d")), ("l", None), ("l/in", b"")]  # fmt: skip
    write(tmp_path / "root", pairs, alone=False)
    root = tmp_path / "root"
    assert (root / "a").read_bytes() == b"now"
    assert (root / "b").read_bytes() == b"before"
    assert (root / "d").read_bytes() == b"f"
    assert not (root / "l").is_symlink()
    assert (root / "l/in").exists()


def test_directories_that_are_not_named(tmp_path: Path) -> None:
    found = write(tmp_path / "root", {"a/b/c": b"", "a/d": None})
    assert found.implicit == ("", "a", "a/b")
    facts = describe(tmp_path / "root")
    assert facts["a"][:4] == facts["a/b"][:4] == (stat.S_IFDIR | 0o755, 0, 0, 0)


def test_a_layer_upon_another_leaves_its_directories_as_they_were(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root, [("d", None), ("d/e", None), ("d/e/f", b"1"), ("d/g", b"")], alone=False)
    before = describe(root)
    write(root, {"d/e/f": b"2", "d/e/new": b"", "d/.wh.g": b""}, alone=False)
    after = describe(root)
    assert {path: after[path] for path in ("d", "d/e")} == {path: before[path] for path in ("d", "d/e")}
    assert sorted(after) == [".", "d", "d/e", "d/e/f", "d/e/new"]


def test_whiteouts_hide_what_lies_below_and_nothing_of_their_layer(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root, {"d/old": b"", "d/sub/old": b"", "o/old": b"", "o/sub/old": b"", "f": b"", "stays": b""}, alone=False)
    pairs: list[tuple[str, What]] = [("d/sub/new", b""), (".wh.d", b""), ("o/sub/new", b""), ("o/.wh..wh..opq", b""),
                                     (".wh.f", b""), (".wh.none", b""), ("no/.wh.x", b""),
                                     (".wh..wh.plnk", b"")]  # fmt: skip
    write(root, pairs, alone=False)
    files = {path for path, facts in describe(root).items() if stat.S_ISREG(facts[0])}  # type: ignore[call-overload]
    assert files == {"d/sub/new", "o/sub/new", "stays"}


def test_whiteouts_as_overlayfs_wants_them(tmp_path: Path) -> None:
    root = tmp_path / "root"
    pairs: list[tuple[str, What]] = [("d/.wh.gone", b""), ("o/.wh..wh..opq", b""), ("o/.wh.more", b""), ("n/x", b""),
                                     (".wh.n", b""), ("f", b""), (".wh.f", b"")]  # fmt: skip
    found = write(root, pairs)
    assert found.whiteouts == ("d/gone",)
    assert stat.S_ISCHR((root / "d/gone").lstat().st_mode)
    assert (root / "d/gone").lstat().st_rdev == 0
    assert {path.name for path in root.iterdir() if os.listxattr(path)} == {"o", "n"}
    assert os.getxattr(root / "o", "trusted.overlay.opaque") == b"y"
    assert sorted(describe(root)) == [".", "d", "d/gone", "f", "n", "n/x", "o"]


def test_an_image_cannot_speak_to_overlayfs(tmp_path: Path) -> None:
    hostile = (("trusted.overlay.redirect", b"/etc"), ("user.overlay.redirect", b"/etc"), ("user.fine", b"x"))
    found = write(tmp_path / "root", {"f": File(b"", xattrs=hostile)})
    assert os.listxattr(tmp_path / "root/f") == ["user.fine"]
    assert found.left_out == LeftOut(xattrs=1)


@pytest.mark.parametrize("alone", [True, False])
def test_links_lead_nowhere_outside(tmp_path: Path, alone: bool) -> None:  # noqa: FBT001
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("untouched")
    before = describe(victim)
    up = "../" * 30
    pairs: list[tuple[str, What]] = [
        ("absolute", Symlink(str(victim))),
        ("relative", Symlink(f"{up}{str(victim).lstrip('/')}")),
        ("absolute/file", b"overwritten"),
        ("relative/file", b"overwritten"),
        ("absolute/.wh.file", b""),
        ("relative/.wh..wh..opq", b""),
        ("relative", None),
        ("self", Symlink(".")),
        ("self/self/self/in", b""),
    ]
    try:
        write(tmp_path / "root", pairs, alone=alone)
    except ImageError as error:
        message = str(error)
        assert "a symlink on its way leads to" in message
        assert not alone
    assert describe(victim) == before


@pytest.mark.parametrize("alone", [True, False])
def test_hard_links_lead_nowhere_outside(tmp_path: Path, alone: bool) -> None:  # noqa: FBT001
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    pairs: list[tuple[str, What]] = [("d", Symlink(str(tmp_path))), ("h", Hardlink("d/victim")), ("h", b"overwritten")]
    if alone:
        assert write(tmp_path / "root", pairs).leans
    else:
        with pytest.raises(ImageError, match="layer 3: 'h' cannot be unpacked: it is a hard link to 'd/victim'"):
            write(tmp_path / "root", pairs, alone=False)
    assert (victim.read_text(), victim.stat().st_nlink) == ("untouched", 1)


@pytest.mark.parametrize(
    ("pairs", "complaint"),
    [
        ([("f", b""), ("f/x", b"")], r"'f/x' cannot be unpacked: its parent 'f' is no directory"),
        ([("a", Symlink("b")), ("b", Symlink("a")), ("a/x", b"")], "symlinks on its way, 'a', do not end"),
        ([("h", Hardlink("nothing"))], "hard link to 'nothing', which is not there"),
        ([("d", None), ("h", Hardlink("d"))], "hard link to 'd', which is not there"),
        ([("", b"")], "the root is a file"),
        ([("n" * 300, b"")], "File name too long"),
    ],
)
def test_what_cannot_be_unpacked(tmp_path: Path, pairs: list[tuple[str, What]], complaint: str) -> None:
    with pytest.raises(ImageError, match=f"layer 3: .*{complaint}"):
        write(tmp_path / "root", pairs, alone=False)


def test_too_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ENTRIES", 3)
    with pytest.raises(ImageError, match="more than 3 entries"):
        write(tmp_path / "root", dict.fromkeys("abcd", b""))


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_tar_that_ends_inside_a_file(tmp_path: Path, size: int) -> None:
    with pytest.raises(ImageError, match=r"layer 3.*ends inside"):
        write(tmp_path / "root", tar_of({"f": b"x" * size})[: 512 + size // 2])


def test_directories_as_deep_as_paths_may_be(tmp_path: Path) -> None:
    path = "/".join(["d"] * 2000)
    write(tmp_path / "root", [(f"{path}/f", b"1"), (f"{path}/g", b"2")], alone=False)
    write(tmp_path / "root", {"d": b"instead"}, alone=False)
    assert (tmp_path / "root/d").read_bytes() == b"instead"


def test_more_directories_than_are_held_open(tmp_path: Path) -> None:
    layer = {f"{number % 300}/{number}": b"x" for number in range(900)}
    write(tmp_path / "root", layer)
    assert sum(path.is_file() for path in (tmp_path / "root").rglob("*")) == 900


def test_a_full_disk(tmp_path: Path) -> None:
    with (
        limited_disk(tmp_path / "disk", 2**20) as disk,
        pytest.raises(DestinationError, match="No space left on device"),
    ):
        write(disk / "root", {"f": b"x" * 2**21})


_parts = st.sampled_from(["..", ".", "", "a", "b", ".wh.a", ".wh...", ".wh..", ".wh.", "..\n", "x" * 255, "\udcff"])
_names = st.lists(_parts, min_size=1, max_size=5).map("/".join)
_hostile = st.lists(
    st.tuples(
        _names,
        st.one_of(
            st.just(b"file"),
            st.none(),
            _names.map(lambda name: Symlink(name or ".")),
            st.sampled_from(["/", "/tmp", "..", "../..", "/proc/self/cwd"]).map(Symlink),  # noqa: S108
            _names.map(Hardlink),
        ),
    ),
    max_size=8,
)


@examples(300)
@given(_hostile, st.booleans())
def test_hostile_names_change_nothing_outside(pairs: list[tuple[str, What]], alone: bool) -> None:  # noqa: FBT001
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        outside = Path(folder)
        (outside / "a").write_bytes(b"outside")
        (outside / "b").mkdir()
        (outside / "b/a").write_bytes(b"outside")
        before = {path: facts for path, facts in describe(outside).items() if path != "."}
        try:
            write(outside / "root", pairs, alone=alone)
        except ImageError as error:
            message = str(error)
            assert "layer 3" in message
        after = describe(outside)
        assert {path: facts for path, facts in after.items() if path != "." and not path.startswith("root")} == before


_GUEST = """
import os, sys
from pathlib import Path
from slimgpu.rootfs.content import FileBytes
from slimgpu.rootfs.extract import extract
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for tar in sys.argv[2:]:
    with FileBytes(Path(tar)) as data:
        print(extract(data, Path(sys.argv[1]), "it", alone=False).left_out)
"""


def test_without_privileges() -> None:
    """Files are there, directories that are closed to their owner can be written, and what is lacking is counted."""
    layer: Layer = {**EVERYTHING, "shut": None, "shut/file": b"x"}
    shut, _ = entry_of("shut", None)
    closed = tarwrite.header(replace(shut, mode=0o000))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        root = Path(folder) / "root"
        root.mkdir()
        os.chown(root, 65534, 65534)
        Path(folder).chmod(0o755)
        (Path(folder) / "1.tar").write_bytes(closed + tar_of(layer))
        (Path(folder) / "2.tar").write_bytes(closed + tar_of({"shut/more": b"y"}))
        (Path(folder) / "3.tar").write_bytes(tar_of({"shut/last": b"z"}))
        tars = sorted(Path(folder).glob("*.tar"))
        result = run(sys.executable, "-c", _GUEST, root, *tars).splitlines()
        assert result[0] == repr(LeftOut(owners=len(layer) - 3, devices=2, xattrs=1))
        assert (root / "shut/last").read_bytes() == b"z"
        assert stat.S_IMODE((root / "shut").stat().st_mode) == 0
        assert (root / "shut").stat().st_mtime_ns == MTIME
        assert (root / "home/file").stat().st_mtime_ns == MTIME


def test_entries_are_counted_once_for_what_they_lack() -> None:
    assert LeftOut(1, 2, 3) + LeftOut(10, 20, 30) == LeftOut(11, 22, 33)
    assert replace(LeftOut(), devices=1) == LeftOut(devices=1)
