"""Results as JSON documents, each with a ``schema`` that ships in ``slimgpu/report/schemas``."""

from __future__ import annotations

import dataclasses
import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from slimgpu.errors import NotFoundError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def to_json(result: DataclassInstance) -> str:
    """A result as one document, always the same text for the same value."""
    return json.dumps(dataclasses.asdict(result), indent=1)


def read_schema(name: str) -> dict[str, Any]:
    """The JSON Schema of documents whose ``schema`` is ``name``; `NotFoundError` when there is none."""
    try:
        document = json.loads((files("slimgpu.report") / "schemas" / f"{name}.json").read_text())
    except FileNotFoundError as error:
        raise NotFoundError(f"slimgpu has no schema {name!r}") from error
    assert isinstance(document, dict)
    return document
