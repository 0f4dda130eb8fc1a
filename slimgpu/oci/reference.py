"""Names of images, as skopeo writes them.

``docker://host/repo:tag@digest`` (what a bare name means), ``docker-daemon:repo:tag``, ``oci:dir[:tag]``,
``oci-archive:file[:tag]``, ``docker-archive:file.tar[:repo:tag]``. Beyond that, ``oci:dir@digest`` and
``oci-archive:file@digest`` name what a layout holds without a tag.

Sources: https://github.com/containers/image/blob/main/docs/containers-transports.5.md,
https://github.com/distribution/reference
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from slimgpu.errors import UsageError
from slimgpu.oci.digest import is_digest

_DEFAULT_HOST: Final = "docker.io"
_HOST: Final = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?")
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_MAX_REPOSITORY: Final = 255
_HELP: Final = (
    "name an image as docker://host/repo:tag, docker-daemon:repo:tag, oci:dir[:tag], "
    "oci-archive:file[:tag] or docker-archive:file.tar"
)


class PathTransport(StrEnum):
    """Transports that keep images in the file system."""

    OCI = "oci"
    OCI_ARCHIVE = "oci-archive"
    DOCKER_ARCHIVE = "docker-archive"


@dataclass(frozen=True, slots=True)
class RegistryReference:
    """An image in a registry; at least one of ``tag`` and ``digest`` is set, and the digest wins."""

    host: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"docker://{self.host}/{self.repository}{tag}{digest}"

    @property
    def identifier(self) -> str:
        """What follows ``/manifests/`` in the registry API."""
        return self.digest or self.tag or "latest"


@dataclass(frozen=True, slots=True)
class DaemonReference:
    """An image in the local Docker engine, by name or image id."""

    name: str

    def __str__(self) -> str:
        return f"docker-daemon:{self.name}"


@dataclass(frozen=True, slots=True)
class PathReference:
    """An image in a directory or an archive file; ``tag`` or ``digest`` picks one of several."""

    transport: PathTransport
    path: Path
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.transport}:{self.path}{tag}{digest}"

    @property
    def identifier(self) -> str | None:
        """What picks one of several; None for the only one."""
        return self.digest or self.tag


Reference = RegistryReference | DaemonReference | PathReference

_UNSUPPORTED: Final = ("containers-storage", "dir", "containerd", "podman", "ostree", "sif", "tarball")


def is_host(text: str) -> bool:
    """Whether ``text`` is a host, with or without a port."""
    return _HOST.fullmatch(text) is not None


def is_repository(text: str) -> bool:
    """Whether ``text`` is the name of a repository, as in ``host/text:tag``."""
    return len(text) <= _MAX_REPOSITORY and _REPOSITORY.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Whether ``text`` is a well-formed tag."""
    return _TAG.fullmatch(text) is not None


def by_digest(reference: Reference, digest: str) -> Reference:
    """What has this digest where ``reference`` lies (in the Docker engine: this image id)."""
    if isinstance(reference, DaemonReference):
        return DaemonReference(digest)
    return replace(reference, tag=None, digest=digest)


def parse_reference(text: str) -> Reference:
    """The reference that ``text`` names; `UsageError` that says how to write one."""
    if not text or text != text.strip() or "\0" in text:
        raise UsageError(f"{text!r} names no image; {_HELP}")
    scheme, separator, rest = text.partition(":")
    if separator and scheme == "docker" and rest.startswith("//"):
        return _parse_registry(rest.removeprefix("//"), text)
    if separator and scheme == "docker-daemon":
        return _parse_daemon(rest, text)
    if separator and scheme in list(PathTransport):
        return _parse_path(PathTransport(scheme), rest, text)
    _refuse_unknown_transport(text, scheme, rest)
    return _parse_registry(text, text)


def _refuse_unknown_transport(text: str, scheme: str, rest: str) -> None:
    known = ["docker-daemon", *PathTransport]
    if rest.startswith("//") or scheme in _UNSUPPORTED:
        raise UsageError(f"{text!r} has the unknown transport {scheme!r}; {_HELP}")
    close = difflib.get_close_matches(scheme, known, n=1, cutoff=0.8)
    if close and rest:
        raise UsageError(f"{text!r} has the unknown transport {scheme!r}; did you mean {close[0]}:?")


def _parse_registry(name: str, text: str) -> RegistryReference:
    rest, _, digest = name.partition("@")
    if "@" in name and not is_digest(digest):
        raise UsageError(f"{text!r} has no valid digest after '@'; write @sha256: and 64 hexadecimal digits")
    head, slash, tail = rest.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost" or head != head.lower()):
        host, path = head, tail
    else:
        host, path = _DEFAULT_HOST, rest if slash else f"library/{rest}"
    repository, colon, tag = path.partition(":")
    _check(_HOST.fullmatch(host) is not None, text, f"{host!r} is not a registry host")
    _check(
        is_repository(repository),
        text,
        f"{repository!r} is not a repository (lower-case letters, digits, '.', '_', '-')",
    )
    _check(not colon or is_tag(tag), text, f"{tag!r} is not a tag")
    default = None if digest else "latest"
    return RegistryReference(host, repository, tag or default, digest or None)


def _parse_daemon(name: str, text: str) -> DaemonReference:
    image_id = is_digest(name)
    if not image_id:
        parsed = _parse_registry(name, text)
        _check(parsed.digest is None, text, "the Docker engine is asked by name:tag or by image id")
        name = name if parsed.tag and name.endswith(f":{parsed.tag}") else f"{name}:latest"
    return DaemonReference(name)


def _parse_path(transport: PathTransport, rest: str, text: str) -> PathReference:
    named, at, digest = rest.rpartition("@")
    if not at or transport is PathTransport.DOCKER_ARCHIVE or not is_digest(digest):
        named, digest = rest, ""
    path, tag = _split_path(transport, named)
    _check(bool(path), text, "the path is missing")
    return PathReference(transport, Path(path), tag, digest or None)


def _split_path(transport: PathTransport, rest: str) -> tuple[str, str | None]:
    if transport is PathTransport.DOCKER_ARCHIVE:
        path, colon, name = rest.partition(":")
        return path, name if colon else None
    path, colon, tag = rest.rpartition(":")
    if colon and is_tag(tag):
        return path, tag
    return rest, None


def _check(valid: bool, text: str, complaint: str) -> None:  # noqa: FBT001
    if not valid:
        raise UsageError(f"{text!r} names no image: {complaint}; {_HELP}")
