"""The proof for one library: what cuobjdump finds in the pruned file is what the rule says, byte for byte."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import zstandard
from proof.read import PLACEHOLDER, Container, Entry, Reading, flat, moved_words
from proof.rule import stays

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from proof.tool import CuObjDump, Listed

LISTED = ("elf", "ptx")
"""What cuobjdump knows; LTO-IR and others are compared as they are stored."""

_READ = 1 << 23


@dataclass(frozen=True, slots=True)
class Kept:
    """What the rule leaves of a library."""

    entries: tuple[tuple[int, Entry], ...]
    """With their numbers among all entries of the original."""
    empty: frozenset[int]
    """Numbers of the containers of which nothing can run."""
    code: int
    """Bytes of the entries that stay."""
    size: int
    """Of the smallest file: what stays, and all that is no GPU code and no symbols."""


@dataclass(slots=True)
class Proof:
    """What was compared for one library and one choice of GPUs."""

    containers: int = 0
    entries: int = 0
    kept: int = 0
    placeholders: dict[str, int] = field(default_factory=dict)
    """How many of which architecture stand for containers of which nothing can run."""
    listed: int = 0
    """Pieces that cuobjdump lists in the pruned file."""
    extracted: int = 0
    """Pieces that it decompressed and that are the same as the original's; not those that are placeholders."""
    stored: int = 0
    """Entries whose stored bytes are the same."""
    moved: int = 0
    """Pointers that changed, in memory that holds no GPU code."""
    problems: list[str] = field(default_factory=list)


class Original:
    """A library as it was, with all that needs to be found out once."""

    def __init__(self, path: Path, tool: CuObjDump) -> None:
        self.path = path
        self.reading = Reading(path)
        self.containers = self.reading.containers()
        self.entries = flat(self.containers)
        self.listing = tool.listing(path, self.reading)
        self._tool = tool
        self._hashes: dict[str, list[str]] | None = None

    def disagreement(self) -> list[str]:
        """Where cuobjdump sees other code than this benchmark's reader."""
        ours = [(entry.form, entry.arch) for entry in self.entries if entry.form in LISTED]
        theirs = [(listed.form, listed.arch) for listed in self.listing]
        return [] if ours == theirs else [f"cuobjdump lists {len(theirs)} pieces, the reader {len(ours)}"]

    def digests(self) -> list[str]:
        """SHA-256 of each entry as cuobjdump extracts it, "" for those that it does not know."""
        if self._hashes is None:
            self._hashes = self._tool.extracted(self.path, self.reading)
        hashes = {form: iter(found) for form, found in self._hashes.items()}
        return [next(hashes[entry.form], "missing") if entry.form in LISTED else "" for entry in self.entries]

    def described(self) -> list[Listed | None]:
        """What cuobjdump says of each entry."""
        listing = iter(self.listing)
        return [next(listing, None) if entry.form in LISTED else None for entry in self.entries]

    def kept(self, targets: Sequence[int]) -> Kept:
        """The rule, applied to each container."""
        entries, empty, position = [], set(), 0
        for number, container in enumerate(self.containers):
            chosen = {entry.start for entry in stays(container.entries, targets)}
            entries += [(position + n, e) for n, e in enumerate(container.entries) if e.start in chosen]
            position += len(container.entries)
            if not chosen:
                empty.add(number)
        code = sum(entry.size for _, entry in entries)
        gone = sum(entry.size for entry in self.entries) - code
        return Kept(tuple(entries), frozenset(empty), code, self.reading.needed() - gone)


def prove(original: Original, pruned: Path, targets: Sequence[int], tool: CuObjDump, *, extract: bool) -> Proof:
    """Compare a pruned library with what the rule leaves of the original."""
    reading = Reading(pruned)
    containers = reading.containers()
    kept = original.kept(targets)
    proof = Proof(len(original.containers), len(original.entries), len(kept.entries))
    proof.problems += original.disagreement()
    if len(containers) != len(original.containers):
        proof.problems.append(f"{len(containers)} containers are left of {len(original.containers)}")
        return proof
    proof.placeholders = dict(Counter(_placeholders(original.containers, containers, kept, proof)))
    entries = flat(c for n, c in enumerate(containers) if n not in kept.empty)
    _compare_stored(original, reading, kept, entries, proof)
    _compare_listing(original, tool.listing(pruned, reading), containers, kept, proof)
    if extract:
        _compare_extracted(original, tool.extracted(pruned, reading), containers, kept, proof)
    proof.moved, wrong = moved_words(original.reading, reading)
    proof.problems += wrong
    return proof


