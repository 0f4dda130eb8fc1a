"""One HTTP session with the rules that hold for every registry: HTTPS, bounded retries, no leaked credentials."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import ReadTimeoutError
from urllib3.util.retry import Retry

from slimgpu import __version__
from slimgpu.errors import RegistryError
from slimgpu.store.http_pace import PacedAdapter

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

TIMEOUT: Final = (10.0, 60.0)
"""Seconds to connect, and to wait for the next bytes, or for what `slimgpu.store.http_pace` asks of so long a time."""
UPLOAD_TIMEOUT: Final = (10.0, 600.0)
"""The same for uploads: storage behind a registry may take minutes to take over a blob of many gigabytes."""
RANGE_TIMEOUT: Final = (5.0, 10.0)
"""The same for a part of a blob, which can be asked for again, or elsewhere."""
_POOL: Final = 64
_RETRIES: Final = 4
_CONNECT_RETRIES: Final = 2
_BACKOFF_MAX: Final = 8.0
_RETRY_AFTER_MAX: Final = 60.0
PASSING: Final = (429, 500, 502, 503, 504)
"""Statuses that another attempt may not meet."""
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class _BoundedRetry(Retry):
    """A server may ask us to wait, but not for hours; and one that let us wait is asked once more, not four times."""

    def increment(self, method: str | None = None, url: str | None = None, *others: Any, **named: Any) -> Self:
        """See `Retry.increment`."""
        error = named.get("error")
        if isinstance(error, ReadTimeoutError) and any(isinstance(each.error, type(error)) for each in self.history):
            raise error
        return super().increment(method, url, *others, **named)

    def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
        seconds = super().get_retry_after(response)
        return seconds if seconds is None else min(seconds, _RETRY_AFTER_MAX)


class _NoNetrc(requests.auth.AuthBase):
    """Credentials come from Docker's configuration only; without this requests would read ``~/.netrc``."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


class _Session(requests.Session):
    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """On a redirect: no credentials to another origin, and no plain HTTP beyond this machine."""
        target = prepared_request.url or ""
        require_secure(target, response.url)
        if origin(target) != origin(response.url):
            prepared_request.headers.pop("Authorization", None)

    def merge_environment_settings(self, url: Any, *arguments: Any, **named: Any) -> Any:
        """No proxy lies between us and this machine's own services."""
        settings = super().merge_environment_settings(url, *arguments, **named)
        if is_loopback(origin(str(url))[1]):
            settings["proxies"] = {}
        return settings


def new_session(*, retries: int = _RETRIES) -> requests.Session:
    """A session that any number of threads may use; ``retries`` is for requests that can be sent again."""
    session = _Session()
    retry = _BoundedRetry(
        total=retries,
        connect=min(retries, _CONNECT_RETRIES),
        other=0,
        backoff_factor=0.5,
        backoff_max=_BACKOFF_MAX,
        status_forcelist=PASSING,
        allowed_methods=("GET", "HEAD"),
        redirect=0,
        raise_on_status=False,
        raise_on_redirect=False,
    )
    adapter = PacedAdapter(pool_connections=_POOL, pool_maxsize=_POOL, max_retries=retry)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    session.auth = _NoNetrc()
    session.headers.update({"User-Agent": f"slimgpu/{__version__}", "Accept-Encoding": "identity"})
    return session


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port: what credentials belong to; all empty for what is no URL."""
    try:
        parts = urlsplit(url)
        return parts.scheme, (parts.hostname or "").lower(), parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return "", "", None


def resolve_location(response: requests.Response) -> str:
    """The URL that a ``Location`` header sends us to; `RegistryError` when it is none, or not secure."""
    try:
        url = urljoin(response.url, response.headers.get("Location", ""))
    except ValueError:
        url = ""
    require_secure(url, response.url)
    return url


def is_loopback(host: str) -> bool:
    """Whether a host name without port can only mean this machine."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def require_secure(url: str, source: str) -> None:
    """`RegistryError` when ``source`` sends us to a ``url`` that is neither HTTPS nor on this machine.

    Only a service that itself is on this machine, over plain HTTP, may name another one like that.
    """
    scheme, host, _ = origin(url)
    if scheme == "https" or (scheme == "http" and is_loopback(host) and origin(source)[0] == "http"):
        return
    raise RegistryError(
        f"{origin(source)[1]} sends us to {scheme}://{host}, which is not HTTPS; mend the registry's configuration"
    )


def reason(error: Exception, host: str) -> str:
    """The failure in a few words, without the URL (which may hold a token)."""
    if isinstance(error, requests.exceptions.SSLError):
        return (
            f"{host} does not answer with a trusted certificate over HTTPS; name its authority in "
            "REQUESTS_CA_BUNDLE (plain HTTP is only spoken on this machine)"
        )
    if isinstance(error, requests.exceptions.ProxyError):
        return f"the proxy to {host} failed; check HTTPS_PROXY and NO_PROXY"
    if isinstance(error, requests.exceptions.Timeout):
        return f"{host} did not answer in time; try again later"
    return f"{host} cannot be reached or broke off; check its name and the network"


def read_bounded(response: requests.Response, limit: int) -> bytes | None:
    """The answer's body; None when it is longer than ``limit``."""
    data = bytearray()
    for chunk in response.iter_content(64 * 1024):
        data += chunk
        if len(data) > limit:
            return None
    return bytes(data)
