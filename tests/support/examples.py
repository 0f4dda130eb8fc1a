"""The real images of ``examples/``, assembled once and cached."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ASSEMBLE = Path(__file__).resolve().parents[2] / "examples" / "assemble.py"


def assembled(name: str) -> str:
    """The example's image as a reference; the first call takes minutes."""
    result = subprocess.run(
        [sys.executable, str(_ASSEMBLE), name], stdout=subprocess.PIPE, text=True, check=True, timeout=1500
    )
    return result.stdout.split()[-1]
