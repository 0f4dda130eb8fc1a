"""What NVIDIA's cuobjdump says about a library, and what it takes out of it."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proof.read import Reading

UNLISTED = ".cask_resource"
"""A section that cuobjdump does not look into; its containers are handed over as a file."""

_STANZA = re.compile(r"^Fatbin (\w+) code:\n=+\n(.*?)(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"\.(\d+)\.sm_\w+\.(cubin|ptx)")


@dataclass(frozen=True, slots=True)
class Listed:
    """One piece of code as cuobjdump describes it."""

    form: str
    arch: str
    text: str
    """All that it says: version, host, whether it is compressed, options of ptxas."""


class CuObjDump:
    """The tool, and a directory for what it extracts."""

    def __init__(self, program: str, work: Path) -> None:
        self._program = program
        self._work = work

    def version(self) -> str:
        """Of the tool."""
        said = subprocess.run([self._program, "--version"], capture_output=True, text=True, check=True).stdout
        return said.rpartition(", ")[2].partition("\n")[0]

    def listing(self, path: Path, reading: Reading) -> list[Listed]:
        """Every cubin and PTX in order, those of `UNLISTED` last."""
        with tempfile.TemporaryDirectory(dir=self._work) as folder:
            files = [path, *_unlisted(reading, Path(folder))]
            return [listed for file in files for listed in self._list(file)]

    def extracted(self, path: Path, reading: Reading) -> dict[str, list[str]]:
        """SHA-256 of each decompressed ``elf`` and ``ptx`` in order."""
        with tempfile.TemporaryDirectory(dir=self._work) as folder:
            files = [path, *_unlisted(reading, Path(folder))]
            return {form: [found for file in files for found in self._extract(file, form)] for form in ("elf", "ptx")}

    def _list(self, path: Path) -> list[Listed]:
        said = subprocess.run([self._program, "-all", path], capture_output=True, text=True, check=False).stdout
        stanzas = [(match[1], match[2].strip()) for match in _STANZA.finditer(said)]
        return [Listed(form, text.partition("\n")[0].removeprefix("arch = "), text) for form, text in stanzas]

    def _extract(self, path: Path, form: str) -> list[str]:
        with tempfile.TemporaryDirectory(dir=self._work) as folder:
            command = [self._program, "-all", f"--extract-{form}", "all", path]
            subprocess.run(command, cwd=folder, capture_output=True, check=False)
            files = sorted(Path(folder).iterdir(), key=_position)
            return [_digest(file) for file in files]


def find_cuobjdump() -> str:
    """The program of the package ``nvidia-cuda-cuobjdump``, or the one on the path."""
    for folder in sys.path:
        for found in Path(folder).glob("nvidia/cu*/bin/cuobjdump"):
            return str(found)
    found_on_path = shutil.which("cuobjdump")
    if found_on_path is None:
        raise FileNotFoundError("cuobjdump is missing; pip install nvidia-cuda-cuobjdump")
    return found_on_path


def _unlisted(reading: Reading, folder: Path) -> list[Path]:
    containers = reading.containers(UNLISTED)
    if not containers:
        return []
    path = folder / "resource.fatbin"
    with path.open("wb") as out:
        for container in containers:
            out.write(reading.data[container.start : container.end])
    return [path]


def _position(path: Path) -> int:
    match = _FILE.search(path.name)
    if match is None:
        raise ValueError(f"cuobjdump wrote {path.name}, a name without a position")
    return int(match[1])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    path.unlink()
    return digest
