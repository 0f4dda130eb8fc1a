from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import jsonschema
import pytest

from slimgpu.bench.compare import compare, read_result
from slimgpu.errors import NotFoundError, UsageError
from slimgpu.report.document import read_schema, to_json
from tests.support.bench import as_failed, make_result, scaled, with_samples

if TYPE_CHECKING:
    from pathlib import Path

    from slimgpu.bench.comparison import Change, CompareResult
    from slimgpu.bench.results import BenchResult

_NAMES = ("a.json", "b.json")


@pytest.fixture(scope="module")
def result() -> BenchResult:
    return make_result(3)


def changed(result: BenchResult, factor: float, arm: str = "after") -> BenchResult:
    return with_samples(result, [scaled(each, factor) if each.arm == arm else each for each in result.samples])


def total(comparison: CompareResult, arm: str) -> Change:
    (found,) = [change for change in comparison.changes if (change.arm, change.stage) == (arm, "total")]
    return found


def test_a_result_comes_back_as_it_was_written(result: BenchResult, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(to_json(result))
    assert read_result(tmp_path / "a.json") == result
    document = json.loads(to_json(result))
    jsonschema.validate(document, read_schema("slimgpu.bench.v1"))


def test_a_comparison_fits_its_schema(result: BenchResult) -> None:
    unlike = replace(changed(result, 2), device="cpu")
    for comparison in (compare(result, result, _NAMES), compare(result, unlike, _NAMES)):
        document = json.loads(to_json(comparison))
        jsonschema.validate(document, read_schema("slimgpu.bench.compare.v1"))


@pytest.mark.parametrize("name", ["slimgpu.bench.v1", "slimgpu.bench.compare.v1"])
def test_schemas_refuse_other_documents(name: str) -> None:
    schema = read_schema(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    for document in ({}, [], {"schema": name}, {"schema": "slimgpu.other.v1"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, schema)


def test_the_same_result_has_no_change(result: BenchResult) -> None:
    comparison = compare(result, result, _NAMES)
    assert comparison.comparable
    assert {change.ratio for change in comparison.changes} == {1.0}
    assert not any(change.worse for change in comparison.changes)
    assert (comparison.unlike, comparison.noted, comparison.only_before, comparison.only_after) == ((), (), (), ())
    assert comparison.failed == {"before, zstd": (1, 1)}


def test_what_became_slower_beyond_noise_is_worse(result: BenchResult) -> None:
    comparison = compare(result, changed(result, 1.2), _NAMES)
    assert total(comparison, "after").ratio == pytest.approx(1 / 1.2, abs=1e-5)
    worse = {(change.arm, change.stage) for change in comparison.changes if change.worse}
    assert ("after", "total") in worse
    assert ("after", "warm") not in worse
    assert {arm for arm, _ in worse} == {"after"}


def test_what_became_faster_is_not_worse(result: BenchResult) -> None:
    comparison = compare(result, changed(result, 0.5), _NAMES)
    assert total(comparison, "after").ratio == pytest.approx(2.0, abs=1e-5)
    assert not any(change.worse for change in comparison.changes)


def test_a_drift_between_two_runs_is_not_worse(result: BenchResult) -> None:
    exact = with_samples(
        result, [replace(each, total=None if each.total is None else 50.0) for each in result.samples]
    )  # fmt: skip
    assert not total(compare(exact, changed(exact, 1.01), _NAMES), "after").worse
    assert total(compare(exact, changed(exact, 1.03), _NAMES), "after").worse


def test_too_few_rounds_judge_nothing() -> None:
    few = make_result(3, runs=3)
    change = total(compare(few, changed(few, 3), _NAMES), "after")
    assert (change.low, change.high, change.worse) == (None, None, False)


@pytest.mark.parametrize(
    ("what", "other"),
    [
        ("cores", lambda r: replace(r, machine=replace(r.machine, cores=8))),
        ("GPU", lambda r: replace(r, machine=replace(r.machine, gpu=None))),
        ("disk", lambda r: replace(r, machine=replace(r.machine, disk="tmpfs"))),
        ("device", lambda r: replace(r, device="cpu")),
        ("link", lambda r: replace(r, link=replace(r.link, bandwidth=None))),
        ("begins", lambda r: replace(r, begins="disk")),
        ("command", lambda r: replace(r, command=("true",))),
        ("nodes", lambda r: replace(r, nodes=4)),
    ],
)
def test_times_under_other_conditions_are_not_judged(result: BenchResult, what: str, other: object) -> None:
    assert callable(other)
    comparison = compare(result, other(changed(result, 3)), _NAMES)
    assert [difference.what for difference in comparison.unlike] == [what]
    assert not comparison.comparable
    assert not any(change.worse for change in comparison.changes)


def test_versions_and_kernels_are_told_and_judged(result: BenchResult) -> None:
    machine = replace(result.machine, kernel="6.1.0-99", versions={**result.machine.versions, "vllm": "0.26"})
    comparison = compare(result, replace(changed(result, 1.5), machine=machine), _NAMES)
    assert comparison.comparable
    assert {(each.what, each.after) for each in comparison.noted} == {("kernel", "6.1.0-99"), ("vllm", "0.26")}
    assert total(comparison, "after").worse


def test_a_little_memory_more_is_the_same_machine(result: BenchResult) -> None:
    machine = replace(result.machine, memory=result.machine.memory + 4096)
    assert compare(result, replace(result, machine=machine), _NAMES).comparable


def test_arms_are_matched_by_name(result: BenchResult) -> None:
    other = replace(result, arms=(replace(result.arms[0], name="new"), *result.arms[:0:-1]))
    comparison = compare(result, other, _NAMES)
    assert comparison.only_before == ("before",)
    assert comparison.only_after == ("new",)
    assert {change.arm for change in comparison.changes} == {"before, zstd", "after"}


def test_more_bytes_are_worse_on_any_machine(result: BenchResult) -> None:
    arms = (replace(result.arms[0], stored=result.arms[0].stored + 1), *result.arms[1:])
    sizes = compare(result, replace(result, arms=arms, device="cpu"), _NAMES).sizes
    assert [(size.arm, size.what) for size in sizes if size.worse] == [("before", "to pull")]
    assert "weights" not in {size.what for size in sizes}


def test_an_arm_that_failed_throughout_has_no_times(result: BenchResult) -> None:
    broken = with_samples(result, [as_failed(each, "Gone.") for each in result.samples])
    comparison = compare(result, broken, _NAMES)
    assert comparison.changes == ()
    assert comparison.failed["after"] == (0, 10)


def test_no_time_has_no_ratio(result: BenchResult) -> None:
    instant = with_samples(result, [replace(each, warm=0.0) for each in result.samples])
    (change,) = [c for c in compare(result, instant, _NAMES).changes if (c.arm, c.stage) == ("after", "warm")]
    assert (change.ratio, change.low, change.high, change.worse) == (None, None, None, False)


def _with(result: BenchResult, **values: object) -> str:
    return json.dumps(json.loads(to_json(result)) | values)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '{"schema": "slimgpu.bench.v1"}', '{"schema": "slimgpu.plan.v1"}', '{"schema": 1}',
     "[" * 100_000, '{"schema": "slimgpu.bench.v0"}', "9" * 5000, '"\\ud800"'],
)  # fmt: skip
def test_what_is_no_result(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UsageError, match=r"x\.json is not a result of slimgpu bench \(.*\); write one with"):
        read_result(tmp_path / "x.json")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00\x1f\x8b")
    with pytest.raises(UsageError, match="is not a result of slimgpu bench"):
        read_result(tmp_path / "x.json")


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan, "1e999", 10**300])
def test_times_that_no_clock_shows(result: BenchResult, tmp_path: Path, value: object) -> None:
    samples = json.loads(to_json(result))["samples"]
    samples[0]["total"] = "here"
    text = _with(result, samples=samples).replace('"here"', value if isinstance(value, str) else json.dumps(value))
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UsageError, match="is not a result of slimgpu bench"):
        read_result(tmp_path / "x.json")


