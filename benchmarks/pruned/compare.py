"""Whether the pruned libraries gave what the original ones give, case by case and bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Outcome = Mapping[str, Any]
    """What ``child.py workload`` wrote: ``cases`` and why the rest is ``unavailable``."""

_WHOLE = "(the whole)"
_ERRORS = ("RuntimeError: ", "TypeError: ", "ValueError: ")
_SHOWN = 3
_DIGITS = 12


class Kind(StrEnum):
    """What became of a case."""

    IDENTICAL = "identical"
    SKIPPED = "skipped"
    """Not available here, for the same reason in every arm."""
    DIFFERENT = "different"
    FAILED = "failed"
    """In the pruned arm only, or there for another reason."""
    UNSTABLE = "unstable"
    """The original libraries differ from themselves, so that nothing can be said."""

    @property
    def good(self) -> bool:
        """Whether it speaks against nothing."""
        return self in (Kind.IDENTICAL, Kind.SKIPPED)


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one case of a workload."""

    workload: str
    case: str
    kind: Kind
    detail: str = ""
    outputs: int = 0
    """Compared, without the next."""
    refused: int = 0
    """Types and the like that the operation does not take, with the same words in every arm."""


def judge(workload: str, original: Outcome, again: Outcome, pruned: Outcome) -> Iterator[Verdict]:
    """A verdict on every case that any arm knows; ``again`` is the original once more."""
    for case in dict.fromkeys([*original["cases"], *pruned["cases"]]):
        yield _verdict(workload, case, *(_result(outcome, case) for outcome in (original, again, pruned)))
    whole = _verdict(workload, _WHOLE, *(_ending(outcome) for outcome in (original, again, pruned)))
    if whole.kind is not Kind.IDENTICAL:
        yield whole


def _result(outcome: Outcome, case: str) -> Outcome:
    missing = {"unavailable": outcome["unavailable"] or "it has no such case"}
    found: Outcome = outcome["cases"].get(case, missing)
    return found


def _ending(outcome: Outcome) -> Outcome:
    """How a workload ended, as a result of its own."""
    return {"unavailable": outcome["unavailable"]} if outcome["unavailable"] else {"outputs": {}}


def _verdict(workload: str, case: str, original: Outcome, again: Outcome, pruned: Outcome) -> Verdict:
    if original != again:
        return Verdict(workload, case, Kind.UNSTABLE, _difference(original, again))
    if "outputs" not in original:
        if original == pruned:
            return Verdict(workload, case, Kind.SKIPPED, original["unavailable"])
        return Verdict(workload, case, Kind.FAILED, _difference(original, pruned))
    outputs = original["outputs"]
    refused = sum(value.startswith(_ERRORS) for value in outputs.values())
    if original == pruned:
        return Verdict(workload, case, Kind.IDENTICAL, "", len(outputs) - refused, refused)
    kind = Kind.DIFFERENT if "outputs" in pruned else Kind.FAILED
    return Verdict(workload, case, kind, _difference(original, pruned), len(outputs) - refused, refused)


def _difference(first: Outcome, second: Outcome) -> str:
    """In a few words."""
    if "outputs" not in first or "outputs" not in second:
        return f"{_short(first)}, then {_short(second)}"
    one, other = first["outputs"], second["outputs"]
    names = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
    shown = [f"{name or 'it'} ({_brief(one.get(name))}, then {_brief(other.get(name))})" for name in names]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} of {len(one)} outputs: {', '.join(shown[:_SHOWN])}{more}"


def _brief(value: str | None) -> str:
    """A few digits of a digest, or the text."""
    if value is None:
        return "none"
    return value[:_DIGITS] if value.isalnum() else value[:100]


def _short(result: Outcome) -> str:
    return f"{len(result['outputs'])} outputs" if "outputs" in result else str(result["unavailable"])
