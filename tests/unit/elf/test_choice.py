"""The rule by which GPU code stays, case by case, and what holds in all cases."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.elf.arch import Sm, Variant
from slimgpu.elf.choice import Choice, Code, Form, Policy, choose, compiles_for, runs_on

FORMS = {"sm": Form.CUBIN, "compute": Form.PTX, "lto": Form.LTO_IR, "many": Form.CONCATENATED, "unknown": 77}


def code(name: str) -> Code:
    """The code that nvcc's options call so."""
    match = re.fullmatch(r"([a-z]+)_(\d+)([af]?)", name)
    assert match
    return Code(FORMS[match[1]], Sm(int(match[2]), Variant(match[3])))


def kept(names: str, policy: Policy) -> str:
    words = names.split()
    return " ".join(words[n] for n in sorted(choose([code(word) for word in words], policy).kept))


CASES = [
    ("the same number", "90", "sm_80 sm_90 sm_100", "sm_90"),
    ("a smaller minor version", "89", "sm_75 sm_80 sm_86", "sm_86"),
    ("no larger minor version", "80", "sm_75 sm_80 sm_86 sm_89", "sm_80"),
    ("no other major version", "90", "sm_80 sm_100 compute_80", "compute_80"),
    ("the newest of several minors", "89", "sm_80 sm_86 sm_89", "sm_89"),
    ("a specific cubin beside the plain one", "90", "sm_90 sm_90a", "sm_90 sm_90a"),
    ("a specific cubin alone", "90", "sm_80 sm_90a compute_80", "sm_90a"),
    ("a specific cubin of another minor", "103", "sm_100 sm_100a", "sm_100"),
    ("only a specific cubin of another minor", "103", "sm_100a compute_90", "compute_90"),
    ("a newer specific cubin on the older GPU", "100", "sm_100 sm_103a", "sm_100"),
    ("a family's cubin on a later member", "103", "sm_90 sm_100f sm_120", "sm_100f"),
    ("a family's cubin on its first member", "100", "sm_100f sm_103a", "sm_100f"),
    ("a family's cubin is not for earlier members", "100", "sm_103f compute_90", "compute_90"),
    ("a family's cubin beside the plain one", "103", "sm_100 sm_100f", "sm_100 sm_100f"),
    ("a newer family's cubin wins", "103", "sm_100 sm_100f sm_103f", "sm_103f"),
    ("the family of consumer GPUs", "121", "sm_100f sm_120f", "sm_120f"),
    ("another family's cubin", "120", "sm_100f compute_100", "compute_100"),
    ("the embedded one on its own GPU", "87", "sm_80 sm_87 sm_89", "sm_87"),
    ("the embedded one is not promised to others", "89", "sm_80 sm_86 sm_87", "sm_86 sm_87"),
    ("an embedded one alone is kept with PTX", "89", "sm_87 compute_80", "sm_87 compute_80"),
    ("other cubins on an embedded GPU are not promised", "87", "sm_80 sm_86 compute_80", "sm_80 sm_86 compute_80"),
    ("an older embedded one beside a newer promised one", "89", "sm_87 sm_89", "sm_89"),
    ("PTX where no cubin runs", "90", "sm_75 compute_75 compute_80", "compute_80"),
    ("PTX that is too new", "80", "sm_90 compute_90", ""),
    ("PTX of the same number", "100", "sm_90 compute_90 compute_100", "compute_100"),
    ("specific PTX on its GPU", "90", "compute_80 compute_90a", "compute_90a"),
    ("specific PTX on another GPU", "100", "compute_80 compute_90a", "compute_80"),
    ("a family's PTX in the family", "103", "compute_90 compute_100f", "compute_100f"),
    ("a family's PTX outside of it", "120", "compute_90 compute_100f", "compute_90"),
    ("PTX beside a cubin that runs", "90", "sm_90 compute_90", "sm_90"),
    ("two of the same", "90", "sm_90 sm_90 sm_80", "sm_90 sm_90"),
    ("nothing is usable", "90", "sm_75 sm_100", ""),
    ("nothing at all", "90", "", ""),
    ("two targets", "80 90", "sm_75 sm_80 sm_90 sm_100", "sm_80 sm_90"),
    ("two targets, one by PTX", "75 120", "sm_75 sm_90 compute_90 compute_75", "sm_75 compute_90"),
    ("two targets that share one", "86 89", "sm_80 sm_86 sm_90", "sm_86"),
    ("LTO-IR that is not too new", "90", "lto_75 lto_90 lto_100 sm_90", "lto_75 lto_90 sm_90"),
    ("LTO-IR does not stand in for PTX", "90", "lto_90 compute_80", "lto_90 compute_80"),
    ("what is not known", "90", "unknown_100 many_0 sm_75 sm_0", "unknown_100 many_0 sm_0"),
]