def zeroed(original: Original, targets: Sequence[int]) -> bytearray:
    """The library with zeros for what goes, everything at its place."""
    data = bytearray(original.reading.data)
    kept = {entry.start for _, entry in original.kept(targets).entries}
    for entry in original.entries:
        if entry.start not in kept:
            data[entry.start : entry.end] = bytes(entry.size)
    for start, end in original.reading.symbol_spans():
        data[start:end] = bytes(end - start)
    return data


def compressed(data: Iterable[bytes]) -> int:
    """Bytes after ``zstd -3``."""
    packer = zstandard.ZstdCompressor(level=3, threads=2).compressobj()
    return sum(len(packer.compress(chunk)) for chunk in data) + len(packer.flush())


def chunks(data: Sequence[int]) -> Iterator[bytes]:
    """Of a large sequence of bytes."""
    return (bytes(data[start : start + _READ]) for start in range(0, len(data), _READ))


def _placeholders(before: Sequence[Container], after: Sequence[Container], kept: Kept, proof: Proof) -> Iterator[str]:
    """Each must be one entry, as small as an empty cubin or as the smallest there was."""
    for number in sorted(kept.empty):
        left, were = after[number].entries, before[number].entries
        smallest = min(entry.size for entry in were)
        known = {(entry.form, entry.arch) for entry in were}
        if len(left) != 1 or (left[0].form, left[0].arch) not in known:
            proof.problems.append(f"container {number} should hold one placeholder")
        elif left[0].size > max(PLACEHOLDER, smallest):
            proof.problems.append(f"the placeholder of container {number} has {left[0].size} bytes")
        else:
            yield left[0].arch


def _compare_stored(original: Original, reading: Reading, kept: Kept, entries: Sequence[Entry], proof: Proof) -> None:
    """Headers and stored payloads, of every form."""
    before = original.reading.data
    if len(entries) != len(kept.entries):
        proof.problems.append(f"{len(entries)} entries are left, {len(kept.entries)} should be")
        return
    for (_, old), new in zip(kept.entries, entries, strict=True):
        if before[old.start : old.end] == reading.data[new.start : new.end]:
            proof.stored += 1
        else:
            proof.problems.append(f"the stored bytes of an entry for {old.arch} differ")


def _compare_listing(
    original: Original, listing: Sequence[Listed], containers: Sequence[Container], kept: Kept, proof: Proof
) -> None:
    """All that cuobjdump says of each piece; of a placeholder only form and architecture."""
    described = original.described()
    expected = iter([described[number] for number, entry in kept.entries if entry.form in LISTED])
    found = iter(listing)
    for number, container in enumerate(containers):
        for entry in container.entries:
            if entry.form not in LISTED:
                continue
            listed = next(found, None)
            if number in kept.empty:
                good = listed is not None and (listed.form, listed.arch) == (entry.form, entry.arch)
            else:
                good = listed == next(expected, None)
            proof.listed += good
            if not good:
                proof.problems.append(f"cuobjdump lists {listed} for an entry of container {number}")
    left = [*found, *expected]
    if left:
        proof.problems.append(f"cuobjdump lists {len(listing)} pieces, {len(left)} do not fit")


def _compare_extracted(
    original: Original, hashes: dict[str, list[str]], containers: Sequence[Container], kept: Kept, proof: Proof
) -> None:
    """Each piece as cuobjdump extracts it."""
    digests = original.digests()
    expected = iter([digests[number] for number, entry in kept.entries if entry.form in LISTED])
    found = {form: iter(digests) for form, digests in hashes.items()}
    for number, container in enumerate(containers):
        for entry in container.entries:
            digest = next(found[entry.form], "nothing") if entry.form in LISTED else ""
            if not digest or number in kept.empty:
                continue
            if digest == next(expected, None):
                proof.extracted += 1
            else:
                proof.problems.append(f"what cuobjdump extracts of an entry of container {number} differs")
