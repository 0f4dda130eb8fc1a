"""The plan: what a build does to which path, by which rule and on what evidence.

A plan is a value that can be printed, kept and replayed on the image that it was made for.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import PlainValidator, TypeAdapter, ValidationError, WithJsonSchema

from slimgpu.analysis.debian import STATUS
from slimgpu.analysis.rules.rule import Effect
from slimgpu.errors import UsageError
from slimgpu.oci.digest import digest_bytes
from slimgpu.rootfs.patterns import Patterns
from slimgpu.slim.drops import following
from slimgpu.slim.packages import leaving as leaving_packages
from slimgpu.slim.records import stale_records
from slimgpu.slim.shrinks import GpuCode, check_native, gpu_code_of, shrinks
from slimgpu.slim.weights import KEEP, POINTER, SPLIT, Weights, leaving, pointers

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from slimgpu.analysis.claims import Claim, Claims
    from slimgpu.analysis.facts import Facts
    from slimgpu.analysis.rules.rule import Match, Rule
    from slimgpu.oci.image import Image

SCHEMA: Final = "slimgpu.plan.v1"
USER_DROP: Final = "user.drop"
EMPTY_DIRECTORY: Final = "slim.empty-directory"
DANGLING: Final = "slim.dangling-link"
RECORDS: Final = "slim.records"
_TOOLS: Final = "toolchain.apt"


class Do(StrEnum):
    """What is done to a path."""

    DROP = "drop"
    LINK = "link"
    EDIT = "edit"
    SHRINK = "shrink"
    ADD = "add"


def _as_path(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a string")  # noqa: TRY004 - pydantic turns ValueError into its own
    return value


PathText = Annotated[str, PlainValidator(_as_path), WithJsonSchema({"type": "string"})]
"""A path, whose undecodable bytes are lone surrogates, which pydantic's own str refuses."""


@dataclass(frozen=True, slots=True)
class Action:
    """One change to one path."""

    path: PathText
    do: Do
    rule: str
    reason: PathText
    bytes: int
    """Unpacked bytes that it saves."""
    target: PathText = ""
    """For a link, the path whose file it becomes."""


@dataclass(frozen=True, slots=True)
class Held:
    """Files of a rule that stay after all."""

    rule: str
    reason: PathText
    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All changes to one image, by path."""

    schema: str
    image: str
    source: str
    """Digest of the image's manifest: the plan fits no other."""
    actions: tuple[Action, ...]
    held: tuple[Held, ...]
    removed_packages: tuple[str, ...]
    """Packages that leave dpkg's database because all their files leave, as name:architecture."""
    gpu_code: GpuCode
    weights: Weights = KEEP

    def dump(self) -> bytes:
        """The plan as JSON, always the same bytes for the same value."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @property
    def lent(self) -> tuple[str, ...]:
        """The weights that become an artifact, and so can come back to where they were."""
        return tuple(action.path for action in self.actions if action.rule == SPLIT and action.do is Do.DROP)

    @property
    def digest(self) -> str:
        """What names the plan in the image's labels."""
        return digest_bytes(self.dump())


_PLAN: TypeAdapter[Plan] = TypeAdapter(Plan)


