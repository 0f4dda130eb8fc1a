from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slimgpu.rootfs.within import DIRECTORY, FILE, open_within, read_within

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "root").mkdir()
    handle = os.open(tmp_path / "root", os.O_PATH)
    yield handle
    os.close(handle)


def place(root: int, path: str, create: str = "", *, follow: bool = True) -> str:
    handle = open_within(root, path, create, follow=follow)
    try:
        return str(Path(f"/proc/self/fd/{handle}").readlink())
    finally:
        os.close(handle)


@pytest.mark.parametrize("path", ["/", "", "..", "/../../..", "a/../../../..", "./."])
def test_the_root_is_the_end(root: int, tmp_path: Path, path: str) -> None:
    (tmp_path / "root/a").mkdir()
    assert place(root, path) == str(tmp_path / "root")


@pytest.mark.parametrize("text", ["/x/y", "../../../x/y", "/proc/self/root/x/y", "{outside}/y", "../root/../x/y"])
@pytest.mark.parametrize("create", [FILE, DIRECTORY])
def test_what_is_missing_is_made_inside(root: int, tmp_path: Path, text: str, create: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "root/link").symlink_to(text.format(outside=outside))
    made = place(root, "/link", create)
    assert made.startswith(str(tmp_path / "root/"))
    assert os.path.isdir(made) == (create == DIRECTORY)  # noqa: PTH112
    assert not list(outside.iterdir())
    assert place(root, "link") == made


def test_no_link_is_followed_when_none_may_be(root: int, tmp_path: Path) -> None:
    (tmp_path / "root/there").mkdir()
    (tmp_path / "root/link").symlink_to("there")
    for path in ("link", "link/.", "link/x"):
        with pytest.raises(OSError, match="Too many levels"):
            place(root, path, DIRECTORY, follow=False)
    assert not list((tmp_path / "root/there").iterdir())


def test_loops_files_on_the_way_and_nothing(root: int, tmp_path: Path) -> None:
    (tmp_path / "root/loop").symlink_to("loop/x")
    (tmp_path / "root/file").write_text("text")
    with pytest.raises(OSError, match="Too many levels"):
        place(root, "loop")
    with pytest.raises(NotADirectoryError):
        place(root, "file/x", FILE)
    with pytest.raises(FileNotFoundError):
        place(root, "nothing")
    with pytest.raises(NotADirectoryError):
        place(root, "file", DIRECTORY)
    with pytest.raises(IsADirectoryError):
        place(root, "/", FILE)
    assert read_within(root, "file", 3) == b"tex"
    with pytest.raises(OSError, match="not a regular file"):
        read_within(root, "/", 3)


def test_handles_are_closed(root: int, tmp_path: Path) -> None:
    (tmp_path / "root/loop").symlink_to("a/b/../../loop")
    (tmp_path / "root/a/b").mkdir(parents=True)
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    with pytest.raises(OSError, match="Too many levels"):
        place(root, "loop")
    place(root, "a/b/c/d", FILE)
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208
