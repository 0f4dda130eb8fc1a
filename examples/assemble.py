#!/usr/bin/env python3
"""Assemble a real image from an example's Dockerfile, with or without a Docker engine.

Without one, mmdebstrap makes the Debian base and buildah runs the Dockerfile in a chroot. The result is an OCI layout
with one gzip layer per step, as `docker build` would give.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from layout import check, forget_mounts, publish
from machine import APT_SOURCES, SPARE_DIRECTORIES, SUITE, Handover, Missing, answer, handover, require, run, succeeds

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
SOURCES = ("slimgpu", "pyproject.toml", "README.md", "LICENSE")
"""What pip needs to install slimgpu into an image; a Dockerfile finds it as the build context ``slimgpu``."""
HUB_BASE = f"docker.io/library/debian:{SUITE}"
OWN_BASE = f"localhost/debian:{SUITE}"
EPOCH = "1735689600"  # the time of every file that mmdebstrap makes: the base has the same bytes each time

# What Debian's own images have and a plain bootstrap has not; and nothing of this machine's network.
BASE_HOOK = r"""
cd "$1/etc"
for file in hostname hosts resolv.conf; do : > $file; done
printf 'deb http://deb.debian.org/debian bookworm main\ndeb http://deb.debian.org/debian bookworm-updates main\n' \
  > apt/sources.list
printf 'deb http://deb.debian.org/debian-security bookworm-security main\n' >> apt/sources.list
printf 'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };\n' \
  > apt/apt.conf.d/docker-clean
printf 'Acquire::GzipIndexes "true";\nAcquire::Languages "none";\n' >> apt/apt.conf.d/docker-clean
"""


def base_archive(cache: Path, mirror: str | None) -> Path:
    """The Debian base as a tar file, made once."""
    key = hashlib.sha256(f"{BASE_HOOK}{mirror}".encode()).hexdigest()[:12]
    archive = cache / f"debian-{SUITE}-{key}.tar"
    with locked(cache / f"debian-{SUITE}.lock"):
        if not archive.exists():
            require("mmdebstrap")
            partial = archive.with_suffix(".partial.tar")
            hooks = ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", f"--customize-hook={BASE_HOOK}"]
            options = ["--variant=minbase", "--include=usr-is-merged", "--skip=output/dev", *hooks]
            run("mmdebstrap", *options, SUITE, partial, *([mirror] if mirror else []), SOURCE_DATE_EPOCH=EPOCH)
            partial.rename(archive)
    return archive


def dockerfile_for(example: Path, given: Handover, scratch: Path) -> Path:
    """The example's Dockerfile, with the mounts added to every RUN."""
    text = (example / "Dockerfile").read_text()
    path = scratch / "Dockerfile"
    path.write_text(re.sub(r"^RUN\s+", lambda match: match[0] + given.mounts, text, flags=re.MULTILINE))
    return path


def wants_sources(example: Path) -> bool:
    """Whether the example's image has slimgpu in it."""
    return "--from=slimgpu" in (example / "Dockerfile").read_text()


