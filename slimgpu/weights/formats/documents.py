"""JSON that came with the weights, parsed within bounds of memory."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Final, NoReturn

from slimgpu.weights.formats.broken import BrokenError, shown

_MAX_CONTAINERS: Final = 4_000_000
"""Objects and arrays; a tensor has three of them."""
_MAX_COMMAS: Final = 10_000_000


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in ``data``, read more strictly than `json` does: UTF-8, no NaN, no key twice in one object.

    Raises `BrokenError` for anything else, and for so many values that they'd take gigabytes.
    """
    if data.count(b"{") + data.count(b"[") > _MAX_CONTAINERS or data.count(b",") > _MAX_COMMAS:
        raise BrokenError("its JSON has too many values")
    try:
        document = json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_no_constant)
    except BrokenError:
        raise
    except (ValueError, RecursionError) as error:
        raise BrokenError("its JSON cannot be parsed") from error
    if not isinstance(document, dict):
        raise BrokenError("its JSON is no object")
    return document


def is_text(value: object) -> bool:
    """Whether a JSON value is a string that can be written as UTF-8 again (no lone surrogates)."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise BrokenError(f"its JSON has the key {shown(twice)} twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise BrokenError(f"its JSON holds {text}")
