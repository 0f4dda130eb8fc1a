"""Debian's docker-registry, open or with Basic or Bearer authentication."""

from __future__ import annotations

import base64
import json
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.support.processes import answers, free_port, service
from tests.support.tokens import TokenServer, make_certificate, running_token_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

USER = "ada"
PASSWORD = "correct horse"  # noqa: S105 - of a registry that lives as long as a test
_BCRYPT = "$2y$04$Zua6bV.g2Vw60CN4IJlmDeYFy8TyRDW6g8hGOkfajS24bCZXE6/C2"
_ATTEMPTS = 5


@dataclass(frozen=True)
class Registry:
    """A registry on 127.0.0.1 and the folder where it keeps its blobs."""

    host: str
    storage: Path
    tokens: TokenServer | None = None

    @property
    def port(self) -> int:
        return int(self.host.rpartition(":")[2])

    def blob(self, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        return self.storage / "docker/registry/v2/blobs/sha256" / name[:2] / name / "data"

    def blob_link(self, repository: str, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        return self.storage / "docker/registry/v2/repositories" / repository / "_layers/sha256" / name / "link"


@contextmanager
def running_registry(
    root: Path, auth: Mapping[str, Any] | None = None, tls: Mapping[str, str] | None = None
) -> Iterator[Registry]:
    """A registry over ``root``, with these ``auth`` and ``http.tls`` sections."""
    config = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {
            "filesystem": {"rootdirectory": str(root / "storage")},
            "delete": {"enabled": True},
            "cache": {},
        },
        **({"auth": dict(auth)} if auth else {}),
    }
    for attempt in range(_ATTEMPTS):
        port = free_port()
        path = root / f"config-{port}.yml"
        http = {"addr": f"127.0.0.1:{port}", "secret": "test", **({"tls": dict(tls)} if tls else {})}
        path.write_text(yaml.safe_dump({**config, "http": http}))
        command: list[str | Path] = ["docker-registry", "serve", path]
        started = service(command, partial(answers, port), root / "registry.log")
        try:
            started.__enter__()
        except RuntimeError:
            if attempt == _ATTEMPTS - 1:
                raise
            continue
        try:
            yield Registry(f"127.0.0.1:{port}", root / "storage")
        finally:
            started.__exit__(None, None, None)
        return


@contextmanager
def running_basic_registry(root: Path) -> Iterator[Registry]:
    """A registry that wants `USER` and `PASSWORD`."""
    users = root / "htpasswd"
    users.write_text(f"{USER}:{_BCRYPT}\n")
    with running_registry(root, {"htpasswd": {"realm": "test", "path": str(users)}}) as registry:
        yield registry


@contextmanager
def running_token_registry(root: Path) -> Iterator[Registry]:
    """A registry that wants a token from ``tokens``, which wants `USER` and `PASSWORD`."""
    with running_token_server(root, USER, PASSWORD) as tokens:
        auth = {
            "realm": tokens.realm,
            "service": tokens.service,
            "issuer": tokens.issuer,
            "rootcertbundle": str(tokens.certificate),
        }
        with running_registry(root, {"token": auth}) as registry:
            yield Registry(registry.host, registry.storage, tokens)


@contextmanager
def running_tls_registry(root: Path) -> Iterator[tuple[Registry, Path]]:
    """A registry that speaks HTTPS, and the certificate that signs for it."""
    key, certificate = make_certificate(root)
    with running_registry(root, tls={"certificate": str(certificate), "key": str(key)}) as registry:
        yield registry, certificate


def write_docker_config(folder: Path, auths: Mapping[str, Mapping[str, str]]) -> Path:
    """``config.json`` with these entries; DOCKER_CONFIG is then ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"auths": auths}))
    return folder


def login(user: str = USER, password: str = PASSWORD) -> dict[str, str]:
    """An entry as ``docker login`` writes it."""
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}
