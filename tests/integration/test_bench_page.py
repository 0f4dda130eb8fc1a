"""The page of a benchmark in a real browser."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from slimgpu.report.bench_page import bench_page
from tests.support.bench import make_hostile, make_result
from tests.support.browser import browser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from slimgpu.bench.results import BenchResult
    from tests.support.browser import Page

_PHONE = 360
_BESIDE = f"""
[...document.querySelectorAll("body *")].filter(each => {{
  const box = each.getBoundingClientRect();
  return box.width && getComputedStyle(each).clipPath === "none" && (box.right > {_PHONE + 1} || box.left < -1)
    && !each.closest("thead");
}}).map(each => each.tagName + " " + each.textContent.trim().slice(0, 40))
"""
"""What is beyond the screen's edges; the head of a table is there for readers that speak."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.mark.parametrize("make", [make_result, make_hostile])
def test_a_page_as_its_readers_see_it(make: Callable[[], BenchResult], page: Page, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(bench_page(make()))
    page.look(1200)
    page.open(path)
    light = page.value("getComputedStyle(document.body).backgroundColor")
    assert page.value("document.documentElement.scrollWidth") <= 1200
    page.look(_PHONE, dark=True)
    assert page.value("document.documentElement.scrollWidth") <= _PHONE
    assert page.value(_BESIDE) == []
    assert page.value("getComputedStyle(document.body).backgroundColor") != light
    assert page.value("document.querySelectorAll('script, img, [onerror]').length") == 0
    assert page.complaints() == []
    assert page.requests() == [path.as_uri()]
    shot = page.screenshot()
    width, height = struct.unpack(">II", shot[16:24])
    assert shot[:8] == b"\x89PNG\r\n\x1a\n"
    assert width == _PHONE
    assert height > 2000


def test_the_browser_would_tell(page: Page, tmp_path: Path) -> None:
    """The same looks at a page that does what ours must not do."""
    path = tmp_path / "bad.html"
    path.write_text(
        "<meta name=viewport content='width=device-width'><div style='width:900px'>wide</div>"
        "<script>console.error('no')</script><img src='http://127.0.0.1:9/'>"
    )
    page.look(_PHONE)
    page.open(path)
    assert page.value("document.documentElement.scrollWidth") > _PHONE
    assert page.value(_BESIDE) == ["DIV wide"]
    assert page.complaints()
    assert "http://127.0.0.1:9/" in page.requests()
