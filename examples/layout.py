"""The OCI layout that buildah wrote: tidied, checked, and put where it is wanted."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from machine import Failed

if TYPE_CHECKING:
    from collections.abc import Sequence

NETWORK_FILES = ("etc/hostname", "etc/hosts", "etc/resolv.conf")


def blob(layout: Path, descriptor: dict[str, Any]) -> Path:
    """Where a layout keeps a descriptor's bytes."""
    return layout / "blobs" / str(descriptor["digest"]).replace(":", "/")


def replace_blob(layout: Path, descriptor: dict[str, Any], value: dict[str, Any]) -> None:
    """Put a new JSON document in the place of a descriptor's old one."""
    blob(layout, descriptor).unlink()
    data = json.dumps(value, separators=(",", ":")).encode()
    descriptor.update(digest=f"sha256:{hashlib.sha256(data).hexdigest()}", size=len(data))
    blob(layout, descriptor).write_bytes(data)


def forget_mounts(layout: Path, mounts: str) -> None:
    """Take the mounts out of the image's history, where buildah records them as part of the command."""
    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads(blob(layout, index["manifests"][0]).read_bytes())
    config = json.loads(blob(layout, manifest["config"]).read_bytes())
    for step in config["history"]:
        step["created_by"] = step.get("created_by", "").replace(mounts, "")
    replace_blob(layout, manifest["config"], config)
    replace_blob(layout, index["manifests"][0], manifest)
    (layout / "index.json").write_text(json.dumps(index))


def check(layout: Path, secrets: Sequence[str]) -> None:
    """Read every layer, show its sizes, and fail if it holds a file of this machine."""
    index = json.loads((layout / "index.json").read_bytes())
    for layer in json.loads(blob(layout, index["manifests"][0]).read_bytes())["layers"]:
        total = 0
        with gzip.open(blob(layout, layer)) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if name in secrets or (name in NETWORK_FILES and member.size):
                    raise Failed(f"{name} of this machine got into layer {layer['digest']}.")
                total += member.size
        click.echo(f"{layer['digest'][:19]}  {total:>14,} bytes of files  {layer['size']:>14,} as gzip", err=True)


def link_or_copy(source: str, target: str) -> str:
    """Blobs never change, so a second layout can share them; the other files are copied."""
    if "/blobs/" not in source:
        return str(shutil.copy2(source, target))
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def same(path: Path, document: dict[str, Any]) -> bool:
    """Whether a file holds this JSON document."""
    return path.is_file() and bool(json.loads(path.read_bytes()) == document)


def publish(layout: Path, reference: str) -> None:
    """Make a layout appear, whole, at `oci:DIR[:TAG]`."""
    name, _, tag = reference.removeprefix("oci:").partition(":")
    target = Path(name)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(layout, partial, copy_function=link_or_copy)
    index = json.loads((partial / "index.json").read_bytes())
    index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": tag or "latest"}
    (partial / "index.json").write_text(json.dumps(index))
    if not target.exists():
        partial.rename(target)
        return
    shutil.rmtree(partial)
    if not same(target / "index.json", index):
        raise Failed(f"{target} is there already and is another image: remove it, or name another directory.")
