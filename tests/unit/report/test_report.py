from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import jsonschema
import pytest
from rich.console import Console

from slimgpu.analysis.analysis import Analysis, summarize
from slimgpu.analysis.claims import claim
from slimgpu.errors import NotFoundError
from slimgpu.layers.compress import Format
from slimgpu.report.document import read_schema, to_json
from slimgpu.report.tables import analysis_tables, plan_tables, result_tables
from slimgpu.slim.build import build
from slimgpu.slim.plan import Action, Do, Held, Plan, Wishes, make_plan
from slimgpu.slim.result import BuildResult, result_of
from slimgpu.slim.shrinks import GpuCode
from tests.support.trees import Hardlink, Symlink, debian, distribution, facts_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from rich.console import RenderableType

    from tests.support.trees import Layer

_LAYERS: list[Layer] = [
    {
        **debian({"make": {"usr/bin/make": b"m" * 900}, "bash": {"usr/bin/bash": b"b" * 400}}),
        **distribution("t[bold]orch", "2.0", {"torch/a.py": b"t" * 600}),
        "usr/lib/a": b"same" * 2000,
        "usr/lib/b": b"same" * 2000,
        "usr/lib/c": Hardlink("usr/lib/a"),
        "root/.cache/pip/[red]\udcff": b"p" * 3000,
        "opt/[/]\x1b[2J": Symlink("/root/.cache/pip/[red]\udcff"),
    },
    {".wh.opt": b"", "opt2": Symlink("/root/.cache/pip/[red]\udcff")},
]


@pytest.fixture
def results(tmp_path: Path) -> Iterator[tuple[Analysis, Plan, BuildResult]]:
    with facts_of(tmp_path, *_LAYERS) as (image, facts, context):
        claims = claim(facts)
        plan = make_plan(image, facts, claims, Wishes())
        built = build(image, facts, plan, Format.ZSTD, tmp_path / "blobs", context)
        yield summarize(image, facts, claims), plan, result_of(image, facts, plan, built, "sha256:" + "0" * 64)


def drawn(tables: Iterable[RenderableType], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, force_terminal=False)
    for table in tables:
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_documents_fit_their_schemas(results: tuple[Analysis, Plan, BuildResult]) -> None:
    analysis, plan, result = results
    for document in (to_json(analysis), plan.dump().decode(), to_json(result)):
        loaded = json.loads(document)
        schema = read_schema(loaded["schema"])
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(loaded, schema)


@pytest.mark.parametrize("name", ["slimgpu.analysis.v1", "slimgpu.plan.v1", "slimgpu.build.v1"])
def test_schemas_refuse_other_documents(name: str) -> None:
    schema = read_schema(name)
    for document in ({}, [], {"schema": name}, {"schema": "slimgpu.other.v1"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, schema)


@pytest.mark.parametrize("name", ["", "nope", "slimgpu.plan.v9", "../document"])
def test_schemas_that_are_not_there(name: str) -> None:
    with pytest.raises(NotFoundError, match="has no schema"):
        read_schema(name)


def test_the_same_value_is_the_same_text(results: tuple[Analysis, Plan, BuildResult]) -> None:
    for result in (results[0], results[2]):
        assert to_json(result) == to_json(replace(result))


@pytest.mark.parametrize("width", [40, 100, 200])
@pytest.mark.parametrize("show_all", [True, False])
def test_tables_fit_the_screen_and_show_foreign_names_as_they_are(
    results: tuple[Analysis, Plan, BuildResult], width: int, *, show_all: bool
) -> None:
    analysis, plan, result = results
    text = drawn(analysis_tables(analysis, show_all=show_all), width)
    text += drawn(plan_tables(plan), width) + drawn(result_tables(result), width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    text.encode()
    if width == 200:
        assert "[red]\\xff" in text or "opt2" in text
        assert ("t[bold]orch" in text) is show_all


def test_numbers_of_an_analysis(results: tuple[Analysis, Plan, BuildResult]) -> None:
    text = drawn(analysis_tables(results[0], show_all=True))
    for part in (
        "Layers",
        "What the bytes are",
        "Packages",
        "Findings",
        "toolchain.apt",
        "waste.copies",
        "cache.pip",
    ):
        assert part in text


def test_long_results_are_cut_and_say_so(results: tuple[Analysis, Plan, BuildResult]) -> None:
    analysis = results[0]
    long = replace(analysis, layers=analysis.layers * 20, findings=analysis.findings * 20)
    assert "--all shows every layer" in drawn(analysis_tables(long, show_all=False))
    assert "--all shows every layer" not in drawn(analysis_tables(long, show_all=True))
    assert len(drawn(analysis_tables(long, show_all=False)).splitlines()) < 70


def test_a_plan_of_someones_own_is_no_markup() -> None:
    plan = Plan(
        "slimgpu.plan.v1",
        "[/]",
        "s",
        (Action("p", Do.DROP, "[/x]", "w", 1),),
        (Held("[/y]", "[/z]", 1, 1),),
        (),
        GpuCode(),
    )
    text = drawn(plan_tables(plan))
    assert "[/x]" in text
    assert "[/z]" in text


def test_a_platform_from_the_image_is_no_markup(results: tuple[Analysis, Plan, BuildResult]) -> None:
    assert "[/b]" in drawn(analysis_tables(replace(results[0], platform="linux/[/b]"), show_all=False))


def test_an_image_of_nothing(tmp_path: Path) -> None:
    with facts_of(tmp_path, {}) as (image, facts, _):
        analysis = summarize(image, facts, claim(facts))
    assert (analysis.unpacked, analysis.files, analysis.findings) == (0, 0, ())
    assert "0 B unpacked in 0 files" in drawn(analysis_tables(analysis, show_all=True))
