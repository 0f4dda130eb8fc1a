"""The command line as its users start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


def slimgpu(*arguments: str, **variables: str) -> str:
    """What ``slimgpu ARGUMENTS`` prints with these ``variables`` set; an error with what it says when it fails."""
    result = subprocess.run(
        [sys.executable, "-m", "slimgpu", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env={**os.environ, **variables},
    )
    if result.returncode:
        raise RuntimeError(f"slimgpu {arguments} exited with {result.returncode}:\n{result.stdout}{result.stderr}")
    return result.stdout


def slimgpu_json(*arguments: str) -> dict[str, Any]:
    """The JSON document that ``slimgpu ARGUMENTS --json`` prints."""
    document = json.loads(slimgpu(*arguments, "--json"))
    assert isinstance(document, dict)
    return document
