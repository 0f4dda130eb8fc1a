"""What people write and read: sizes in decimal units, as registries and disks use, and foreign text."""

from __future__ import annotations

import re

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]i?)?b?\s*", re.IGNORECASE)


def format_size(count: int) -> str:
    """``1_234_567`` as ``'1.23 MB'``; three significant digits."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:  # noqa: PLR2004 - what would round to four digits
            return _three_digits(value, unit)
        value /= 1000
    return _three_digits(value, "TB")


def _three_digits(value: float, unit: str) -> str:
    return f"{value:.0f} B" if unit == "B" else f"{format_number(value)} {unit}"


def format_number(value: float) -> str:
    """``12.345`` as ``'12.3'``; three significant digits from 1 on, two decimals below."""
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0  # noqa: PLR2004
    return f"{value:.{digits}f}"


def format_seconds(seconds: float) -> str:
    """``12.345`` as ``'12.3 s'``, ``0.0421`` as ``'42 ms'``."""
    milliseconds = 1000 * seconds
    return f"{milliseconds:.0f} ms" if milliseconds < 999.5 else f"{format_number(seconds)} s"  # noqa: PLR2004


def format_rate(bits: float) -> str:
    """Bit/s, ``2e9`` as ``'2.00 Gbit/s'``."""
    return format_size(round(bits)).replace("B", "bit/s")


def parse_size(text: str) -> int:
    """``'1.5 GB'``, ``'512Mi'`` or ``'100'`` as bytes; ValueError when it is none of these."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size; write it like 500MB, 1.5GB or 2Gi")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])


_RATE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmg]?)(?:bit|bps|bit/s)?\s*", re.IGNORECASE)
_TIME = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(us|ms|s|min|h)?\s*")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "": 1, "s": 1, "min": 60, "h": 3600}


def parse_bits(text: str) -> float:
    """``'10Gbit'`` or ``'500 Mbit/s'`` as bit/s; ValueError when it is none of these."""
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a rate; write it like 10Gbit or 500Mbit")
    return float(match[1]) * _UNITS[match[2].lower()]


def parse_duration(text: str) -> float:
    """``'1ms'``, ``'10min'`` or ``'2.5'`` as seconds; ValueError when it is none of these."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time; write it like 1ms, 30s or 10min")
    return float(match[1]) * _SECONDS[match[2] or ""]


def printable(text: str) -> str:
    """Text from an image with what could drive a terminal, or is no character at all, written as an escape."""
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # an undecodable byte of a name, as os.fsdecode keeps it
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()
