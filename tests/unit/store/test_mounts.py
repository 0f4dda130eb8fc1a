"""Overlays, and what killed processes leave of them. Mounting takes root."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from slimgpu.errors import DestinationError
from slimgpu.store.mounts import MAX_LAYERS, can_overlay, overlaid, unmount_below
from slimgpu.store.workspace import workspace
from tests.support.disks import limited_disk

if TYPE_CHECKING:
    from pathlib import Path


def layers(folder: Path, count: int) -> list[str]:
    for number in range(count):
        (folder / str(number)).mkdir()
        (folder / str(number) / "top").write_text(str(number))
        (folder / str(number) / f"own {number}").touch()
    return [str(number) for number in reversed(range(count))]


def mounts(folder: Path) -> list[str]:
    listed = subprocess.run(["findmnt", "-rno", "TARGET"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(folder) in line]


@pytest.mark.parametrize("count", [2, 57, MAX_LAYERS])
def test_layers_over_each_other(tmp_path: Path, count: int) -> None:
    lower = layers(tmp_path, count)
    with overlaid(tmp_path, lower, "root", writable=True) as root:
        assert (root / "top").read_text() == str(count - 1)
        assert len(list(root.iterdir())) == count + 1
        (root / "top").write_text("changed")
    assert mounts(tmp_path) == []
    assert (tmp_path / lower[0] / "top").read_text() == str(count - 1)
    with overlaid(tmp_path, lower, "below", writable=False) as root, pytest.raises(OSError, match="Read-only"):
        (root / "new").touch()


def test_what_cannot_be_mounted(tmp_path: Path) -> None:
    with (
        pytest.raises(DestinationError, match="cannot be mounted over each other"),
        overlaid(tmp_path, ["nothing", "there"], "root", writable=True),
    ):
        pass
    assert mounts(tmp_path) == []


def test_whether_overlays_can_be_mounted(tmp_path: Path) -> None:
    assert can_overlay(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with (
        limited_disk(tmp_path / "disk", 2**20) as disk,
        overlaid(tmp_path, _two(tmp_path), "root", writable=True) as root,
    ):
        assert can_overlay(disk)
        assert not can_overlay(root)  # an overlay's upper directory is on none


def _two(folder: Path) -> list[str]:
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    return ["a", "b"]


def test_a_mount_that_is_in_use_goes_from_sight(tmp_path: Path) -> None:
    with overlaid(tmp_path, layers(tmp_path, 2), "root", writable=True) as root:
        held = (root / "top").open()
    with held:
        assert mounts(tmp_path) == []
        assert held.read() == "1"


def test_what_a_killed_process_left_is_unmounted_and_removed(tmp_path: Path) -> None:
    left = tmp_path / "slimgpu.pull.0000 ö"
    left.mkdir()
    lower = layers(left, 2)
    outer = overlaid(left, lower, "root", writable=True)
    outer.__enter__()
    (left / "root" / "mount").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", left / "root/mount"], check=True)
    assert len(mounts(tmp_path)) == 2
    with workspace(tmp_path, "pull"):
        assert not left.exists()
    assert mounts(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_only_what_is_below_is_unmounted(tmp_path: Path) -> None:
    with limited_disk(tmp_path / "disk.other", 2**20), limited_disk(tmp_path / "disk", 2**20) as disk:
        (disk / "in").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", disk / "in"], check=True)
        unmount_below(disk)
        assert sorted(mounts(tmp_path)) == [str(tmp_path / "disk"), str(tmp_path / "disk.other")]
