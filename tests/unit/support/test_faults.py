from __future__ import annotations

import http.client
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support import faults
from tests.support.fake_http import Answer, Request, serving
from tests.support.faults import Faults

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_BLOB = bytes(range(256)) * 64


def _registry(request: Request) -> Answer:
    if request.method == "PUT":
        return Answer(201, request.body, {"Location": f"http://{request.headers['Host']}/next"})
    wanted = request.headers.get("Range")
    if not wanted:
        return Answer(200, _BLOB)
    first, last = map(int, wanted.removeprefix("bytes=").split("-"))
    return Answer(206, _BLOB[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(_BLOB)}"})


@contextmanager
def _proxy() -> Iterator[Faults]:
    with serving(_registry) as upstream, Faults(f"http://{upstream.host}") as proxy:
        yield proxy


@contextmanager
def _asking(
    proxy: Faults, headers: Mapping[str, str] | None = None, path: str = "/blob", timeout: float = 5
) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=timeout)
    try:
        connection.request("GET", path, headers=dict(headers or {}))
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()


def _get(proxy: Faults, headers: Mapping[str, str] | None = None, path: str = "/blob") -> tuple[int, bytes]:
    with _asking(proxy, headers, path) as response:
        return response.status, response.read()


def test_without_a_plan_it_passes_everything_on() -> None:
    with _proxy() as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=5)
        for _ in range(2):  # on one connection
            connection.request("GET", "/blob", headers={"Range": "bytes=3-7"})
            response = connection.getresponse()
            assert (response.status, response.read()) == (206, _BLOB[3:8])
            assert response.headers["Content-Range"] == f"bytes 3-7/{len(_BLOB)}"
        connection.request("PUT", "/up", iter([b"one", b"two"]), encode_chunked=True)
        response = connection.getresponse()
        assert (response.status, response.read()) == (201, b"onetwo")
        assert response.headers["Location"] == f"http://{proxy.host}/next"
        connection.request("HEAD", "/blob")
        response = connection.getresponse()
        assert int(response.headers["Content-Length"]) == len(_BLOB)
        response.read()
        connection.close()


def test_a_plan_meets_what_matches_and_so_many_times() -> None:
    with _proxy() as proxy:
        proxy.plan(faults.status(500), lambda method, path, _: (method, path) == ("GET", "/blob"), times=2, skip=1)
        proxy.plan(faults.status(429, headers={"Retry-After": "1"}), lambda _m, path, _h: path == "/other", times=1)
        assert [_get(proxy)[0] for _ in range(4)] == [200, 500, 500, 200]
        with _asking(proxy, path="/other") as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "1")
        assert [exchange.fault for exchange in proxy.asked("/blob")] == [None, "status 500", "status 500", None]


def test_a_stall_sends_no_more_and_may_go_on() -> None:
    with _proxy() as proxy:
        proxy.plan(faults.stall(0.25), times=1)
        proxy.plan(faults.stall(0.25, seconds=0.2), times=1)
        with _asking(proxy, timeout=0.3) as response:
            assert response.read(len(_BLOB) // 4) == _BLOB[: len(_BLOB) // 4]
            with pytest.raises(TimeoutError):
                response.read(1)
        started = time.monotonic()
        assert _get(proxy) == (200, _BLOB)
        assert time.monotonic() - started >= 0.2


def test_what_drips_comes_byte_by_byte() -> None:
    with _proxy() as proxy:
        proxy.plan(faults.drip(0.999, seconds=0.001), times=1)
        proxy.plan(faults.drip_head(0.001), times=1)
        assert [_get(proxy) for _ in range(2)] == [(200, _BLOB)] * 2
        proxy.plan(faults.drip(0.5, seconds=1000))
        with _asking(proxy, timeout=0.3) as response:
            assert response.read(len(_BLOB) // 2 + 1) == _BLOB[: len(_BLOB) // 2 + 1]
            with pytest.raises(TimeoutError):
                response.read(1)


@pytest.mark.parametrize("fault", [faults.drop(), faults.wrong_length(100)])
def test_a_body_that_ends_early_is_incomplete(fault: faults.Fault) -> None:
    with _proxy() as proxy:
        proxy.plan(fault)
        with pytest.raises(http.client.IncompleteRead):
            _get(proxy)


def test_less_is_sent_as_if_it_were_all() -> None:
    with _proxy() as proxy:
        proxy.plan(faults.truncate(0.5), times=1)
        proxy.plan(faults.wrong_length(-100), times=1)
        assert _get(proxy) == (200, _BLOB[: len(_BLOB) // 2])
        assert _get(proxy) == (200, _BLOB[:-100])


def test_the_same_bytes_are_corrupted_each_time() -> None:
    with _proxy() as proxy:
        proxy.plan(faults.corrupt(3, seed=7))
        first, second = _get(proxy)[1], _get(proxy)[1]
        assert first == second
        assert sum(a != b for a, b in zip(first, _BLOB, strict=True)) == 3


def test_ranges_are_ignored_or_misnamed() -> None:
    with _proxy() as proxy:
        proxy.plan(faults.ignore_range(), times=1)
        proxy.plan(faults.wrong_range(4), times=1)
        assert _get(proxy, {"Range": "bytes=0-9"}) == (200, _BLOB)
        with _asking(proxy, {"Range": "bytes=0-9"}) as response:
            assert (response.status, response.read()) == (206, _BLOB[:10])
            assert response.headers["Content-Range"] == f"bytes 4-13/{len(_BLOB)}"


def test_a_page_comes_where_a_blob_should() -> None:
    with _proxy() as proxy:
        proxy.plan(faults.html())
        with _asking(proxy) as response:
            assert (response.status, response.headers["Content-Type"]) == (200, "text/html")
            assert response.read().startswith(b"<!doctype html>")


def test_it_disappears_with_every_connection_and_comes_back() -> None:
    with _proxy() as proxy:
        idle = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=5)
        idle.request("GET", "/blob")
        idle.getresponse().read()
        proxy.plan(faults.disappear(), times=1)
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            _get(proxy)
        with pytest.raises(ConnectionRefusedError):
            _get(proxy)
        assert idle.sock.recv(1) == b""
        idle.close()
        proxy.appear()
        assert _get(proxy) == (200, _BLOB)


def test_random_faults_are_the_same_for_a_seed_in_any_order() -> None:
    def run(seed: int, numbers: list[int]) -> list[int]:
        with _proxy() as proxy:
            proxy.plan_randomly([faults.status(500), faults.status(404)], 0.3, seed)
            said = {number: _get(proxy, path=f"/{number}")[0] for number in numbers}
            return [said[number] for number in sorted(said)]

    numbers = list(range(40))
    first = run(1, numbers)
    assert first == run(1, numbers[::-1])
    assert first != run(2, numbers)
    assert set(first) == {200, 404, 500}