def load_plan(data: bytes, what: str) -> Plan:
    """The plan that `Plan.dump` wrote; `UsageError` naming ``what`` when it is none."""
    try:
        plan = _PLAN.validate_python(json.loads(data))
    except (ValidationError, ValueError, RecursionError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UsageError(f"{what} is not a plan of slimgpu ({reason}); make one with build --dry-run --json") from error
    if plan.schema != SCHEMA:
        raise UsageError(f"{what} has the schema {plan.schema!r}, this slimgpu reads {SCHEMA}; make it again")
    return plan


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asks for beside the rules; ``keep`` wins over everything."""

    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    weights: Weights = KEEP


def make_plan(image: Image, facts: Facts, claims: Claims, wishes: Wishes) -> Plan:
    """The plan of level *safe*, with the user's wishes."""
    keep = Patterns(wishes.keep)
    drops = _Drops(facts)
    for path, claim in claims.items():
        if claim.effect is not Effect.KEEP and not keep.match(path):
            drops.add(_action(facts, claim))
    _add_wishes(facts, drops, Patterns(wishes.drop), keep)
    drops.settle_links()
    removed = _remove_packages(facts, drops, keep)
    drops.follow(keep)
    lent = _take_weights(facts, drops, wishes.weights, keep)
    links = drops.links()
    shrunk = [_shrink(facts, *found) for found in shrinks(facts, keep, links) if found[1].path not in drops.actions]
    check_native(facts, lambda path: path in drops.actions or keep.match(path))
    changed = {action.path for action in shrunk}
    changed |= {path for path, target in links.items() if target in changed}
    _edit_records(facts, drops, changed, lent, keep)
    return Plan(
        schema=SCHEMA,
        image=image.name,
        source=digest_bytes(image.raw_manifest),
        actions=tuple(sorted((*drops.actions.values(), *shrunk), key=lambda action: (action.path, action.rule))),
        held=tuple(_held(facts, claims.values())),
        removed_packages=removed,
        gpu_code=gpu_code_of(facts.wanted.policy),
        weights=wishes.weights,
    )


def _action(facts: Facts, claim: Claim) -> Action:
    do = Do.LINK if claim.effect is Effect.LINK else Do.DROP
    match = claim.match
    return Action(match.path, do, claim.rule.id, match.evidence, facts.size(match.path), match.target)


def _shrink(facts: Facts, rule: Rule, match: Match) -> Action:
    assert rule.partial is not None
    return Action(match.path, Do.SHRINK, rule.id, match.evidence, rule.partial(facts, match.path))


def _take_weights(facts: Facts, drops: _Drops, weights: Weights, keep: Patterns) -> Collection[str]:
    """Let weights leave, but nothing that leads to them or held them; gives those that can come back."""
    if weights.mode == "keep":
        return ()
    found = {path: why for path, why in leaving(facts, keep.match) if not drops.gone(path)}
    for path, why in found.items():
        drops.add(Action(path, Do.DROP, weights.rule, why, facts.size(path)))
    drops.settle_links()
    if weights.mode == "drop":
        return ()
    for path in pointers(facts, found, drops.gone):
        drops.add(Action(path, Do.ADD, POINTER, "it says where the weights of this directory are", 0))
    return found


def _edit_records(facts: Facts, drops: _Drops, changed: Collection[str], lent: Collection[str], keep: Patterns) -> None:
    """Let the records of distributions tell the truth about files that go or change; ``lent`` ones will be back."""
    changes = list(stale_records(facts, lambda path: path in changed or (drops.gone(path) and path not in lent)))
    for record, count in changes:
        if not keep.match(record):
            drops.add(Action(record, Do.EDIT, RECORDS, f"{count} of the files that it names go or change", 0))


def _add_wishes(facts: Facts, drops: _Drops, drop: Patterns, keep: Patterns) -> None:
    for path, node in facts.files.nodes.items():
        if not node.children and drop.match(path) and not keep.match(path):
            drops.add(Action(path, Do.DROP, USER_DROP, "named by --drop", facts.size(path)))


def _held(facts: Facts, claims: Iterable[Claim]) -> Iterable[Held]:
    files: Counter[tuple[str, str]] = Counter()
    counts: Counter[tuple[str, str]] = Counter()
    for claim in claims:
        if claim.match.held:
            key = (claim.rule.id, claim.match.reason)
            files[key] += 1
            counts[key] += facts.size(claim.match.path)
    for rule, reason in sorted(files, key=lambda key: (-counts[key], key)):
        yield Held(rule, reason, files[rule, reason], counts[rule, reason])


class _Drops:
    """Actions under construction, by path."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self.actions: dict[str, Action] = {}

    def add(self, action: Action) -> None:
        self.actions[action.path] = action

    def gone(self, path: str) -> bool:
        action = self.actions.get(path)
        return action is not None and action.do is Do.DROP

    def links(self) -> dict[str, str]:
        """What becomes a link, and the path whose file it then shares."""
        return {path: action.target for path, action in self.actions.items() if action.do is Do.LINK}

    def settle_links(self) -> None:
        """Leave alone what would be linked to a file that goes or is itself a link."""
        links = [action for action in self.actions.values() if action.do is Do.LINK]
        for action in links:
            if action.target in self.actions:
                del self.actions[action.path]

    def follow(self, keep: Patterns) -> None:
        """Drop as well what goes because of what is dropped by now."""
        gone = [path for path in self.actions if self.gone(path)]
        for path, lost in following(self._facts, gone, keep):
            if lost:
                self.add(Action(path, Do.DROP, DANGLING, f"it leads to {lost}, which goes", 0))
            else:
                self.add(Action(path, Do.DROP, EMPTY_DIRECTORY, "all that it held goes", 0))


def _remove_packages(facts: Facts, drops: _Drops, keep: Patterns) -> tuple[str, ...]:
    """Take the packages that leave whole out of dpkg's database; gives them as name:architecture."""
    found = [package for package in leaving_packages(facts, drops.gone) if not any(map(keep.match, package.records))]
    if not found or keep.match(STATUS):
        return ()
    for package in found:
        for record in package.records:
            drops.add(Action(record, Do.DROP, _TOOLS, f"package {package.name} leaves", facts.size(record)))
    drops.add(Action(STATUS, Do.EDIT, _TOOLS, f"{len(found)} packages leave the database", 0))
    return tuple(sorted(f"{package.name}:{package.architecture}" for package in found))
