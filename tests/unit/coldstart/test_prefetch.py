from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from slimgpu.coldstart.prefetch import _taken, drop, prefetched
from slimgpu.oci.reference import parse_reference
from slimgpu.store.context import Context
from tests.support.weights import pack_into, write_model

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLIMGPU_MEMORY_DIR", str(tmp_path / "memory"))
    return tmp_path / "memory"


def test_several_that_drop_at_once(tmp_path: Path, memory: Path) -> None:
    write_model(tmp_path / "model")
    reference = parse_reference(pack_into(tmp_path / "layout", tmp_path / "model")[0])
    count = 4
    barrier = threading.Barrier(count)

    def together() -> int:
        barrier.wait()
        return drop(reference, Context()).bytes

    with ThreadPoolExecutor(count) as pool:
        for _ in range(8):
            with prefetched(reference, Context(), threading.Event(), keep=True, planes=False) as found:
                assert found.folder.is_dir()
            dropped = [each.result() for each in [pool.submit(together) for _ in range(count)]]
            assert max(dropped) >= found.bytes
            assert not list(memory.glob("*/"))


def test_what_is_gone_takes_nothing(tmp_path: Path) -> None:
    assert _taken(tmp_path / "gone") == 0
