"""Real interpreters that run programs with the probe in them.

``SLIMGPU_PYTHONS=/opt/python3.6/bin/python:/opt/python3.14/bin/python`` adds versions to those that every machine with
the project has.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimgpu.bench.probe.read import FOLDER, probe_environment, read_events

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slimgpu.events import Event

PYTHONS = tuple(dict.fromkeys([sys.executable, "/usr/bin/python3", *os.environ.get("SLIMGPU_PYTHONS", "").split(":")]))
INTERPRETERS = tuple(python for python in PYTHONS if python)


@dataclass(frozen=True)
class Probe:
    """The probe in a folder of its own, and the file it tells its stages in."""

    folder: Path
    file: Path
    since: float

    def environment(self, **variables: str) -> dict[str, str]:
        """Ours with ``variables`` as the image's own and what a probed program needs."""
        given = _environment(**variables)
        return given | probe_environment(str(self.folder), str(self.file), given)

    def run(
        self, program: str | Path, *options: str, python: str = sys.executable, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a script, or the text of one, to its end, whatever that is."""
        return _run(program, options, python, self.environment(**variables))

    def out(self, program: str | Path, *options: str, python: str = sys.executable, **variables: str) -> str:
        """What it prints; nothing goes to its standard error, and it does not fail."""
        result = self.run(program, *options, python=python, **variables)
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout

    def events(self) -> list[Event]:
        told = read_events(self.file, self.since)
        assert told.dropped == 0
        return list(told.events)

    def told(self, stage: str) -> list[str]:
        """What a stage was done to, in the order in which it ended."""
        return [event.what for event in self.events() if event.stage == stage]

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()]


def new_probe(folder: Path) -> Probe:
    """A copy of the probe: byte code stays out of the project."""
    shutil.copytree(FOLDER, folder / "inject", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "told").touch(0o666)
    return Probe(folder / "inject", folder / "told", time.monotonic())


def run_plainly(
    program: str | Path, *options: str, python: str = sys.executable, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The same as `Probe.run` without a probe."""
    return _run(program, options, python, _environment(**variables))


def _environment(**variables: str) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return ours | variables | {"PYTHONDONTWRITEBYTECODE": "1"}


def _run(
    program: str | Path, options: Sequence[str], python: str, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    command = [python, *options, *([program] if isinstance(program, Path) else ["-c", program])]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
