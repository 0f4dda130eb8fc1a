#!/usr/bin/env python3
"""The demo: assemble a real image, look into it, slim it, split off its weights, fetch and load them.

No Docker engine is used: images and weights go to a registry on this machine. The assembled image is cached, so that a
second run takes seconds.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from registry import running_registry

HERE = Path(__file__).resolve().parent
SLIM = HERE.parent / ".cache" / "demo"
GPU = "h100"
"""Which GPU the slim image is for; none is needed to build it."""


def step(title: str, *command: str | Path) -> None:
    """Show a command as a user would type it, and run it."""
    shown = ["slimgpu" if word == sys.executable else str(word) for word in command if word not in ("-m", "slimgpu")]
    print(f"\n# {title}\n$ {' '.join(shown)}", flush=True)
    started = time.monotonic()
    subprocess.run(command, check=True)
    print(f"({time.monotonic() - started:.1f} s)", flush=True)


def split(slimgpu: tuple[str, ...], image: str, slim: str, weights: str) -> None:
    """The same image without its weights, which become an artifact beside it."""
    options = ("--gpu", GPU, "--weights", "split", "--weights-to", weights)
    step("weights apart, both into a registry", *slimgpu, "build", image, "--to", slim, *options)
    step("what the artifact holds", *slimgpu, "weights", "list", weights)
    step("fetch them into memory that processes share", *slimgpu, "prefetch", weights)
    step("load them, and compare every value with what was packed", *slimgpu, "weights", "load", weights, "--check")
    step(
        "a command that starts while they are fetched",
        *slimgpu,
        "run",
        weights,
        "--",
        "sh",
        "-c",
        "echo $SLIMGPU_WEIGHTS",
    )


def main() -> int:
    """Run the demo; gives the exit code of the first command that fails."""
    print("# assembling examples/cuda-numpy: Debian, CUDA libraries and numpy from PyPI, a small model, build tools")
    print("# (a few minutes the first time, cached afterwards)", flush=True)
    slimgpu = (sys.executable, "-m", "slimgpu")
    try:
        image = subprocess.run(
            [sys.executable, HERE / "assemble.py", "cuda-numpy"], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.split()[-1]
        shutil.rmtree(SLIM, ignore_errors=True)
        step("where its bytes are", *slimgpu, "analyze", image, "--gpu", GPU)
        step("the slim image, and before and after", *slimgpu, "build", image, "--to", f"oci:{SLIM}:slim", "--gpu", GPU)
        step("what is left", *slimgpu, "analyze", f"oci:{SLIM}:slim")
        with running_registry(SLIM / "registry") as host:
            split(slimgpu, image, f"{host}/demo/server:slim", f"{host}/demo/weights:minilm")
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
