"""Credentials for a registry, from Docker's own configuration and credential helpers.

Read in this order: the file that ``REGISTRY_AUTH_FILE`` names (as podman and skopeo write it), then Docker's
``config.json`` in ``DOCKER_CONFIG`` or ``~/.docker`` with its ``credsStore`` and ``credHelpers``.

Sources: https://docs.docker.com/reference/cli/docker/login/,
https://github.com/containers/image/blob/main/docs/containers-auth.json.5.md
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from slimgpu.errors import RegistryError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docker.auth import AuthConfig

_AUTH_FILE_VARIABLE: Final = "REGISTRY_AUTH_FILE"
_DOCKER_API_PATHS: Final = ("", "v1", "v2")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's name and password, or an identity token; neither secret appears in ``repr``."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


def find_credentials(host: str, repository: str) -> Credentials | None:
    """What the user's configuration holds for ``host/repository``; None when it holds nothing.

    Raises `UsageError` for a broken configuration file, `RegistryError` for a credential helper that fails.
    """
    for path in _files():
        config = _load(path)
        entry = _entry(config, host, repository, path) if config is not None else None
        if entry:
            return _credentials(entry)
    return None


def _files() -> Iterator[Path]:
    from docker.utils.config import find_config_file  # noqa: PLC0415 - only for those who need credentials

    named = os.environ.get(_AUTH_FILE_VARIABLE)
    if named and Path(named).exists():
        yield Path(named)
    default = find_config_file()
    if default:
        yield Path(str(default))


def _load(path: Path) -> AuthConfig | None:
    from docker.auth import load_config  # noqa: PLC0415
    from docker.errors import InvalidConfigFile  # noqa: PLC0415

    try:
        document = _read(path)
        return load_config(config_dict=document) if document else None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); mend its permissions") from error
    except (ValueError, AttributeError, InvalidConfigFile):
        # Without its cause: that could quote what it could not decode.
        raise UsageError(f"{path} is not a valid registry configuration; run docker login again") from None


def _read(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_bytes())
    if not isinstance(document, dict):
        raise ValueError("not an object")  # noqa: TRY004 - like any other broken content
    return document


def _entry(config: AuthConfig, host: str, repository: str, path: Path) -> dict[str, str] | None:
    """The most specific entry: podman's files may name a repository or a part of its path."""
    from docker.credentials.errors import StoreError  # noqa: PLC0415
    from docker.errors import DockerException  # noqa: PLC0415

    parts = repository.split("/")
    for count in range(len(parts), 0, -1):
        entry: dict[str, str] | None = config.auths.get("/".join([host, *parts[:count]]))
        if entry:
            return entry
    config["auths"] = {key: value for key, value in config.auths.items() if _is_host(key)}
    try:
        with warnings.catch_warnings(action="ignore"):  # a missing helper is told of below
            found: dict[str, str] | None = config.resolve_authconfig(host)
    except (StoreError, DockerException):
        # Without its cause, which quotes what the helper printed.
        raise RegistryError(
            f"the credential helper that {path} names for {host} is missing or failed; "
            f"mend it or run docker login {host}"
        ) from None
    return found


def _is_host(key: str) -> bool:
    """Whether a key means a whole host: ``ghcr.io`` or ``https://index.docker.io/v1/``, not ``quay.io/team``."""
    return key.rpartition("://")[2].partition("/")[2].strip("/") in _DOCKER_API_PATHS


def _credentials(entry: dict[str, str]) -> Credentials | None:
    """Files spell the keys in lower case, helpers with a capital."""
    values = {key.lower(): value for key, value in entry.items()}
    found = Credentials(values.get("username") or "", values.get("password") or "", values.get("identitytoken") or "")
    return found if found != Credentials() else None
