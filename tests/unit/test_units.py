from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.units import format_number, format_rate, format_seconds, format_size, parse_size, printable


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (1_234_567, "1.23 MB"),
        (9_994, "9.99 kB"),
        (9_995, "10.0 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (10**10, "10.0 GB"),
        (10**12, "1.00 TB"),
        (10**16, "10000 TB"),
        (-1500, "-1.50 kB"),
    ],
)
def test_sizes_have_three_digits(count: int, text: str) -> None:
    assert format_size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ms"), (0.0421, "42 ms"), (0.9994, "999 ms"), (0.9995, "1.00 s"), (12.345, "12.3 s"), (361.4, "361 s")],
)
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_numbers_and_rates() -> None:
    assert [format_number(value) for value in (0.04, 1.234, 12.34, 123.4)] == ["0.04", "1.23", "12.3", "123"]
    assert [format_rate(bits) for bits in (2e9, 25_000_000, 500)] == ["2.00 Gbit/s", "25.0 Mbit/s", "500 bit/s"]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("100", 100),
        ("1.5 GB", 1500000000),
        ("512Mi", 2**29),
        ("2GiB", 2**31),
        (" 1 kb ", 1000),
        ("1T", 10**12),
        ("0", 0),
        ("1K", 1000),
        ("1b", 1),
    ],
)
def test_sizes_as_people_write_them(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1", "1.5.5", "1 XB", "1e9", "0x10", "1 G B", ".5", "1,5 GB", "\u0661"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write it like"):
        parse_size(text)


@given(st.integers(0, 10**15))
def test_a_printed_size_reads_back_to_three_digits(count: int) -> None:
    assert parse_size(format_size(count)) == pytest.approx(count, rel=0.0051)


@given(st.text() | st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")))
def test_foreign_text_is_one_harmless_line(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()


@pytest.mark.parametrize(
    ("text", "shown"), [("a b é", "a b é"), ("\x1b[31m", "\\x1b[31m"), ("a\nb", "a\\nb"), ("\udcff", "\\xff")]
)
def test_what_is_no_text_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", shown)
