"""The real images of ``examples/``, assembled once and cached."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_ASSEMBLE = Path(__file__).resolve().parents[2] / "examples" / "assemble.py"


def assembled(name: str) -> str:
    """The example's image as a reference; the first call takes minutes."""
    # The credentials of a test are no business of the tools that assemble an image.
    private = ("DOCKER_CONFIG", "DOCKER_HOST", "REGISTRY_AUTH_FILE")
    environment = {key: value for key, value in os.environ.items() if key not in private}
    result = subprocess.run(
        [sys.executable, str(_ASSEMBLE), name],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=1500,
        env=environment,
    )
    return result.stdout.split()[-1]
