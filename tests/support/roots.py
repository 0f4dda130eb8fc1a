"""Root file systems as directories: a real Debian with sh and perl, and one with a single program."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.examples import assembled
from tests.support.images import hello_executable
from tests.support.processes import run


def debian_root(folder: Path) -> Path:
    """The base of the example images."""
    layout = Path(assembled("cuda-numpy").split(":")[1])
    folder.mkdir()
    document = json.loads((layout / "index.json").read_bytes())["manifests"][0]
    manifest = json.loads(_blob(layout, document["digest"]).read_bytes())
    run("tar", "-C", folder, "-xzpf", _blob(layout, manifest["layers"][0]["digest"]))
    return folder


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def tiny_root(folder: Path) -> Path:
    """``/bin/hello``, a static program, and nothing else."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "hello").write_bytes(hello_executable())
    (folder / "bin" / "hello").chmod(0o755)
    return folder
