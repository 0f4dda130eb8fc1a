"""Two benchmarks held against each other: whether the later one is worse, beyond noise and on the same machine."""

from __future__ import annotations

import json
import math
import re
import shlex
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter, ValidationError

from slimgpu.bench.comparison import COMPARE_SCHEMA, Change, CompareResult, Difference, SizeChange
from slimgpu.bench.results import SCHEMA, STAGES, BenchResult
from slimgpu.bench.statistics import by_round, failed, good_samples, interval, percentile, seconds_of
from slimgpu.errors import NotFoundError, UsageError
from slimgpu.units import format_rate, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slimgpu.bench.results import Sample

_RESULT: TypeAdapter[BenchResult] = TypeAdapter(BenchResult)
_VERSION: Final = re.compile(r"slimgpu\.bench\.v([0-9]{1,9})")
_LARGEST: Final = 256 * 1024 * 1024
_SHOWN: Final = 20
"""Digits of a number."""
_DRIFT: Final = 1.02
"""Two runs on one machine are some time apart: what is slower by less than this is not called worse."""


def read_result(path: Path) -> BenchResult:
    """The result that ``bench --json`` wrote to a file.

    `NotFoundError` when there is no such file, `UsageError` when it is something else, or of a newer slimgpu.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}; write one with slimgpu bench --json") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); name a file of slimgpu bench --json") from error
    try:
        document = _parse(data)
        _check_schema(document, path)
        result = _RESULT.validate_python(document)
        _check_values(result)
    except (ValidationError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not a result of slimgpu bench ({_reason(error)}); write one with slimgpu bench --json"
        ) from error
    return result


def _parse(data: bytes) -> Any:
    if len(data) > _LARGEST:
        raise ValueError(f"it is longer than {format_size(_LARGEST)}")
    return json.loads(data, parse_constant=_finite, parse_float=_finite, parse_int=_integer)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:_SHOWN]} is no number")
    return value


def _integer(text: str) -> int:
    if len(text) > _SHOWN:
        raise ValueError(f"{text[:_SHOWN]}... is too large a number")
    return int(text)


def _check_values(result: BenchResult) -> None:
    """ValueError for what no run can have measured."""
    if not result.arms or len({arm.name for arm in result.arms}) < len(result.arms):
        raise ValueError("it has no arms, or two of the same name")
    for sample in result.samples:
        if min(sample.total or 0, sample.warm or 0, sample.answer or 0) < 0:
            raise ValueError(f"round {sample.round} of {sample.arm!r} took less than no time")
        if any(span.end < span.begin for span in (*sample.spans, *sample.warm_spans)):
            raise ValueError(f"a span in round {sample.round} of {sample.arm!r} ends before it begins")


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error) or type(error).__name__


def _check_schema(document: Any, path: Path) -> None:
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema == SCHEMA:
        return
    match = _VERSION.fullmatch(schema) if isinstance(schema, str) else None
    if match and int(match[1]) > int(SCHEMA.rpartition("v")[2]):
        raise UsageError(f"{path} has the schema {schema}, this slimgpu reads {SCHEMA}; use the slimgpu that wrote it")
    raise ValueError(f"its schema is not {SCHEMA}")


def compare(before: BenchResult, after: BenchResult, names: tuple[str, str]) -> CompareResult:
    """Every arm that both have; ``names`` are those of the files."""
    ours, theirs = {arm.name: arm for arm in before.arms}, {arm.name: arm for arm in after.arms}
    common = [name for name in ours if name in theirs]
    unlike = tuple(_unlike(before, after))
    broken = (failed(before.samples), failed(after.samples))
    return CompareResult(
        schema=COMPARE_SCHEMA,
        before=names[0],
        after=names[1],
        began=(before.began, after.began),
        comparable=not unlike,
        unlike=unlike,
        noted=tuple(_noted(before, after)),
        changes=tuple(change for name in common for change in _changes(before, after, name, known=not unlike)),
        sizes=tuple(size for name in common for size in _sizes(before, after, name)),
        only_before=tuple(name for name in ours if name not in theirs),
        only_after=tuple(name for name in theirs if name not in ours),
        failed={
            name: (broken[0].get(name, 0), broken[1].get(name, 0)) for name in {**ours, **theirs} if _any(broken, name)
        },
    )


def _any(counts: tuple[dict[str, int], dict[str, int]], name: str) -> bool:
    return any(name in each for each in counts)


def _changes(before: BenchResult, after: BenchResult, arm: str, *, known: bool) -> Iterator[Change]:
    first, second = good_samples(before.samples, arm), good_samples(after.samples, arm)
    for stage in STAGES:
        old, new = _seconds(first, stage), _seconds(second, stage)
        if not old or not new:
            continue
        above, below = percentile(old, 50), percentile(new, 50)
        if not above or not below:
            yield Change(arm, stage, above, below, None, None, None, worse=False)
            continue
        low, high = interval(_table(first, stage), _table(second, stage), paired=False)
        worse = known and high is not None and high < 1 and below > above * _DRIFT
        yield Change(arm, stage, above, below, round(above / below, 6), low, high, worse=worse)


def _table(samples: list[Sample], stage: str) -> Any:
    return by_round(samples, stage, sorted({sample.round for sample in samples}))


def _seconds(samples: list[Sample], stage: str) -> list[float]:
    found = (seconds_of(sample, stage) for sample in samples)
    return [seconds for seconds in found if seconds is not None]


def _sizes(before: BenchResult, after: BenchResult, name: str) -> Iterator[SizeChange]:
    old, new = (next(arm for arm in result.arms if arm.name == name) for result in (before, after))
    pairs = {
        "to pull": (old.stored, new.stored),
        "unpacked": (old.unpacked, new.unpacked),
        "weights": (old.weights_stored, new.weights_stored),
    }
    for what, (first, second) in pairs.items():
        if first or second:
            yield SizeChange(name, what, first, second, worse=second > first)


def _unlike(before: BenchResult, after: BenchResult) -> Iterator[Difference]:
    """What times depend on so much that they can't be compared when it differs."""
    for what, old in _conditions(before).items():
        new = _conditions(after)[what]
        if old != new:
            yield Difference(what, old, new)


