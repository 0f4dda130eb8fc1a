"""What tests of GPU code share: real libraries."""

from __future__ import annotations

import pytest

from tests.support.gpu_code import Workshop, workshop


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Small libraries with GPU code."""
    return workshop(tmp_path_factory.getbasetemp())
