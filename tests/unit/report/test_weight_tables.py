"""Golden text of the tables about weights."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import jsonschema
import pytest
from rich.console import Console

from slimgpu.report.document import read_schema, to_json
from slimgpu.report.weight_tables import list_tables, load_tables, pack_tables, verify_tables
from slimgpu.weights import results
from slimgpu.weights.results import (
    DtypeTotal,
    ListedBlob,
    ListedFile,
    ListedLink,
    ListedTensor,
    Listing,
    LoadResult,
    PackResult,
    TransformTotal,
    VerifyResult,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

_DIGEST = f"sha256:{'ab' * 32}"
_DTYPES = (DtypeTotal("BF16", 290, 8_030_000_000, 16_060_000_000, 10_700_000_000), DtypeTotal("F32", 1, 64, 256, 256))
_TRANSFORMS = (TransformTotal("float2", 3830, 16_060_000_000, 10_700_000_000), TransformTotal("raw", 1, 256, 256))
_PACKED = PackResult(
    results.PACK_SCHEMA,
    "docker://host/m:v1",
    _DIGEST,
    "application/vnd.slimgpu.weights.v1",
    {},
    _DIGEST,
    7,
    291,
    16_060_010_000,
    10_700_001_000,
    1_200_000_000,
    _DTYPES,
    _TRANSFORMS,
    12.5,
)
_LISTED = Listing(
    results.LIST_SCHEMA,
    "docker://host/[red]m:v1",
    _DIGEST,
    "application/vnd.slimgpu.weights.v1",
    {"a.key": "[b]value\x1b[2J"},
    "slimgpu.weights.v1",
    _DIGEST,
    3000,
    2000,
    (
        ListedFile("model.safetensors", 2000, _DIGEST, executable=False),
        ListedFile("a\nb", 1000, _DIGEST, executable=True),
    ),
    (ListedLink("link", "a\nb"),),
    _DTYPES[:1],
    _TRANSFORMS[:1],
    (ListedBlob(_DIGEST, 2000, 5),),
    (
        ListedTensor("model.layers.0.w", "BF16", (2, 3), 12, "model.safetensors", _DIGEST),
        ListedTensor("model.layers.11.w", "BF16", (2, 3), 12, "model.safetensors", _DIGEST),
        ListedTensor("w2.bias", "BF16", (), 2, "model.safetensors", _DIGEST),
    ),
)

_PACK_TEXT = """\
Tensors by type
type  tensors  parameters    bytes   stored  ratio
BF16      290      8.03 B  16.1 GB  10.7 GB  0.666
F32         1          64    256 B    256 B  1.000

Chunks by how they are stored
chunks    bytes   stored  ratio  transform
  3830  16.1 GB  10.7 GB  0.666  float2
     1    256 B    256 B  1.000  raw

7 files with 291 tensors: 16.1 GB stored as 10.7 GB (66.6 %), 1.20 GB of it new, in 12.5 s (1.28
GB/s)
docker://host/m:v1
"""

_LIST_TEXT = f"""\
docker://host/[red]m:v1
{_DIGEST}
values {_DIGEST}
2 files, 3 tensors, 3.00 kB stored as 2.00 kB (66.7 %), index slimgpu.weights.v1
a.key: [b]value\\x1b[2J

Files
  bytes  sha256        path
2.00 kB  abababababab  model.safetensors
1.00 kB  abababababab  a\\nb

Tensors by type
type  tensors  parameters    bytes   stored  ratio
BF16      290      8.03 B  16.1 GB  10.7 GB  0.666

Tensors
count  bytes  type  shape   name
    2   24 B  BF16  2 x 3   model.layers.*.w
    1    2 B  BF16  scalar  w2.bias

Chunks by how they are stored
chunks    bytes   stored  ratio  transform
  3830  16.1 GB  10.7 GB  0.666  float2

Blobs
chunks    bytes  digest
     5  2.00 kB  {_DIGEST}
--all shows every file and tensor; --json has all digests.
"""


def drawn(tables: Iterable[RenderableType], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, force_terminal=False)
    for table in tables:
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


def test_packed() -> None:
    assert drawn(pack_tables(_PACKED)) == _PACK_TEXT


def test_packed_without_tensors() -> None:
    other = replace(_PACKED, files=1, tensors=0, dtypes=(), transforms=())
    assert drawn(pack_tables(other)).startswith("1 file with 0 tensors: 16.1 GB stored as")
    assert drawn(pack_tables(replace(other, transforms=_TRANSFORMS))).startswith("Chunks by how they are stored\n")


def test_listed() -> None:
    assert drawn(list_tables(_LISTED, show_all=False)) == _LIST_TEXT


def test_listed_in_full() -> None:
    text = drawn(list_tables(_LISTED, show_all=True))
    for part in ("model.layers.0.w", "model.layers.11.w", "link -> a\\nb", _DIGEST[7:]):
        assert part in text
    assert "--all" not in text


def test_long_lists_are_cut_and_say_so() -> None:
    tensors = tuple(replace(_LISTED.tensors[0], name=f"kind{'x' * n}") for n in range(100))
    long = replace(_LISTED, tensors=tensors, files=_LISTED.files * 50, blobs=_LISTED.blobs * 50)
    text = drawn(list_tables(long, show_all=False))
    assert len(text.splitlines()) < 90
    for part in ("and 80 more kinds", "and 80 more", "and 30 more"):
        assert part in text


def test_verified() -> None:
    result = VerifyResult(results.VERIFY_SCHEMA, "r", _DIGEST, None, _DIGEST, 2, 3, 5, 3000, 1.25)
    assert drawn(verify_tables(result)) == "5 chunks: 2 files, 3 tensors, 3.00 kB are what was packed (1.2 s)\n"
    text = drawn(verify_tables(replace(result, directory="/tmp/[x]")))  # noqa: S108 - a name
    assert text.startswith("/tmp/[x]: 2 files")  # noqa: S108


def test_loaded() -> None:
    result = LoadResult(results.LOAD_SCHEMA, "r", "cuda:0", 3, 2 * 10**9, 0.125, 0.5, _DIGEST)
    assert drawn(load_tables(result)) == (
        "3 tensors, 2.00 GB to cuda:0 in 0.50 s (4.00 GB/s), the first after 0.12 s\n"
        f"values {_DIGEST}, as the index says\n"
    )
    assert "?" in drawn(load_tables(replace(result, seconds=0, values=None)))


@pytest.mark.parametrize("width", [40, 100, 200])
def test_tables_fit_the_screen(width: int) -> None:
    text = drawn(list_tables(_LISTED, show_all=True), width) + drawn(pack_tables(_PACKED), width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text


@pytest.mark.parametrize("name", [n for n in dir(results) if n.endswith("_SCHEMA")])
def test_schemas_refuse_other_documents(name: str) -> None:
    schema = read_schema(getattr(results, name))
    jsonschema.Draft202012Validator.check_schema(schema)
    for document in ({}, [], {"schema": getattr(results, name)}, {**asdict(_PACKED), "schema": "slimgpu.other.v1"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, schema)


@pytest.mark.parametrize("result", [_PACKED, _LISTED])
def test_documents_fit_their_schemas(result: PackResult | Listing) -> None:
    jsonschema.validate(json.loads(to_json(result)), read_schema(result.schema))
