"""Answering a registry's demand for credentials: Basic, or a Bearer token from its token service.

Sources: https://distribution.github.io/distribution/spec/auth/token/ and oauth/, RFC 9110 section 11.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

import requests
from requests.utils import parse_dict_header

from slimgpu.errors import RegistryError
from slimgpu.store.credentials import Credentials, find_credentials
from slimgpu.store.http_session import TIMEOUT, origin, read_bounded, reason, require_secure

_SCHEME: Final = re.compile(r"(?:^|,\s*)(bearer|basic)(?:\s+|$)", re.IGNORECASE)
_MAX_ANSWER: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a ``WWW-Authenticate`` header asks for."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenge(header: str) -> Challenge | None:
    """The challenge that we answer: Bearer before Basic; None when the header names neither."""
    starts = list(_SCHEME.finditer(header))
    ends = [match.start() for match in starts[1:]]
    found = {}
    for match, end in zip_longest(starts, ends):
        values: dict[str, str | None] = parse_dict_header(header[match.end() : end])  # type: ignore[no-untyped-call]
        parameters = {key.lower(): value for key, value in values.items() if value is not None}
        found[match[1].lower()] = Challenge(match[1].lower(), parameters)
    return found.get("bearer") or found.get("basic")


class Authenticator:
    """The ``Authorization`` header for one repository, shared by the threads that use it."""

    def __init__(self, session: requests.Session, host: str, repository: str, actions: str) -> None:
        self._session = session
        self._host = host
        self._repository = repository
        self._resource = f"repository:{repository}:"
        self._wanted = [self._resource + actions]
        self._lock = threading.Lock()
        self._header: str | None = None
        self._bearer: tuple[Challenge, str] | None = None

    def header(self) -> str | None:
        """What to send now; None as long as the registry has not asked for anything."""
        with self._lock:
            return self._header

    def renew(self, www_authenticate: str, used: str | None, url: str) -> None:
        """Get a new header after a 401 to a request for ``url`` that carried ``used``.

        Does nothing when another thread got one meanwhile. Raises `RegistryError` when there are no credentials
        or they were not accepted.
        """
        with self._lock:
            if self._header == used:
                self._header = self._answer(parse_challenge(www_authenticate), used, url)

    def include(self, repository: str) -> None:
        """Be allowed to read another repository, too; `RegistryError` when the token service refuses that."""
        scope = f"repository:{repository}:pull"
        with self._lock:
            if scope in self._wanted:
                return
            self._wanted.append(scope)
            if self._bearer is None:
                return
            challenge, url = self._bearer
            try:
                self._header = self._answer(challenge, None, url)
            except RegistryError:
                self._wanted.remove(scope)
                raise

    def refused(self) -> RegistryError:
        """The error for credentials, or their absence, that the registry does not accept."""
        return RegistryError(
            f"{self._host} does not let us use {self._repository} with the credentials at hand "
            f"(or it does not exist there); check the name, or run docker login {self._host}"
        )

    def _answer(self, challenge: Challenge | None, used: str | None, url: str) -> str:
        if challenge is None:
            raise self.refused()
        credentials = find_credentials(self._host, self._repository)
        if challenge.scheme == "bearer":
            self._bearer = challenge, url
            return f"Bearer {self._fetch_token(challenge, credentials, url)}"
        if credentials is None or not credentials.username or used is not None:
            raise self.refused()
        return _basic(credentials)

    def _fetch_token(self, challenge: Challenge, credentials: Credentials | None, url: str) -> str:
        realm = challenge.parameters.get("realm", "")
        require_secure(realm, url)
        try:
            with self._ask(realm, challenge, credentials) as response:
                if response.status_code in (400, 401, 403):
                    raise self.refused()
                if response.status_code != requests.codes.ok:
                    raise RegistryError(
                        f"the token service of {self._host} answered {response.status_code}; try again later"
                    )
                return self._token(read_bounded(response, _MAX_ANSWER))
        except (requests.RequestException, ValueError) as error:
            raise RegistryError(
                f"no token for {self._host}/{self._repository}: {reason(error, origin(realm)[1])}"
            ) from error

    def _ask(self, realm: str, challenge: Challenge, credentials: Credentials | None) -> requests.Response:
        scopes = self._scopes(challenge)
        service = challenge.parameters.get("service")
        if credentials is not None and credentials.identity_token:
            form = {
                "grant_type": "refresh_token",
                "client_id": "slimgpu",
                "refresh_token": credentials.identity_token,
                "scope": " ".join(scopes),
                **({"service": service} if service else {}),
            }
            return self._session.post(realm, data=form, timeout=TIMEOUT, allow_redirects=False, stream=True)
        query = [("scope", scope) for scope in scopes] + ([("service", service)] if service else [])
        headers = {"Authorization": _basic(credentials)} if credentials is not None else {}
        return self._session.get(realm, params=query, headers=headers, timeout=TIMEOUT, stream=True)

    def _scopes(self, challenge: Challenge) -> list[str]:
        """Our own, and what the registry wants of other resources (a mount's source)."""
        asked = challenge.parameters.get("scope", "").split()
        others = (scope for scope in asked if not scope.startswith(self._resource) and scope not in self._wanted)
        return [*self._wanted, *others]

    def _token(self, data: bytes | None) -> str:
        try:
            document = json.loads(data or b"")
            token = document.get("token") or document.get("access_token")
        except (ValueError, AttributeError):
            token = None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise RegistryError(f"the token service of {self._host} gave no token; try again later")
        return token


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"
