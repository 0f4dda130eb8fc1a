from __future__ import annotations

import pytest
from urllib3 import HTTPResponse

from slimgpu.errors import RegistryError
from slimgpu.store.http_session import is_loopback, new_session, origin, require_secure


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.8.9.1", "::1", "[::1]"])
def test_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "localhost.evil.io", "127.0.0.1.evil.io", "10.0.0.1", "::2", "128.0.0.1"])
def test_not_this_machine(host: str) -> None:
    assert not is_loopback(host)


def test_an_origin_is_scheme_host_and_port() -> None:
    assert origin("https://A.io/x") == origin("https://a.io:443/y")
    assert origin("https://a.io") != origin("https://a.io:444")
    assert origin("https://a.io") != origin("http://a.io:443")


def test_what_may_lead_where() -> None:
    require_secure("https://b.io/t", "https://a.io")
    require_secure("https://b.io/t", "http://127.0.0.1:1")
    require_secure("http://127.0.0.1:2/t", "http://localhost:1")
    for url in ("http://127.0.0.1/t", "http://a.io/t", "ftp://a.io/t", "", "file:///etc/passwd"):
        with pytest.raises(RegistryError, match=r"^a.io sends us to .*, which is not HTTPS"):
            require_secure(url, "https://a.io")


def test_a_server_cannot_make_us_wait_for_hours() -> None:
    retry = new_session().get_adapter("https://a.io").max_retries  # type: ignore[attr-defined]
    assert retry.get_retry_after(HTTPResponse(headers={"Retry-After": "90000"}, status=429)) == 60
    assert retry.get_retry_after(HTTPResponse(headers={}, status=429)) is None
    assert not retry.is_retry("POST", 503)
    assert retry.is_retry("GET", 503)
