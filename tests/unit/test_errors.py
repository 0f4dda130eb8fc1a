from __future__ import annotations

import inspect

import pytest

from slimgpu import errors
from slimgpu.errors import SlimgpuError

_CODES = {
    "SlimgpuError": 1,
    "UsageError": 2,
    "RefusedError": 3,
    "RegistryError": 4,
    "MissingComponentError": 5,
    "NotFoundError": 1,
    "ImageError": 1,
    "DigestError": 1,
    "BrokenClosureError": 3,
    "DestinationError": 1,
    "UnusualFileError": 1,
    "MissingGpuCodeError": 3,
}
_CLASSES = dict(inspect.getmembers(errors, inspect.isclass))


@pytest.mark.parametrize(("name", "code"), _CODES.items())
def test_exit_codes(name: str, code: int) -> None:
    assert issubclass(_CLASSES[name], SlimgpuError)
    assert _CLASSES[name].exit_code == code


def test_every_error_is_in_the_table_and_in_the_documentation() -> None:
    assert set(_CLASSES) == set(_CODES)
    assert errors.__doc__ is not None
    for name, code in _CODES.items():
        line = next(
            line for line in errors.__doc__.splitlines() if f" {name} " in line or line.strip().startswith(name)
        )
        assert f" {code}  " in line


def test_wrong_bytes_are_a_wrong_image() -> None:
    assert issubclass(errors.DigestError, errors.ImageError)
