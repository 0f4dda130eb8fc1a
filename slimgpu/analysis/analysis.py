"""Facts and claims composed to one result that says where an image's bytes are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slimgpu.analysis.claims import Claim, claim
from slimgpu.analysis.facts import Facts, gather
from slimgpu.analysis.gpu_code import GpuCodeSummary, summarize_gpu_code
from slimgpu.analysis.rules import RULES
from slimgpu.analysis.rules.rule import Effect, Rule
from slimgpu.analysis.unpack import unpack
from slimgpu.elf.shrink import SYMBOLS_ONLY, Wanted
from slimgpu.oci.digest import digest_bytes
from slimgpu.rootfs.entry import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from slimgpu.oci.image import Image
    from slimgpu.rootfs.tree import Hidden
    from slimgpu.store.context import Context

SCHEMA: Final = "slimgpu.analysis.v1"
_EVIDENCE: Final = 10
"""Files shown for each finding; the plan lists them all."""
HIDDEN: Final = Rule(
    "layer.hidden",
    "hidden",
    "bytes that a later layer hides",
    "a later layer deletes or replaces them, and they are pulled all the same; one layer for both avoids it.",
    Effect.DROP,
    lambda _: (),
)
"""Not about files of the merged tree, so nothing that a file could be claimed by."""


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """One layer of the image; sizes in bytes."""

    number: int
    digest: str
    media_type: str
    stored: int
    unpacked: int
    files: int
    hidden: int
    """Bytes of files that a later layer deletes or replaces."""
    step: str
    """The build step that made it, as the history tells."""


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """A part of the merged tree; the groups add up to the whole."""

    name: str
    bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class OwnerSummary:
    """A package's or distribution's share of the merged tree."""

    kind: str
    name: str
    version: str
    bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """One file behind a finding."""

    path: str
    bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule found; files that ``build`` keeps are a finding of their own."""

    rule: str
    group: str
    title: str
    why: str
    effect: Effect
    bytes: int
    files: int
    held_by: tuple[str, ...]
    """For what is held back, the reasons, the most frequent first."""
    evidence: tuple[Evidence, ...]
    """The largest files."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """Where the bytes of an image are."""

    schema: str
    image: str
    digest: str
    platform: str
    stored: int
    """Bytes of the layers as they are pulled."""
    unpacked: int
    """Bytes of the files that a container sees, hard links counted once."""
    hidden: int
    """Bytes of files that are pulled and never seen."""
    files: int
    layers: tuple[LayerSummary, ...]
    groups: tuple[GroupSummary, ...]
    owners: tuple[OwnerSummary, ...]
    gpu_code: GpuCodeSummary
    findings: tuple[Finding, ...]


def analyze(image: Image, context: Context, wanted: Wanted = SYMBOLS_ONLY) -> Analysis:
    """Unpack the image through the cache and analyze it; ``wanted`` says what a build would take from files."""
    with unpack(image, context) as files:
        facts = gather(files, image, context, wanted)
        return summarize(image, facts, claim(facts))


def summarize(image: Image, facts: Facts, claims: dict[str, Claim]) -> Analysis:
    """The result for an image whose facts and claims are known."""
    sizes = {path: facts.size(path) for path, _ in facts.files.files()}
    findings = [*_findings(facts, claims), *_partial_findings(facts, claims), *_hidden(facts)]
    return Analysis(
        schema=SCHEMA,
        image=image.name,
        digest=digest_bytes(image.raw_manifest),
        platform=str(image.config.platform),
        stored=sum(layer.descriptor.size for layer in image.layers),
        unpacked=sum(sizes.values()),
        hidden=sum(hidden.size for hidden in facts.files.tree.hidden),
        files=len(sizes),
        layers=tuple(_layers(image, facts)),
        groups=tuple(_groups(facts, claims, sizes)),
        owners=tuple(_owners(facts, sizes)),
        gpu_code=summarize_gpu_code(facts),
        findings=tuple(sorted(findings, key=lambda f: (-f.bytes, f.rule))),
    )


def _layers(image: Image, facts: Facts) -> Iterable[LayerSummary]:
    hidden: Counter[int] = Counter()
    for item in facts.files.tree.hidden:
        hidden[item.layer] += item.size
    rows = zip(image.layers, facts.files.layers, image.config.steps(), strict=True)
    for number, (layer, entries, step) in enumerate(rows):
        regular = [entry for entry in entries if entry.kind is Kind.FILE]
        yield LayerSummary(
            number=number + 1,
            digest=layer.descriptor.digest,
            media_type=layer.descriptor.media_type,
            stored=layer.descriptor.size,
            unpacked=sum(entry.size for entry in regular),
            files=len(regular),
            hidden=hidden[number],
            step=step,
        )


def _groups(facts: Facts, claims: dict[str, Claim], sizes: dict[str, int]) -> list[GroupSummary]:
    counts: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for path, size in sizes.items():
        group = claims[path].rule.group if path in claims else _owner_group(facts, path)
        counts[group] += size
        files[group] += 1
    return [GroupSummary(name, count, files[name]) for name, count in counts.most_common()]


def _owner_group(facts: Facts, path: str) -> str:
    owner = facts.owners.get(path)
    name = path.rpartition("/")[2]
    if "/nvidia/" in path or name.startswith(("libcu", "libnv", "libnccl", "libnpp")):
        return "CUDA libraries"
    if owner is None:
        return "other files"
    return "apt packages" if owner.kind == "apt" else "Python distributions"


def _owners(facts: Facts, sizes: dict[str, int]) -> list[OwnerSummary]:
    counts: Counter[tuple[str, str, str]] = Counter()
    files: Counter[tuple[str, str, str]] = Counter()
    for path, size in sizes.items():
        owner = facts.owners.get(path)
        if owner is not None:
            key = (owner.kind, owner.name, owner.version)
            counts[key] += size
            files[key] += 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [OwnerSummary(*key, count, files[key]) for key, count in ordered]


def _findings(facts: Facts, claims: dict[str, Claim]) -> Iterable[Finding]:
    by_finding: dict[tuple[str, Effect], list[Claim]] = {}
    for item in claims.values():
        by_finding.setdefault((item.rule.id, item.effect), []).append(item)
    for (_, effect), items in by_finding.items():
        evidence = [Evidence(c.match.path, facts.size(c.match.path), c.match.reason) for c in items]
        reasons = Counter(c.match.because for c in items if c.match.held)
        held_by = tuple(reason for reason, _ in reasons.most_common(_EVIDENCE))
        yield _finding(items[0].rule, effect, evidence, held_by)


def _partial_findings(facts: Facts, claims: dict[str, Claim]) -> Iterable[Finding]:
    gone = {path for path, claim in claims.items() if claim.effect is not Effect.KEEP}
    for rule in RULES:
        if rule.partial is not None:
            matches = [m for m in rule.find(facts) if rule.effect is Effect.KEEP or m.path not in gone]
            evidence = [Evidence(m.path, rule.partial(facts, m.path), m.evidence) for m in matches]
            if evidence:
                yield _finding(rule, rule.effect, evidence)


def _hidden(facts: Facts) -> Iterable[Finding]:
    evidence = [Evidence(item.path, item.size, _fate(item)) for item in facts.files.tree.hidden]
    if evidence:
        yield _finding(HIDDEN, Effect.DROP, evidence)


def _fate(item: Hidden) -> str:
    fate = "deletes it" if item.deleted else "brings the same bytes again" if item.same_content else "replaces it"
    return f"layer {item.layer + 1} brings it, layer {item.by + 1} {fate}"


def _finding(rule: Rule, effect: Effect, evidence: Sequence[Evidence], held_by: tuple[str, ...] = ()) -> Finding:
    return Finding(
        rule=rule.id,
        group=rule.group,
        title=rule.title,
        why=rule.why,
        effect=effect,
        bytes=sum(item.bytes for item in evidence),
        files=len(evidence),
        held_by=held_by,
        evidence=tuple(sorted(evidence, key=lambda e: (-e.bytes, e.path))[:_EVIDENCE]),
    )
