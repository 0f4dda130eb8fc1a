"""How long hypothesis searches: SLIMGPU_FUZZ=20000 makes a night of what is seconds otherwise."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_ASKED = int(os.environ.get("SLIMGPU_FUZZ") or 0)
_SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]

settings.register_profile(
    "unit",
    max_examples=_ASKED or 60,
    deadline=None,
    suppress_health_check=_SLOW,
    derandomize=not _ASKED,
    database=None,
)


def examples(count: int) -> settings:
    """For a test that needs another number of examples than most."""
    return settings(settings.get_profile("unit"), max_examples=max(_ASKED, count))
