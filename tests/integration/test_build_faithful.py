"""What a build keeps is the same in every attribute, as an independent unpacker sees it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from tests.support.command import slimgpu
from tests.support.examples import assembled
from tests.support.processes import run
from tests.support.walk import Facts, describe, differences

if TYPE_CHECKING:
    from pathlib import Path


def unpacked(reference: str, directory: Path) -> dict[str, Facts]:
    """The tree that umoci unpacks, described and removed again."""
    layout = reference.removeprefix("oci:")
    run("umoci", "unpack", "--image", layout, directory)
    try:
        return describe(directory / "rootfs")
    finally:
        shutil.rmtree(directory)


def test_keeping_everything_of_a_real_image_gives_its_tree_back(tmp_path: Path) -> None:
    image = assembled("cuda-numpy")
    rebuilt = f"oci:{tmp_path / 'rebuilt'}:latest"

    slimgpu("build", image, "--to", rebuilt, "--format", "gzip", "--keep", "**")

    before = unpacked(image, tmp_path / "before")
    assert len(before) > 20_000
    assert differences(before, unpacked(rebuilt, tmp_path / "after")) == []


def make_odd_tree(root: Path) -> None:
    """One of everything that a file system can hold and an image can carry."""
    long = root / ("d" * 120) / ("e" * 120)
    long.mkdir(parents=True)
    (long / os.fsdecode(b"name-\xff\xfe-\xc3\xa9")).write_bytes(b"not UTF-8")
    (root / "usr").mkdir()
    program = root / "usr" / "program"
    program.write_bytes(b"\x7fELF" + bytes(5000))
    program.chmod(0o6755)
    subprocess.run(["setcap", "cap_net_bind_service+ep", program], check=True)
    os.setxattr(program, "user.note", b"\x00\xff\n=binary")
    os.link(program, root / "usr" / "same")
    (root / "link").symlink_to("../../leaves/the/root")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe", 0o640)
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    os.mknod(root / "disk", 0o60660, os.makedev(259, 70000))
    with (root / "sparse").open("wb") as file:
        file.seek(10_000_000)
        file.write(b"end")
    os.chown(root / "sparse", 3_000_000, 4_000_000)
    os.utime(root / "sparse", ns=(0, 1_234_567_890_123_456_789))
    os.utime(root / "pipe", ns=(0, -5_000_000_000))
    (root / "empty").mkdir(mode=0o1777)
    (root / "gone").write_bytes(b"hidden by the next layer")


def layout_of(tars: list[Path], directory: Path) -> str:
    """An OCI layout with these layers, made by umoci."""
    run("umoci", "init", "--layout", directory)
    run("umoci", "new", "--image", f"{directory}:odd")
    for tar in tars:
        run("umoci", "raw", "add-layer", "--image", f"{directory}:odd", tar)
    return f"oci:{directory}:odd"


@pytest.mark.parametrize("tar_format", ["gnu", "pax"])
def test_odd_files_survive_a_rebuild(tmp_path: Path, tar_format: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    make_odd_tree(root)
    first, second = tmp_path / "1.tar", tmp_path / "2.tar"
    attributes = ["--xattrs", "--xattrs-include=*"] if tar_format == "pax" else []
    run("tar", "-C", root, "-c", "-f", first, f"--format={tar_format}", *attributes, ".")
    with tarfile.open(second, "w") as tar:
        tar.addfile(tarfile.TarInfo(".wh.gone"))
        link = tarfile.TarInfo("usr/across")
        link.type, link.linkname = tarfile.LNKTYPE, "usr/program"
        tar.addfile(link)
    image = layout_of([first, second], tmp_path / "layout")
    rebuilt = f"oci:{tmp_path / 'rebuilt'}:odd"

    slimgpu("build", image, "--to", rebuilt, "--format", "gzip", "--keep", "**")

    before = unpacked(image, tmp_path / "before")
    assert "usr/across" in before
    assert "gone" not in before
    assert differences(before, unpacked(rebuilt, tmp_path / "after")) == []


@pytest.mark.parametrize("options", [("--symbols", "keep"), ("--gpu", "h100")])
def test_what_a_slim_image_keeps_is_unchanged(tmp_path: Path, options: tuple[str, ...]) -> None:
    image = assembled("cuda-numpy")
    slim = f"oci:{tmp_path / 'slim'}:latest"

    plan = json.loads(slimgpu("build", image, "--dry-run", "--json", *options))
    slimgpu("build", image, "--to", slim, "--format", "gzip", *options)

    before, after = unpacked(image, tmp_path / "before"), unpacked(slim, tmp_path / "after")
    assert set(after) < set(before)
    meant = {action["path"] for action in plan["actions"] if action["do"] in ("edit", "shrink")}
    kind_and_content = [0, 1, 2, 4, 5, 6]  # not the time, nor the link group: duplicates become links
    changed = [p for p in after if [after[p][i] for i in kind_and_content] != [before[p][i] for i in kind_and_content]]
    assert set(changed) == meant
