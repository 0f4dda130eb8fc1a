"""An image's root with some files replaced, in which its programs run: overlaid, so that nothing of it is changed."""

from __future__ import annotations

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_INSIDE = Path(__file__).with_name("inside.py")
_PYTHONS = ("opt/venv/bin/python", "usr/local/bin/python3", "usr/bin/python3")
_DRIVER = "driver"
"""The directory of libcuda in the root."""
_MOUNTS = """
set -e
mount -t overlay overlay -o "lowerdir=$1:$2" "$3"
mount -t proc proc "$3/proc"
mount --rbind /dev "$3/dev"
mount -t tmpfs tmpfs "$3/tmp"
shift 2
root=$1
shift
exec chroot "$root" "$@"
"""
"""In namespaces of its own, so that all of it is gone when the command ends: no network, no other processes."""
_ENVIRONMENT = {
    "PATH": "/opt/venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    "HOME": "/tmp",  # noqa: S108  # inside the root, a file system of its own
    "PYTHONDONTWRITEBYTECODE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class Root:
    """The root at ``base``, over which the files below ``changed`` lie."""

    def __init__(
        self, base: Path, changed: Path, mounted: Path, search: Iterable[str] = (), driver_calls: Iterable[str] = ()
    ) -> None:
        """``search`` names directories in which libraries look for each other, as frameworks arrange it.

        Where no GPU is there is no driver: `load` puts a library with these functions in its place.
        """
        self._search = ":".join([*search, f"/{_DRIVER}"])
        _make_driver(changed / _DRIVER, driver_calls)
        self._base = base
        self._changed = changed
        self._mounted = mounted
        mounted.mkdir(parents=True)
        for name in ("proc", "dev", "tmp"):
            (changed / name).mkdir(parents=True, exist_ok=True)
        self._python = next(f"/{path}" for path in _PYTHONS if os.path.lexists(base / path))

    def load(self, files: Sequence[tuple[str, bool]], jobs: int) -> dict[str, str]:
        """What came of loading each file; ``True`` for programs, which are not run."""
        with ThreadPoolExecutor(jobs) as pool:
            parts = pool.map(lambda n: self._run("load", files[n::jobs], n, self._search), range(jobs))
            return {path: said for part in parts for path, said in part.items()}

    def compute(self) -> Any:
        """What a process with torch computes on the CPU."""
        return self._run("compute", None, 0)

    def _run(self, mode: str, question: object, number: int, search: str = "") -> Any:
        mounted = self._mounted / f"{mode}-{number}"
        mounted.mkdir()
        command = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-c", _MOUNTS, "sh"]
        command += [str(self._changed), str(self._base), str(mounted)]
        command += [self._python, "-c", _INSIDE.read_text(), mode]
        said = subprocess.run(
            command,
            input=json.dumps(question),
            capture_output=True,
            text=True,
            check=False,
            env=_ENVIRONMENT | {"LD_LIBRARY_PATH": search},
        )
        mounted.rmdir()
        try:
            return json.loads(said.stdout)
        except ValueError as error:
            raise RuntimeError(
                f"{mode} in {self._base} said no JSON: {said.stdout[-500:]}{said.stderr[-2000:]}"
            ) from error


def _make_driver(folder: Path, names: Iterable[str]) -> None:
    """A libcuda whose functions all say that there is no GPU."""
    folder.mkdir(parents=True)
    source = "".join(f"int {name}(void) {{ return 100; }}\n" for name in sorted(names))
    command = ["gcc", "-w", "-fno-builtin", "-shared", "-Wl,-soname,libcuda.so.1", "-x", "c", "-"]
    subprocess.run([*command, "-o", folder / "libcuda.so.1"], input=source, text=True, check=True)
