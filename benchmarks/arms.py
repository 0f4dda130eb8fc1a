"""The commands that are compared: slimgpu's own, and the public tools' work on the same bytes."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from timing import measure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from timing import Usage

_ROOT = Path(__file__).resolve().parent.parent
_SLIMGPU = (sys.executable, "-m", "slimgpu")
_READ = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Arm:
    """One command, what it needs cleared before, and what it leaves that no other arm needs."""

    name: str
    what: str
    command: tuple[str, ...]
    clear: tuple[Path, ...] = ()
    leaves: tuple[Path, ...] = ()
    reads: tuple[Path, ...] = ()
    """Files that are in the page cache when it starts."""
    environment: dict[str, str] = field(default_factory=dict)

    def run(self) -> Usage:
        """Measure it once: inputs in the page cache, earlier writes on the disk, leftovers removed."""
        _remove(self.clear)
        os.sync()
        for path in self.reads:
            _read(path)
        try:
            return measure(self.command, self.environment)
        finally:
            _remove(self.leaves)


class Layout:
    """An OCI layout's only image, by the documents in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        index = self._document(root / "index.json")
        if len(index["manifests"]) != 1:
            raise click.UsageError(f"{root} must hold exactly one image")
        manifest = self._document(self.blob(index["manifests"][0]["digest"]))
        self.layers: list[dict[str, Any]] = manifest["layers"]
        self.stored = sum(layer["size"] for layer in self.layers)

    def blob(self, digest: str) -> Path:
        """Where a blob lies."""
        return self.root / "blobs" / digest.replace(":", "/")

    def inflating(self) -> list[str]:
        """For each layer the shell command that prints its tar."""
        return [
            f"{_decoder(layer['mediaType'])} {shlex.quote(str(self.blob(layer['digest'])))}" for layer in self.layers
        ]

    def files(self) -> tuple[Path, ...]:
        """The layers' blobs."""
        return tuple(self.blob(layer["digest"]) for layer in self.layers)

    @staticmethod
    def _document(path: Path) -> Any:
        try:
            return json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise click.UsageError(f"{path} cannot be read: {error}; name the directory of an OCI layout") from error


class Bench:
    """All arms for one image, working below one directory."""

    def __init__(self, layout: Layout, work: Path) -> None:
        self._layout = layout
        self._work = work
        self._cache = work / "cache"
        self._slim = work / "slim"
        self._kept = work / "kept.tar"
        self._source = f"oci:{layout.root}"

    def prepare(self) -> int:
        """Build once, untimed, for the bytes that a build keeps; gives their number."""
        arm = self._build("prepare", cold=True)
        measure(arm.command, arm.environment)
        for command in Layout(self._slim).inflating():
            subprocess.run(["sh", "-c", f"{command} >> {shlex.quote(str(self._kept))}"], check=True)
        _remove((self._slim, self._cache))
        return self._kept.stat().st_size

    def ours(self) -> dict[str, Arm]:
        """Slimgpu's commands; the warm ones follow a cold one."""
        analyze = (*_SLIMGPU, "analyze", "--json", self._source)
        arms = [
            self._own("analyze cold", "slimgpu analyze", analyze, cold=True),
            self._own("analyze warm", "slimgpu analyze", analyze, cold=False),
            self._build("build cold", cold=True),
            self._build("build warm", cold=False),
            Arm("help", "slimgpu --help", (*_SLIMGPU, "--help"), environment=self._environment),
        ]
        return {arm.name: arm for arm in arms}

    def floor(self) -> dict[str, Arm]:
        """The public tools' steps."""
        copy, packed, script = (self._work / name for name in ("copy", "kept.tar.zst", "inflate.sh"))
        tars = [self._work / f"layer-{number}.tar" for number in range(len(self._layout.layers))]
        pairs = zip(self._layout.inflating(), tars, strict=True)
        script.write_text("".join(f"{command} > {shlex.quote(str(tar))}\n" for command, tar in pairs))
        cores = str(len(os.sched_getaffinity(0)))
        parallel = ("xargs", "-a", str(script), "-d", "\\n", "-P", cores, "-I{}", "sh", "-c", "{}")
        pack = 'zstd -q -f -3 -T0 "$0" -o "$1" && sync "$1"'
        blobs = self._layout.files()
        arms = [
            Arm(
                "copy",
                "skopeo copy oci:... dir:... (it fsyncs)",
                ("skopeo", "copy", "-q", self._source, f"dir:{copy}"),
                leaves=(copy,),
                reads=blobs,
            ),
            Arm(
                "inflate",
                "pigz -d (or zstd -d) to files, a layer at a time",
                ("sh", "-e", str(script)),
                leaves=tuple(tars),
                reads=blobs,
            ),
            Arm(
                "inflate -P",
                "the same, all layers at once (xargs -P)",
                parallel,
                leaves=tuple(tars),
                reads=blobs,
            ),
            Arm(
                "zstd",
                "zstd -3 -T0 of the kept bytes, then fsync",
                ("sh", "-c", pack, str(self._kept), str(packed)),
                leaves=(packed,),
                reads=(self._kept,),
            ),
        ]
        return {arm.name: arm for arm in arms}

    @property
    def _environment(self) -> dict[str, str]:
        return {"SLIMGPU_CACHE_DIR": str(self._cache), "PYTHONPATH": str(_ROOT)}

    def _build(self, name: str, *, cold: bool) -> Arm:
        command = (*_SLIMGPU, "-q", "build", self._source, "--to", f"oci:{self._slim}")
        return self._own(name, "slimgpu build", command, cold=cold, leaves=(self._slim,))

    def _own(self, name: str, what: str, command: tuple[str, ...], *, cold: bool, leaves: tuple[Path, ...] = ()) -> Arm:
        return Arm(
            name,
            f"{what}, {'empty' if cold else 'filled'} cache",
            command,
            clear=(self._cache,) if cold else (),
            leaves=leaves,
            reads=self._layout.files() if cold else (self._cache / "layers",),
            environment=self._environment,
        )


def _decoder(media_type: str) -> str:
    if media_type.endswith("gzip"):
        return "pigz -dc"
    return "zstd -dcq" if media_type.endswith("zstd") else "cat"


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _read(path: Path) -> None:
    """Bring a file, or the files of a directory, into the page cache."""
    for file in [path] if path.is_file() else sorted(path.glob("*.tar")):
        with file.open("rb", buffering=0) as stream:
            while stream.read(_READ):
                pass