def test_spans_that_end_before_they_begin(result: BenchResult, tmp_path: Path) -> None:
    samples = json.loads(to_json(result))["samples"]
    samples[3]["spans"][0]["end"] = -1
    (tmp_path / "x.json").write_text(_with(result, samples=samples))
    with pytest.raises(UsageError, match="ends before it begins"):
        read_result(tmp_path / "x.json")


@pytest.mark.parametrize("copies", [0, 2])
def test_arms_without_a_name_of_their_own(result: BenchResult, tmp_path: Path, copies: int) -> None:
    arms = json.loads(to_json(result))["arms"][:1] * copies
    (tmp_path / "x.json").write_text(_with(result, arms=arms))
    with pytest.raises(UsageError, match="two of the same name"):
        read_result(tmp_path / "x.json")


def test_a_newer_schema_is_named(result: BenchResult, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(_with(result, schema="slimgpu.bench.v2", more=[]))
    with pytest.raises(UsageError, match=r"has the schema slimgpu\.bench\.v2, this slimgpu reads slimgpu\.bench\.v1"):
        read_result(tmp_path / "x.json")


def test_a_file_that_is_not_there_or_is_none(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no file"):
        read_result(tmp_path / "nope.json")
    with pytest.raises(UsageError, match="cannot be read"):
        read_result(tmp_path)