@pytest.mark.parametrize(("targets", "names", "expected"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_what_stays(targets: str, names: str, expected: str) -> None:
    assert kept(names, Policy(tuple(Sm(int(one)) for one in targets.split()))) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("sm_90 compute_80 compute_90", "sm_90 compute_90"),
        ("sm_90 compute_75", "sm_90 compute_75"),
        ("sm_90 compute_90 compute_100a compute_100f", "sm_90 compute_90"),
        ("sm_90 compute_90 compute_120", "sm_90 compute_120"),
        ("sm_90 sm_75", "sm_90"),
    ],
)
def test_the_newest_plain_ptx_stays_on_request(names: str, expected: str) -> None:
    assert kept(names, Policy((Sm(90),), keep_ptx=True)) == expected


@pytest.mark.parametrize(
    ("names", "expected", "missing"),
    [
        ("sm_90 compute_90", "sm_90", set()),
        ("sm_75 compute_75", "", {Sm(90)}),
        ("sm_100 compute_100", "", set()),
        ("lto_80 compute_75", "lto_80", {Sm(90)}),
    ],
)
def test_native_code_only_tells_what_is_missing(names: str, expected: str, missing: set[Sm]) -> None:
    policy = Policy((Sm(90),), native=True)
    assert kept(names, policy) == expected
    assert choose([code(name) for name in names.split()], policy).missing == missing


NUMBERS = st.sampled_from([50, 70, 72, 75, 80, 86, 87, 89, 90, 100, 101, 103, 110, 120, 121])
TARGETS = NUMBERS.map(Sm)
CODES = st.lists(
    st.builds(Code, st.sampled_from([1, 2, 8, 0x100, 77]), st.builds(Sm, NUMBERS, st.sampled_from(Variant)))
)
POLICIES = st.builds(
    lambda targets, ptx, native: Policy(tuple(targets), keep_ptx=ptx, native=native),
    st.lists(TARGETS, min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
)


@given(CODES, POLICIES)
def test_what_stays_was_there_and_stays_again(codes: list[Code], policy: Policy) -> None:
    chosen = choose(codes, policy).kept
    assert chosen <= set(range(len(codes)))
    left = [codes[n] for n in sorted(chosen)]
    assert choose(left, policy).kept == frozenset(range(len(left)))


@given(CODES, POLICIES)
def test_several_targets_are_the_union_of_each(codes: list[Code], policy: Policy) -> None:
    single = [choose(codes, Policy((one,), keep_ptx=policy.keep_ptx, native=policy.native)) for one in policy.targets]
    union = Choice(
        frozenset().union(*(one.kept for one in single)), frozenset().union(*(one.missing for one in single))
    )
    assert choose(codes, policy) == union


@given(CODES, TARGETS)
def test_a_target_finds_what_it_found(codes: list[Code], target: Sm) -> None:
    chosen = choose(codes, Policy((target,))).kept
    promised = [
        n
        for n, one in enumerate(codes)
        if one.form == Form.CUBIN
        and runs_on(one.sm, target)
        and (one.sm == target or one.sm.number == target.number or not (one.sm.embedded or target.embedded))
    ]
    newest = max((codes[n].sm.number for n in promised), default=0)
    assert {n for n in promised if codes[n].sm.number == newest} <= chosen
    usable = [n for n, one in enumerate(codes) if one.form == Form.PTX and compiles_for(one.sm, target)]
    if not promised and usable:
        assert max(usable, key=lambda n: codes[n].sm.number) in chosen


@given(CODES, TARGETS)
def test_order_does_not_matter(codes: list[Code], target: Sm) -> None:
    policy = Policy((target,))
    forward = {codes[n] for n in choose(codes, policy).kept}
    assert {codes[::-1][n] for n in choose(codes[::-1], policy).kept} == forward
