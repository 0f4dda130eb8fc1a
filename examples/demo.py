#!/usr/bin/env python3
"""The demo: assemble a real image from public packages, look into it, slim it, and print before and after.

No Docker engine is used. The assembled image is cached, so a second run takes seconds.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

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
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