def _conditions(result: BenchResult) -> dict[str, str]:
    machine, link = result.machine, result.link
    return {
        "CPU": machine.cpu,
        "cores": str(machine.cores),
        "memory": format_size(machine.memory),  # to three digits: a new kernel keeps some pages more or less
        "disk": machine.disk,
        "GPU": machine.gpu or "none",
        "device": result.device,
        "engine": result.engine.partition(" ")[0],
        "begins": result.begins,
        "nodes": str(result.nodes),
        "nodes serve each other": str(result.node_caches).lower(),
        "link": _rate(link.bandwidth),
        "a connection": _rate(link.connection),
        "latency": f"{1000 * link.latency:.3g} ms",
        "command": shlex.join(result.command),
    }


def _noted(before: BenchResult, after: BenchResult) -> Iterator[Difference]:
    """What differs and may explain a change; it is often what the comparison is for."""
    common = {arm.name for arm in before.arms} & {arm.name for arm in after.arms}
    old, new = (_circumstances(result, common) for result in (before, after))
    for what in {**old, **new}:
        if old.get(what) != new.get(what):
            yield Difference(what, old.get(what, "none"), new.get(what, "none"))


def _circumstances(result: BenchResult, arms: set[str]) -> dict[str, str]:
    machine = result.machine
    facts = {"kernel": machine.kernel, "driver": machine.driver or "none", "engine's version": result.engine}
    return facts | machine.versions | {f"image of {arm.name}": arm.digest for arm in result.arms if arm.name in arms}


def _rate(bits: float | None) -> str:
    return "not limited" if bits is None else format_rate(bits)
