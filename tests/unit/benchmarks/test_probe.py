"""``benchmarks/probe.py`` on a few starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks/probe.py"


def test_starts_are_measured_with_and_without() -> None:
    command = [sys.executable, SCRIPT, "--runs", "2", "--import", "numpy"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    document = json.loads(said.stdout)
    assert [(one["program"], one["count"]) for one in document["figures"]] == [("pass", 2), ("import numpy", 2)]
    assert len(document["samples"]) == 4
    assert all(one["without"]["wall"] > 0 < one["probed"]["processor"] for one in document["samples"])