def sources(example: Path, scratch: Path) -> list[str]:
    """The build command's option for the sources, which are copied to `scratch`."""
    if not wants_sources(example):
        return []
    copy = scratch / "slimgpu"
    for name in SOURCES:
        path = HERE.parent / name
        if path.is_dir():
            shutil.copytree(path, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            copy.mkdir(exist_ok=True)
            shutil.copy2(path, copy / name)
    return ["--build-context", f"slimgpu={copy}"]


def overlay_works(directory: Path) -> bool:
    """Whether overlayfs can be mounted on this directory's file system."""
    with tempfile.TemporaryDirectory(dir=directory) as place:
        for name in ("lower", "upper", "work", "merged"):
            Path(place, name).mkdir()
        options = f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work"
        return succeeds("unshare", "--mount", "mount", "-t", "overlay", "-o", options, "overlay", f"{place}/merged")


def storage_options(store: Path) -> list[str]:
    """Options for a container storage of our own, on overlayfs where that works."""
    if not succeeds("unshare", "--mount", "true"):
        raise Missing("Root may not mount here (CAP_SYS_ADMIN): allow it, or run this with --docker.")
    store.mkdir(parents=True, exist_ok=True)
    driver = "overlay" if overlay_works(store) else "vfs"
    return ["--root", str(store / "root"), "--runroot", str(store / "run"), "--storage-driver", driver]


def with_buildah(example: Path, cache: Path, mirror: str | None, layout: Path) -> None:
    """Run the Dockerfile with buildah and write an OCI layout. A failed build's layers are kept for the next try."""
    require("mmdebstrap", "buildah", "skopeo")
    storage = storage_options(cache / "build" / example.name)
    base = base_archive(cache, mirror)
    given = handover(mirror, SPARE_DIRECTORIES)
    store = f"{storage[5]}@{storage[1]}+{storage[3]}"
    image = f"localhost/{example.name}:latest"
    run("skopeo", "copy", "--quiet", f"tarball:{base}", f"containers-storage:[{store}]{OWN_BASE}")
    with tempfile.TemporaryDirectory() as directory:
        dockerfile = dockerfile_for(example, given, Path(directory))
        options = ["--layers", "--pull-never", "--isolation", "chroot", "--network", "host", "--identity-label=false"]
        options += ["--build-arg", f"BASE={OWN_BASE}", *given.arguments(Path(directory))]
        options += sources(example, Path(directory))
        run("buildah", *storage, "build", *options, "--file", dockerfile, "--tag", image, example)
    run("buildah", *storage, "push", "--quiet", image, f"oci:{layout}:latest")
    run("buildah", *storage, "rmi", "--all", "--force")
    shutil.rmtree(cache / "build" / example.name, ignore_errors=True)
    forget_mounts(layout, given.mounts)
    check(layout, [path.lstrip("/") for path in given.files if path != APT_SOURCES])


def with_docker(example: Path, cache: Path, mirror: str | None) -> str:
    """Run the Dockerfile with `docker build`; the base is made here when the hub cannot be reached."""
    if not answer("docker", "version", "--format", "{{.Server.Version}}"):
        raise Missing("No Docker engine answers: start one, or leave out --docker.")
    base = HUB_BASE
    if not answer("docker", "pull", "--quiet", HUB_BASE):
        base = OWN_BASE
        run("docker", "import", base_archive(cache, mirror), base)
    given = handover(mirror, ())
    image = f"slimgpu-example/{example.name}:latest"
    proxies = [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "no_proxy")]
    with tempfile.TemporaryDirectory() as directory:
        dockerfile = dockerfile_for(example, given, Path(directory))
        options = ["--network", "host", "--build-arg", f"BASE={base}", *given.arguments(Path(directory))]
        options += sources(example, Path(directory))
        options += [word for name in proxies for word in ("--build-arg", name)]
        kit = {"DOCKER_BUILDKIT": "1"} if given.files else {}
        run("docker", "build", *options, "--file", dockerfile, "--tag", image, example, **kit)
    return f"docker-daemon:{image}"


def key_of(example: Path) -> str:
    """A hash of everything that the image is made from."""
    state = hashlib.sha256(BASE_HOOK.encode())
    places = [example, *(HERE.parent / name for name in SOURCES if wants_sources(example))]
    files = (path for place in places for path in (place.rglob("*") if place.is_dir() else [place]))
    for path in sorted(path for path in files if path.is_file() and "__pycache__" not in path.parts):
        data = path.read_bytes()
        name = path.relative_to(example if path.is_relative_to(example) else HERE.parent)
        state.update(f"{name} {path.stat().st_mode:o} {len(data)}\n".encode() + data)
    return state.hexdigest()[:12]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock, so that two runs do not assemble the same image at once."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def assembled(example: Path, cache: Path, mirror: str | None) -> Path:
    """The example's layout in the cache, assembled if it is not there yet."""
    layout = cache / "images" / f"{example.name}-{key_of(example)}"
    layout.parent.mkdir(exist_ok=True)
    with locked(cache / f"{example.name}.lock"):
        if not layout.exists():
            partial = layout.with_name(f".{layout.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            with_buildah(example, cache, mirror, partial)
            partial.rename(layout)
    return layout


def default_cache() -> Path:
    """The cache directory when none is named."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slimgpu-examples"


@click.command()
@click.argument("example")
@click.option("--to", "reference", metavar="oci:DIR[:TAG]", help="Where the image goes besides the cache.")
@click.option("--cache", type=click.Path(path_type=Path), default=default_cache, help="Base, images and build storage.")
@click.option("--mirror", help="A Debian mirror to use instead of deb.debian.org.")
@click.option("--docker", is_flag=True, help="Build with the Docker engine; the image stays there.")
def main(example: str, reference: str | None, cache: Path, mirror: str | None, *, docker: bool) -> None:
    """Assemble EXAMPLE, a folder here or a path, and print the image's name."""
    folder = Path(example) if (Path(example) / "Dockerfile").is_file() else HERE / example
    if not (folder / "Dockerfile").is_file():
        raise click.BadParameter(f"no Dockerfile in {folder}.", param_hint="EXAMPLE")
    if reference and (docker or not reference.startswith("oci:")):
        raise click.BadParameter("it takes oci:DIR[:TAG], and not together with --docker.", param_hint="--to")
    cache = cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    if docker:
        click.echo(with_docker(folder.resolve(), cache, mirror))
        return
    layout = assembled(folder.resolve(), cache, mirror)
    if reference:
        publish(layout, reference)
    click.echo(reference or f"oci:{layout}:latest")


if __name__ == "__main__":
    main()
