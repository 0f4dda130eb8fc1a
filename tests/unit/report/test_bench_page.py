from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from typing import TYPE_CHECKING

import pytest

from slimgpu.report.bench_page import bench_page
from tests.support.bench import as_failed, make_hostile, make_result, scaled, with_samples

if TYPE_CHECKING:
    from slimgpu.bench.results import BenchResult

_VOID = {"meta", "link", "img", "br", "hr", "input"}
_NEVER = {"script", "img", "iframe", "object", "embed", "form", "base", "foreignobject", "use", "image"}


class Reader(HTMLParser):
    """The tags, their attributes and the text of a page; every tag has to be closed where it was opened."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += f" {data}"


def text_of(result: BenchResult) -> str:
    return " ".join(Reader(bench_page(result)).text.split())


def totals(result: BenchResult, arm: str, values: list[float]) -> BenchResult:
    given = iter(values)
    samples = [replace(each, total=next(given)) if each.arm == arm else each for each in result.samples]
    return with_samples(result, samples)


def test_a_page_has_all_of_it() -> None:
    result = make_result()
    text = text_of(result)
    for arm in result.arms:
        for part in (arm.name, arm.what, arm.image, arm.digest):
            assert part in text
    for part in (
        *result.notes, "1 of 10 cold starts failed", "The program ended with 137",
        "python3 -m serve --prompt 'hello world'",
        "AMD EPYC 9354", "driver 570.86.15", "/dev/nvme0n1p2", "2.00 Gbit/s", "vllm 0.25.1", "CUDA libraries",
        "they do not add up to the total", "2026-03-02T09:14:07Z", "How can I help you today?", "everything else",
        "fetch weights", "2.06 times faster to the first output",
    ):  # fmt: skip
        assert part in text
    tags = Reader(bench_page(result)).tags
    assert tags.count("circle") == len(result.samples), "every good sample, and the legend's instead of the failed one"


def test_every_chart_is_told_in_words() -> None:
    page = bench_page(make_result())
    charts = re.findall(r'<svg [^>]*role="img"[^>]*>', page)
    assert len(charts) == 5 + 2
    assert len(set(re.findall(r' id="([^"]+)"', page))) == len(re.findall(r' id="([^"]+)"', page))
    for chart in charts:
        named = re.findall(r'aria-labelledby="([^"]+)"', chart)[0].split()
        for each, tag in zip(named, ("title", "desc"), strict=True):
            assert re.search(rf'<{tag} id="{each}">[^<]+</{tag}>', page)


@pytest.mark.parametrize("result", [make_result(), make_hostile()], ids=["usual", "hostile"])
def test_a_page_loads_and_runs_nothing(result: BenchResult) -> None:
    page = bench_page(result)
    reader = Reader(page)
    assert not _NEVER & set(reader.tags)
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert [value for name, value in reader.attributes if name in ("href", "src", "xlink:href")] == ["data:,"]
    assert "default-src 'none'" in page
    assert "@import" not in page
    assert set(re.findall(r"url\(([^)]*)\)", page)) <= {"#hatch"}
    for name, value in reader.attributes:
        if name == "style":
            assert re.fullmatch(r"--share:[0-9.]+%", value)


def test_hostile_text_is_shown_as_it_is_and_does_nothing() -> None:
    page = bench_page(make_hostile())
    page.encode()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", page)
    text = " ".join(Reader(page).text.split())
    assert "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}[/red]\\x1b[2J" in text
    assert "\\u202e" in text
    assert "\\xff" in text


def test_the_headline_says_no_more_than_the_interval() -> None:
    two = make_result(2, fails=False)
    assert "<h1>1.2" in bench_page(two)
    slow = with_samples(two, [scaled(each, 3) if each.arm != "before" else each for each in two.samples])
    assert "<h1>Slower</h1>" in bench_page(slow)
    rising = [float(number) for number in range(1, 11)]
    same = totals(totals(two, "before", rising), "before, zstd", rising[::-1])
    assert "<h1>No difference beyond noise</h1>" in bench_page(same)
    few = make_result(2, runs=2, fails=False)
    assert "times as fast, in too few rounds</h1>" in bench_page(few)
    assert "(?): too few rounds for an interval" in text_of(few)


def test_one_arm_and_nothing_to_compare_it_with() -> None:
    page = bench_page(make_result(1))
    assert re.search(r"<h1>5\d\.\d s to the first output</h1>", page)
    assert 'class="tiles"' not in page
    assert "first output of before" not in page


def test_all_failed() -> None:
    result = make_result(2)
    broken = with_samples(result, [as_failed(each, "It ended with 1.") for each in result.samples])
    text = text_of(broken)
    assert "No comparison" in text
    assert "10 of 10 cold starts failed (round 0, 1, 2, 3, 4, 5, ...)" in text
    assert "What happened when" not in text
    assert "What the bytes are" in text


def test_the_first_arm_failed_and_the_second_did_not() -> None:
    result = make_result(2)
    half = [as_failed(each, "It ended with 1.") if each.arm == "before" else each for each in result.samples]
    text = text_of(with_samples(result, half))
    assert "The first arm never came to a first output." in text
    assert "Timeline of before, zstd" in text


def test_little_was_measured() -> None:
    result = make_result(2, runs=1, fails=False)
    bare = [replace(each, spans=(), warm=None, answer=None, output="") for each in result.samples]
    machine = replace(result.machine, gpu=None, driver=None, versions={})
    link = replace(result.link, bandwidth=None, reached=None, connection=1e8)
    told = replace(with_samples(result, bare), machine=machine, link=link, notes=(), command=())
    text = text_of(replace(told, floors=()))
    for part in ("no GPU", "not limited, 100 Mbit/s a connection", "the image's own command"):
        assert part in text
    assert "To know before you read on" not in text


def test_bytes_from_peers_have_a_column_when_there_are_any() -> None:
    result = make_result(2, nodes=2)
    assert "from peers" not in text_of(result)
    peers = [replace(each, peers=5_000_000) for each in result.samples]
    text = text_of(replace(result, samples=tuple(peers), node_caches=True))
    assert "from peers" in text
    assert "5.00 MB" in text


def luminance(colour: str) -> float:
    """Relative luminance, https://www.w3.org/TR/WCAG21/#dfn-relative-luminance."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "print"])
def test_colours_can_be_told_from_what_is_behind_them(scheme: int) -> None:
    css = (files("slimgpu.report") / "templates" / "bench.css").read_text()
    schemes = [
        dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", each)) for each in re.findall(r":root \{([^}]*)", css)
    ]
    assert len(schemes) == 3
    colours = schemes[0] | schemes[scheme]
    hues = ["network", "disk", "program", "model", *(f"c{number}" for number in range(1, 9))]
    for text, behind in (
        ("ink", "page"),
        ("ink", "card"),
        ("ink", "note"),
        ("soft", "page"),
        ("soft", "card"),
        ("accent", "page"),
    ):
        assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
    for hue in hues:
        assert contrast(colours[hue], colours["card"]) >= 3, hue
        assert contrast(colours["on"], colours[hue]) >= 4.5, hue
    for mark in ("old", "accent"):
        assert contrast(colours[mark], colours["card"]) >= 3, mark
