"""Drivers found on hosts that are laid out as real ones are; no test here has a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from slimgpu.errors import MissingComponentError, UsageError
from slimgpu.rootfs.command import Command, Mount
from slimgpu.rootfs.driver import Driver, find_driver, with_driver

if TYPE_CHECKING:
    from pathlib import Path

_VERSION = "550.54.14"
_CLOSED = f"""NVRM version: NVIDIA UNIX x86_64 Kernel Module  {_VERSION}  Thu Feb 22 01:44:30 UTC 2024
GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)
"""
_OPEN = f"""NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {_VERSION}  Release Build  (dvs-builder@U22)
GCC version:  gcc version 11.4.0
"""
_INFORMATION = """Model: 		 NVIDIA H100 80GB HBM3
IRQ:   		 0
GPU UUID: 	 {uuid}
Video BIOS: 	 96.00.61.00.01
Bus Type: 	 PCIe
Device Minor: 	 {minor}
GPU Excluded:	 No
"""
_ELF64, _ELF32 = b"\x7fELF\x02\x01", b"\x7fELF\x01\x01"
_LINKS = {
    "libcuda": ("libcuda.so.1", "libcuda.so"),
    "libnvidia-ml": ("libnvidia-ml.so.1",),
    "libnvidia-ptxjitcompiler": ("libnvidia-ptxjitcompiler.so.1",),
    "libnvidia-nvvm": ("libnvidia-nvvm.so.4",),
    "libnvidia-gpucomp": (),
    "libnvidia-glcore": (),
    "libnvcuvid": ("libnvcuvid.so.1",),
    "libnvidia-gtk3": (),
}


def kernel(host: Path, version: str = _CLOSED, gpus: int = 2) -> Path:
    proc = host / "proc/driver/nvidia"
    (proc / "gpus").mkdir(parents=True)
    (proc / "version").write_text(version)
    (host / "dev/nvidia-caps").mkdir(parents=True)
    for name in ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "nvidia-caps/nvidia-cap1", "sda"):
        (host / "dev" / name).touch()
    for number in range(gpus):
        information = proc / f"gpus/0000:{number + 1:02}:00.0/information"
        information.parent.mkdir()
        minor = gpus - 1 - number  # minors do not follow the PCI addresses
        information.write_text(_INFORMATION.format(uuid=f"GPU-{number}0000000-ffff", minor=minor))
        (host / f"dev/nvidia{minor}").touch()
    return host


def libraries(host: Path, folder: str, content: bytes = _ELF64) -> Path:
    directory = host / folder
    directory.mkdir(parents=True, exist_ok=True)
    for stem, links in _LINKS.items():
        (directory / f"{stem}.so.{_VERSION}").write_bytes(content)
        target = f"{stem}.so.{_VERSION}"
        for link in links:
            (directory / link).symlink_to(target)
            target = link
    return directory


def smi(host: Path, folder: str = "usr/bin") -> None:
    (host / folder).mkdir(parents=True, exist_ok=True)
    (host / folder / "nvidia-smi").touch()


def ubuntu(host: Path) -> Path:
    kernel(host)
    (host / "etc/ld.so.conf.d").mkdir(parents=True)
    (host / "etc/ld.so.conf").write_text("include /etc/ld.so.conf.d/*.conf\n\n")
    (host / "etc/ld.so.conf.d/i386-linux-gnu.conf").write_text("# Multiarch\n/usr/lib/i386-linux-gnu\n")
    (host / "etc/ld.so.conf.d/x86_64-linux-gnu.conf").write_text("/lib/x86_64-linux-gnu\n/usr/lib/x86_64-linux-gnu\n")
    libraries(host, "usr/lib/i386-linux-gnu", _ELF32)
    smi(host)
    (host / "lib").symlink_to("usr/lib")
    (host / f"usr/lib/firmware/nvidia/{_VERSION}").mkdir(parents=True)
    (host / f"usr/lib/firmware/nvidia/{_VERSION}/gsp_ga10x.bin").touch()
    (host / "run/nvidia-persistenced").mkdir(parents=True)
    (host / "run/nvidia-persistenced/socket").touch()
    return libraries(host, "usr/lib/x86_64-linux-gnu")


def debian(host: Path) -> Path:
    """The files of the driver lie behind its alternatives."""
    kernel(host, _OPEN)
    current = libraries(host, "usr/lib/x86_64-linux-gnu/nvidia/current")
    (host / "etc/alternatives").mkdir(parents=True)
    (host / "etc/alternatives/glx--libcuda.so.1").symlink_to("/usr/lib/x86_64-linux-gnu/nvidia/current/libcuda.so.1")
    (host / "usr/lib/x86_64-linux-gnu/libcuda.so.1").symlink_to("/etc/alternatives/glx--libcuda.so.1")
    smi(host)
    return current


def rhel(host: Path) -> Path:
    kernel(host)
    libraries(host, "usr/lib", _ELF32)
    (host / "lib64").symlink_to("usr/lib64")
    smi(host)
    return libraries(host, "usr/lib64")


def cloud(host: Path) -> Path:
    kernel(host)
    smi(host, "usr/local/nvidia/bin")
    return libraries(host, "usr/local/nvidia/lib64")


def found(host: Path) -> Driver:
    driver = find_driver(host)
    assert driver is not None
    return driver


def mounted(host: Path, **environment: str) -> dict[str, Path]:
    command = with_driver(Command(("a",), environment), found(host))
    return {mount.target: mount.source for mount in command.mounts}


@pytest.mark.parametrize("layout", [ubuntu, debian, rhel, cloud])
def test_real_hosts(tmp_path: Path, layout: object) -> None:
    assert callable(layout)
    directory = layout(tmp_path)
    inside = mounted(tmp_path)
    place = "/usr/local/nvidia/lib64"
    for name in ("libcuda.so", "libcuda.so.1", f"libcuda.so.{_VERSION}"):
        assert inside[f"{place}/{name}"].resolve() == (directory / f"libcuda.so.{_VERSION}").resolve()
    for name in ("libnvidia-ml.so.1", "libnvidia-ptxjitcompiler.so.1", "libnvidia-nvvm.so.4"):
        assert inside[f"{place}/{name}"].read_bytes() == _ELF64
    assert f"{place}/libnvidia-gpucomp.so.{_VERSION}" in inside
    assert not [target for target in inside if "glcore" in target or "nvcuvid" in target or "gtk" in target]
    assert inside["/usr/bin/nvidia-smi"].name == "nvidia-smi"
    devices = {target for target in inside if target.startswith("/dev/")}
    assert devices == {
        *("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"),
        *("/dev/nvidia0", "/dev/nvidia1", "/dev/nvidia-caps/nvidia-cap1"),
    }


def test_sockets_and_firmware(tmp_path: Path) -> None:
    ubuntu(tmp_path)
    inside = mounted(tmp_path)
    assert "/run/nvidia-persistenced/socket" in inside
    assert f"/lib/firmware/nvidia/{_VERSION}/gsp_ga10x.bin" in inside


def test_only_devices_and_sockets_can_be_written(tmp_path: Path) -> None:
    ubuntu(tmp_path)
    command = with_driver(Command(("a",), mounts=(Mount(tmp_path, "/mine"),)), found(tmp_path))
    written = {mount.target.split("/")[1] for mount in command.mounts if mount.writable}
    assert written == {"dev", "run"}
    assert command.mounts[-1].target == "/mine"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "/usr/local/nvidia/lib64"),
        ("/a:/b", "/a:/b:/usr/local/nvidia/lib64"),
        ("/usr/local/nvidia/lib:/usr/local/nvidia/lib64", "/usr/local/nvidia/lib:/usr/local/nvidia/lib64"),
    ],
)
def test_where_the_loader_looks(tmp_path: Path, before: str | None, after: str) -> None:
    cloud(tmp_path)
    environment = {} if before is None else {"LD_LIBRARY_PATH": before}
    assert with_driver(Command(("a",), environment), found(tmp_path)).environment["LD_LIBRARY_PATH"] == after


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        ("all", {"nvidia0", "nvidia1"}),
        ("0", {"nvidia1"}),
        ("1,0", {"nvidia0", "nvidia1"}),
        ("GPU-10000000-ffff", {"nvidia0"}),
        ("GPU-1", {"nvidia0"}),
        ("none", set()),
    ],
)
def test_which_gpus(tmp_path: Path, visible: str, devices: set[str]) -> None:
    """The first by its PCI address has the higher minor number."""
    cloud(tmp_path)
    inside = mounted(tmp_path, NVIDIA_VISIBLE_DEVICES=visible)
    assert {f"nvidia{n}" for n in range(2) if f"/dev/nvidia{n}" in inside} == devices
    assert "/dev/nvidiactl" in inside


@pytest.mark.parametrize("visible", ["", "void"])
def test_no_driver_wanted(tmp_path: Path, visible: str) -> None:
    cloud(tmp_path)
    assert not mounted(tmp_path, NVIDIA_VISIBLE_DEVICES=visible)


def test_capabilities(tmp_path: Path) -> None:
    cloud(tmp_path)
    every = mounted(tmp_path, NVIDIA_DRIVER_CAPABILITIES="all")
    assert "/usr/local/nvidia/lib64/libnvcuvid.so.1" in every
    assert not [target for target in every if "gtk" in target]
    video = mounted(tmp_path, NVIDIA_DRIVER_CAPABILITIES="video, utility")
    assert "/usr/local/nvidia/lib64/libnvcuvid.so.1" in video
    assert "/usr/local/nvidia/lib64/libcuda.so.1" not in video
    with pytest.raises(UsageError, match="NVIDIA_DRIVER_CAPABILITIES names 'computing'; use all or some of compute,"):
        mounted(tmp_path, NVIDIA_DRIVER_CAPABILITIES="computing")


@pytest.mark.parametrize("visible", ["2", "MIG-GPU-1", "GPU-", "x", "0,"])
def test_gpus_that_are_not_there(tmp_path: Path, visible: str) -> None:
    cloud(tmp_path)
    with pytest.raises(UsageError, match=r"this machine's GPUs are 0 \(GPU-00000000-ffff\), 1 "):
        mounted(tmp_path, NVIDIA_VISIBLE_DEVICES=visible)


def test_no_or_half_a_driver(tmp_path: Path) -> None:
    assert find_driver(tmp_path / "nothing") is None
    kernel(tmp_path)
    with pytest.raises(MissingComponentError, match=rf"has no libcuda\.so\.{_VERSION} here; install its libraries"):
        find_driver(tmp_path)
    libraries(tmp_path, "usr/lib64", _ELF32)
    with pytest.raises(MissingComponentError, match="has no libcuda"):
        find_driver(tmp_path)
    libraries(tmp_path, "usr/local/nvidia/lib64")
    (tmp_path / "dev/nvidia-uvm").unlink()
    with pytest.raises(MissingComponentError, match="/dev/nvidia-uvm is not there; make it with nvidia-modprobe"):
        find_driver(tmp_path)


def test_libraries_of_another_version_stay(tmp_path: Path) -> None:
    cloud(tmp_path)
    (tmp_path / "usr/lib64").mkdir()
    (tmp_path / "usr/lib64/libcuda.so.535.1").write_bytes(_ELF64)
    (tmp_path / "usr/lib64/libcuda.so.1").symlink_to("libcuda.so.535.1")
    assert mounted(tmp_path)["/usr/local/nvidia/lib64/libcuda.so.1"].parent == tmp_path / "usr/local/nvidia/lib64"
