from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.analysis.analysis import Analysis, analyze, summarize
from slimgpu.analysis.claims import claim
from slimgpu.store.cache import Cache
from slimgpu.store.context import Context
from tests.support.trees import Hardlink, Symlink, debian, distribution, facts_of, opened, tar_of, write_layout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.trees import Layer

_LAYERS: list[Layer] = [
    {
        **debian({"make": {"usr/bin/make": b"m" * 900}, "bash": {"usr/bin/bash": b"b" * 400}}),
        "root/.cache/pip/x": b"p" * 3000,
        "old": b"o" * 700,
        "same": b"s" * 50,
        "usr/lib/libcudart.so": b"c" * 800,
    },
    {
        **distribution("torch", "2.0", {"torch/a.py": b"t" * 600, "torch/lib/nvidia/x": b"n" * 100}),
        "old": b"n" * 100,
        "same": b"s" * 50,
        "linked": Hardlink("old"),
        "sym": Symlink("old"),
        "root/.cache/pip/.wh.x": b"",
    },
]


@pytest.fixture
def analysis(tmp_path: Path) -> Iterator[Analysis]:
    with facts_of(tmp_path, *_LAYERS) as (image, facts, _):
        yield summarize(image, facts, claim(facts))


def test_groups_add_up_to_the_whole(analysis: Analysis) -> None:
    assert sum(group.bytes for group in analysis.groups) == analysis.unpacked
    assert sum(group.files for group in analysis.groups) == analysis.files


def test_what_a_later_layer_hides(analysis: Analysis) -> None:
    assert analysis.hidden == 3000 + 700 + 50
    (finding,) = [finding for finding in analysis.findings if finding.rule == "layer.hidden"]
    assert (finding.bytes, finding.files) == (analysis.hidden, 3)
    assert [(item.path, item.why) for item in finding.evidence] == [
        ("root/.cache/pip/x", "layer 1 brings it, layer 2 deletes it"),
        ("old", "layer 1 brings it, layer 2 replaces it"),
        ("same", "layer 1 brings it, layer 2 brings the same bytes again"),
    ]
    assert [layer.hidden for layer in analysis.layers] == [analysis.hidden, 0]


def test_layers(analysis: Analysis) -> None:
    assert [layer.number for layer in analysis.layers] == [1, 2]
    assert [layer.step for layer in analysis.layers] == ["step 1", "step 2"]
    assert analysis.stored == sum(layer.stored for layer in analysis.layers)
    brought = sum(layer.unpacked for layer in analysis.layers)
    assert brought == analysis.unpacked + analysis.hidden


def test_owners(analysis: Analysis) -> None:
    names = [(owner.kind, owner.name) for owner in analysis.owners]
    assert set(names) == {("apt", "make"), ("apt", "bash"), ("python", "torch")}
    assert [owner.bytes for owner in analysis.owners] == sorted((o.bytes for o in analysis.owners), reverse=True)


def test_findings_are_sorted_and_show_the_largest_files(analysis: Analysis) -> None:
    keys = [(-finding.bytes, finding.rule) for finding in analysis.findings]
    assert keys == sorted(keys)
    for finding in analysis.findings:
        assert len(finding.evidence) <= 10
        sizes = [item.bytes for item in finding.evidence]
        assert sizes == sorted(sizes, reverse=True)


def test_the_analysis_does_not_depend_on_workers_or_the_cache(tmp_path: Path) -> None:
    reference = write_layout(tmp_path / "image", [tar_of(layer) for layer in _LAYERS])
    found = []
    for jobs in (1, 2, 5):
        for cache in (Cache(tmp_path / "shared"), Cache(tmp_path / f"own-{jobs}")):
            with opened(reference, cache) as image:
                found.append(analyze(image, Context(cache, jobs)))
    assert all(other == found[0] for other in found)


_names = st.sampled_from(
    ["usr/include/a.h", "usr/lib/b", "var/log/dpkg.log", "opt/c", "home/d", "usr/share/doc/e", "f/g"]
)
_layer = st.dictionaries(_names, st.binary(max_size=30) | st.binary(min_size=5000, max_size=5001), max_size=6)


@given(st.lists(_layer, min_size=1, max_size=3), st.data())
def test_groups_add_up_for_any_image(tmp_path: Path, layers: list[dict[str, bytes]], data: st.DataObject) -> None:
    stack: list[Layer] = [dict(layer) for layer in layers]
    present = sorted({path for layer in layers for path in layer})
    if present:
        targets = data.draw(st.lists(st.sampled_from(present), max_size=3))
        stack.append({f"z/{number}": Hardlink(path) for number, path in enumerate(targets)})
    with facts_of(tmp_path, *stack) as (image, facts, _):
        found = summarize(image, facts, claim(facts))
        inodes = {id(node.inode): node.inode.entry.size for _, node in facts.files.files()}
    assert found.unpacked == sum(inodes.values())
    assert sum(group.bytes for group in found.groups) == found.unpacked
    assert sum(group.files for group in found.groups) == found.files
    for finding in found.findings:
        assert finding.bytes >= sum(item.bytes for item in finding.evidence)
    assert dataclasses.asdict(found)["schema"] == "slimgpu.analysis.v1"


def test_malformed_libraries_are_left_alone(tmp_path: Path) -> None:
    layer: Layer = {f"usr/lib/bad{n}.so": b"\x7fELF" + bytes([n]) * (n * 13) for n in range(80)}
    with facts_of(tmp_path, layer) as (image, facts, _):
        assert facts.elf == {}
        assert summarize(image, facts, claim(facts)).files == 80
