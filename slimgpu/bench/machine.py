"""The machine that figures are taken on."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import slimgpu
from slimgpu.bench.results import Machine

if TYPE_CHECKING:
    from collections.abc import Mapping

_DRIVER: Final = Path("/proc/driver/nvidia")
_RELEASE: Final = "Kernel Module"


def describe(folder: Path, versions: Mapping[str, str] | None = None) -> Machine:
    """The present machine, with the disk that ``folder`` lies on and the versions of what else takes part."""
    gpu, driver = _gpu()
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        disk=first_line("findmnt", "--noheadings", "--output", "SOURCE,FSTYPE,OPTIONS", "--target", str(folder)),
        gpu=gpu,
        driver=driver,
        versions={"slimgpu": slimgpu.__version__, "python": platform.python_version(), **(versions or {})},
    )


def first_line(*command: str) -> str:
    """The first line that a command prints, in single spaces; '' if it fails."""
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - our own arguments
    except (OSError, subprocess.CalledProcessError):
        return ""
    lines = (said.stdout or said.stderr).strip().splitlines()
    return " ".join(lines[0].split()) if lines else ""


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpu() -> tuple[str | None, str | None]:
    """The first GPU's name and its driver's version, by NVIDIA's library, or as the driver tells both in ``/proc``."""
    try:
        import pynvml  # noqa: PLC0415
    except ImportError:
        return told_by_driver(_DRIVER)
    return _told_by_library(pynvml) or told_by_driver(_DRIVER)


def _told_by_library(pynvml: Any) -> tuple[str, str] | None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, or none that answers here
        return None
    try:
        name = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
        return name, pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def told_by_driver(folder: Path) -> tuple[str | None, str | None]:
    """Name and version as files in ``folder`` tell them; None for what they don't.

    Source: https://download.nvidia.com/XFree86/Linux-x86_64/580.82.07/README/procinterface.html
    """
    name = driver = None
    for file in sorted(folder.glob("gpus/*/information")):
        fields = (line.partition(":") for line in file.read_text().splitlines())
        name = next((value.strip() for key, _, value in fields if key.strip() == "Model"), None)
        if name:
            break
    version = folder / "version"
    if version.is_file():
        words = version.read_text().partition(_RELEASE)[2].split()  # the open module says "for x86_64" first
        driver = next((word for word in words if word[0].isdigit()), None)
    return name, driver
