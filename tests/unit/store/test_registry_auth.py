from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.store.registry_auth import Challenge, parse_challenge

BEARER = 'Bearer realm="https://auth.io/token",service="reg.io",scope="repository:a/b:pull,push"'


def test_bearer() -> None:
    expected = {"realm": "https://auth.io/token", "service": "reg.io", "scope": "repository:a/b:pull,push"}
    assert parse_challenge(BEARER) == Challenge("bearer", expected)


@pytest.mark.parametrize("header", [f'Basic realm="x", {BEARER}', f'{BEARER}, Basic realm="x"'])
def test_bearer_before_basic(header: str) -> None:
    found = parse_challenge(header)
    assert found is not None
    assert found.parameters["scope"] == "repository:a/b:pull,push"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", None),
        ("Negotiate", None),
        ("Basic", Challenge("basic", {})),
        ('basic realm="Registry Realm"', Challenge("basic", {"realm": "Registry Realm"})),
        ("BEARER Realm=https://a.io/t", Challenge("bearer", {"realm": "https://a.io/t"})),
    ],
)
def test_others(header: str, expected: Challenge | None) -> None:
    assert parse_challenge(header) == expected


@given(st.text(alphabet='bearsicBEARS =",\\x'))
def test_never_fails(header: str) -> None:
    parse_challenge(header)
