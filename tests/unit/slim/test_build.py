from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.analysis.claims import claim
from slimgpu.errors import BrokenClosureError, UsageError
from slimgpu.layers.compress import Format
from slimgpu.rootfs.entry import Kind
from slimgpu.rootfs.tarread import TarReader
from slimgpu.rootfs.tree import Tree, merge
from slimgpu.slim.apply import apply
from slimgpu.slim.build import Built, build
from slimgpu.slim.check import check
from slimgpu.slim.plan import Action, Do, Plan, Wishes, make_plan
from slimgpu.slim.result import result_of
from tests.support.fuzz import examples
from tests.support.trees import (
    SITE,
    File,
    Hardlink,
    Special,
    Symlink,
    debian,
    distribution,
    facts_of,
    status,
)

if TYPE_CHECKING:
    from tests.support.trees import Layer, What

_PACKAGES: dict[str, dict[str, What]] = {
    "make": {"usr/bin/make": b"m" * 900},
    "bash": {"usr/bin/bash": File(b"b" * 400, mode=0o4755, xattrs=(("security.capability", b"\x01\0\xff"),))},
}
_LAYERS: list[Layer] = [
    {
        "": None,
        "bin": Symlink("usr/bin"),
        **debian(_PACKAGES, {"bash": "Description: a shell\n that goes on\nDepends: x"}),
        "root/.cache/pip/x": b"p" * 3000,
        "usr/lib/one": b"same" * 2000,
        "usr/lib/two": b"same" * 2000,
        "usr/lib/hard": Hardlink("usr/lib/two"),
        "dev/null": Special(Kind.CHARACTER, (1, 3)),
        "run/pipe": Special(Kind.FIFO),
        "tmp": None,
        "old": b"o" * 700,
    },
    {
        **distribution("app", "1.0", {"app/é\udcff.py": b"a" * 600, "app/data": b"d"}),
        "old": b"n",
        "linked": Hardlink("old"),
        "lib64/through": Symlink("../bin/bash"),
        "bin/new": b"in the merged directory",
        "usr/lib/.wh.one": b"",
    },
]


def content_of(tree: Tree, tars: list[bytes]) -> dict[str, tuple[object, ...]]:
    """All that the file system keeps, content and hard links included."""
    first: dict[int, str] = {}
    found: dict[str, tuple[object, ...]] = {}
    for path, node in tree.walk():
        entry = node.inode.entry
        data = tars[node.inode.layer][entry.offset : entry.offset + entry.size] if entry.kind is Kind.FILE else b""
        facts = (entry.kind, entry.mode, entry.uid, entry.mtime, entry.link, entry.device, entry.xattrs)
        found[path] = (*facts, data, first.setdefault(id(node.inode), path))
    return found


def stacked(tars: list[bytes]) -> dict[str, tuple[object, ...]]:
    entries = [list(TarReader(tar, "a written layer")) for tar in tars]
    return content_of(merge(entries, ["it"] * len(tars)), tars)


def built(
    tmp_path: Path, *layers: Layer, keep: tuple[str, ...] = (), drop: tuple[str, ...] = (), **more: Any
) -> tuple[Built, list[bytes], Plan]:
    with facts_of(tmp_path, *layers, **more) as (image, facts, context):
        plan = make_plan(image, facts, claim(facts), Wishes(keep, drop))
        result = build(image, facts, plan, Format.ZSTD, tmp_path / "blobs", context)
        tars = []
        for layer in result.image.layers:
            with layer.open() as chunks:
                stored = b"".join(chunks)
            tars.append(zstandard.ZstdDecompressor().decompressobj().decompress(stored))
            assert f"sha256:{hashlib.sha256(tars[-1]).hexdigest()}" == layer.diff_id
        assert result.image.config.diff_ids == tuple(layer.diff_id for layer in result.image.layers)
        before = sum({id(n.inode): n.inode.entry.size for _, n in facts.files.files()}.values())
        outcome = result_of(image, facts, plan, result, "sha256:x")
        assert outcome.before.unpacked == before
        assert outcome.after.files == result.files
    return result, tars, plan


def original(tmp_path: Path, *layers: Layer) -> dict[str, tuple[object, ...]]:
    with facts_of(tmp_path, *layers) as (_, facts, _):
        return content_of(facts.files.tree, [path.read_bytes() for path in facts.files.tars])


def test_keeping_everything_rebuilds_the_very_same_file_system(tmp_path: Path) -> None:
    _, tars, _ = built(tmp_path, *_LAYERS, keep=("**",))
    assert stacked(tars) == original(tmp_path, *_LAYERS)


def test_what_the_plan_leaves_alone_is_the_same(tmp_path: Path) -> None:
    _, tars, plan = built(tmp_path, *_LAYERS)
    before, after = original(tmp_path, *_LAYERS), stacked(tars)
    touched = {action.path for action in plan.actions}
    assert set(before) - set(after) == {action.path for action in plan.actions if action.do is Do.DROP}
    assert not set(after) - set(before)
    assert {p: f for p, f in after.items() if p not in touched} == {
        p: f for p, f in before.items() if p not in touched and p in after
    }


def test_the_standard_library_unpacks_the_layers(tmp_path: Path) -> None:
    _, tars, _ = built(tmp_path, *_LAYERS)
    names = []
    for tar in tars:
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            members = archive.getmembers()
            seen = {"."}
            for member in members:
                assert member.name.rpartition("/")[0] in ("", *seen), "parents come first"
                seen.add(member.name)
                names.append(member.name)
                if member.islnk():
                    assert member.linkname in seen
    assert "usr/bin/bash" in names


def test_the_roots_own_attributes_survive(tmp_path: Path) -> None:
    layer = {"x": b"x"}
    with facts_of(tmp_path, layer) as (image, facts, context):
        facts.files.tree.root.inode.entry = replace(facts.files.tree.root.inode.entry, mode=0o711, mtime=7 * 10**9)
        facts.files.tree.root.layer = 0
        plan = make_plan(image, facts, claim(facts), Wishes())
        result = build(image, facts, plan, Format.TAR, tmp_path / "blobs", context)
        with result.image.layers[-1].open() as chunks:
            entries = list(TarReader(b"".join(chunks), "it"))
    assert [(e.mode, e.mtime) for e in entries if not e.path] == [(0o711, 7 * 10**9)]


def test_a_root_that_a_layer_names_is_written(tmp_path: Path) -> None:
    _, tars, _ = built(tmp_path, {"": None, "x": b"x"})
    assert [e.path for e in TarReader(tars[-1], "it")] == ["", "x"]


def test_the_configuration_survives_with_new_layers_and_labels(tmp_path: Path) -> None:
    runtime = {"Env": ["A=b"], "Entrypoint": ["/usr/bin/bash"], "Labels": {"mine": "x"}, "Unknown": [1]}
    result, tars, plan = built(tmp_path, *_LAYERS, runtime=runtime)
    new = result.image.config
    assert {key: new.runtime[key] for key in runtime if key != "Labels"} == {
        key: value for key, value in runtime.items() if key != "Labels"
    }
    assert new.runtime["Labels"]["mine"] == "x"
    assert new.runtime["Labels"]["slimgpu.source.digest"] == plan.source
    assert new.runtime["Labels"]["slimgpu.plan.digest"] == plan.digest
    assert len(new.steps()) == len(tars)
    assert all(step.startswith("slimgpu build: ") for step in new.steps())


def test_duplicates_are_hard_links_now(tmp_path: Path) -> None:
    same = b"same" * 2000
    result, tars, _ = built(tmp_path, distribution("d", "1.0", {"d/a": same, "d/b": same, "d/c": same}))
    links = {path: facts[-1] for path, facts in stacked(tars).items() if "/d/" in path and facts[0] is Kind.FILE}
    assert links == dict.fromkeys([f"{SITE}/d/a", f"{SITE}/d/b", f"{SITE}/d/c"], f"{SITE}/d/a")
    assert result.unpacked < 2 * len(same)
    assert result.files == 5


def test_dpkg_forgets_the_packages_that_left(tmp_path: Path) -> None:
    _, tars, plan = built(tmp_path, *_LAYERS)
    assert plan.removed_packages == ("make:amd64",)
    text = next(data for path, (*_, data, _) in stacked(tars).items() if path == "var/lib/dpkg/status")
    assert isinstance(text, bytes)
    assert b"make" not in text
    assert b"Package: bash\n" in text
    assert b"Description: a shell\n that goes on\n" in text
    assert text.endswith(b"\n\n")


def test_the_database_is_edited_in_nothing_else(tmp_path: Path) -> None:
    text = (
        b"Package: zsh\nStatus: install ok installed\nDescription: \xff\xfe caf\xc3\xa9\n .\n more\n\n"
        + status("make").encode()
    )
    layer = {**debian(_PACKAGES), "var/lib/dpkg/status": text}
    _, tars, _ = built(tmp_path, layer)
    assert stacked(tars)["var/lib/dpkg/status"][-2] == text.partition(b"\n\n")[0] + b"\n\n"


def test_a_database_that_is_a_symlink_is_left_alone(tmp_path: Path) -> None:
    layer = {**debian(_PACKAGES), "elsewhere": status("make", "bash"), "var/lib/dpkg/status": Symlink("/elsewhere")}
    _, tars, _ = built(tmp_path, layer)
    after = stacked(tars)
    assert after["var/lib/dpkg/status"][0] is Kind.SYMLINK
    assert after["var/lib/dpkg/status"][4] == "/elsewhere"


@pytest.mark.parametrize("jobs", [1, 2, 7])
def test_the_result_does_not_depend_on_workers(tmp_path: Path, jobs: int) -> None:
    first, _, _ = built(tmp_path, *_LAYERS)
    again, _, _ = built(tmp_path, *_LAYERS, jobs=jobs)
    assert [layer.descriptor for layer in again.image.layers] == [layer.descriptor for layer in first.image.layers]


def libraries(root: Path) -> dict[str, What]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", ["opt/own/libown.so", "usr/lib/libbase.so.1", "opt/far/libpreloaded.so"])
def test_a_dropped_library_that_something_needs(tmp_path: Path, elf_root: Path, name: str) -> None:
    with pytest.raises(BrokenClosureError, match=rf"needs {Path(name).name}, which was {name} .*--keep"):
        built(tmp_path, libraries(elf_root), drop=(f"/{name}",))
    assert not list((tmp_path / "blobs").rglob("*")), "nothing is written before the check"


def test_libraries_that_only_what_goes_needs_can_go(tmp_path: Path, elf_root: Path) -> None:
    result, _, _ = built(tmp_path, libraries(elf_root), drop=("/opt", "/usr/bin/program", "/usr/lib"))
    assert result.files == 2


def test_what_was_broken_before_is_no_reason(tmp_path: Path, elf_root: Path) -> None:
    layer = libraries(elf_root)
    del layer["usr/lib/libbase.so.1"]
    built(tmp_path, layer)


def test_a_library_found_only_by_name_afterwards_is_broken(tmp_path: Path, elf_root: Path) -> None:
    layer = {**libraries(elf_root), "srv/copy/libown.so": (elf_root / "opt/own/libown.so").read_bytes()}
    with pytest.raises(BrokenClosureError, match=r"libown\.so"):
        built(tmp_path, layer, drop=("/opt/own/libown.so", "/opt/env"))


def test_the_start_of_the_image_cannot_be_dropped(tmp_path: Path) -> None:
    for key in ("Entrypoint", "Cmd"):
        with pytest.raises(BrokenClosureError, match="the image starts /bin/bash, which is gone"):
            built(tmp_path, *_LAYERS, runtime={key: ["/bin/bash"]}, drop=("/usr/bin/bash",))
        with pytest.raises(BrokenClosureError, match="the image starts bash, which is gone"):
            built(tmp_path, *_LAYERS, runtime={key: ["bash"]}, drop=("/usr/bin/bash",))
        with pytest.raises(BrokenClosureError, match=r"the image starts \./bash, which is gone"):
            built(tmp_path, *_LAYERS, runtime={key: ["./bash"], "WorkingDir": "/bin"}, drop=("/usr/bin/bash",))


def test_long_lists_of_what_is_broken_are_cut(tmp_path: Path, elf_root: Path) -> None:
    layer = libraries(elf_root)
    layer |= {f"opt/own/copy{n}.so": layer["opt/own/runpath.so"] for n in range(9)}
    with pytest.raises(BrokenClosureError, match=r"and \d+ more"):
        built(tmp_path, layer, drop=("libown.so",), keep=("copy*",))


def replayed(tmp_path: Path, *actions: Action, layer: Layer | None = None) -> None:
    with facts_of(tmp_path, layer or _LAYERS[0]) as (image, facts, _):
        plan = replace(make_plan(image, facts, {}, Wishes()), actions=actions)
        with apply(plan, facts.files, {}) as slim:
            check(facts, plan, slim)


@pytest.mark.parametrize(
    "action",
    [
        Action("usr/lib/none", Do.DROP, "r", "", 0),
        Action("usr/lib/one", Do.LINK, "r", "", 0, "none"),
        Action("usr/lib/one", Do.LINK, "r", "", 0, ""),
        Action("usr/lib/one", Do.LINK, "r", "", 0, "usr"),
        Action("usr", Do.LINK, "r", "", 0, "usr/lib/one"),
        Action("usr/lib/one", Do.LINK, "r", "", 0, "bin"),
        Action("bin", Do.EDIT, "r", "", 0),
        Action("", Do.DROP, "r", "", 0),
    ],
)
def test_plans_that_cannot_be_applied(tmp_path: Path, action: Action) -> None:
    with pytest.raises(UsageError, match="the plan"):
        replayed(tmp_path, action)


def test_a_record_lost_without_an_action(tmp_path: Path) -> None:
    """A plan of someone's own that drops a directory: what was in it goes unsaid."""
    layer = distribution("app", "1.0", {"app/data": b"d"})
    with pytest.raises(BrokenClosureError, match=r"app 1\.0 names .*/app/data, which is gone"):
        replayed(tmp_path, Action("usr/local/lib/python3.11/site-packages/app", Do.DROP, "r", "", 0), layer=layer)


_TWICE: Layer = {
    **distribution("ninja", "1.0", {"shared.py": b"s"}),
    **distribution("app", "1.0", {"shared.py": b"s"}),
}
_SHARED = f"{SITE}/shared.py"


@pytest.mark.parametrize("rule", ["toolchain.python", "toolchain.apt"])
def test_a_tool_cannot_take_a_file_that_a_distribution_names_too(tmp_path: Path, rule: str) -> None:
    with pytest.raises(BrokenClosureError, match=r"app 1\.0 names .*/shared\.py, which is gone"):
        replayed(tmp_path, Action(_SHARED, Do.DROP, rule, "", 0), layer=_TWICE)


def test_wishes_and_rules_about_kinds_can_take_files_of_distributions(tmp_path: Path) -> None:
    for rule in ("user.drop", "compile.headers"):
        replayed(tmp_path, Action(_SHARED, Do.DROP, rule, "", 0), layer=_TWICE)


def test_a_distribution_that_goes_names_nothing(tmp_path: Path) -> None:
    paths = [path for path in distribution("ninja", "1.0", {"n.py": b"n"}) if path.startswith(SITE)]
    actions = [Action(path, Do.DROP, "toolchain.python", "", 0) for path in paths]
    replayed(tmp_path, *actions, layer=distribution("ninja", "1.0", {"n.py": b"n"}))


def test_the_rules_leave_a_file_that_two_distributions_name(tmp_path: Path) -> None:
    _, tars, plan = built(tmp_path, _TWICE)
    assert _SHARED in stacked(tars)
    assert f"{SITE}/ninja-1.0.dist-info/METADATA" in {action.path for action in plan.actions}


_names = st.sampled_from(
    ["usr/include/a.h", "usr/lib/b", "usr/lib/c", "opt/d", "root/.cache/pip/e", "usr/share/doc/f/g", "h"]
)
_targets = st.sampled_from(["/usr/share/doc/f", "/root/.cache/pip", "usr", "."])
_whats: st.SearchStrategy[What] = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([b"x" * 5000, b"y" * 5000]),
    st.none(),
    _names.map(lambda name: Symlink(f"/{name}")),
    _targets.map(Symlink),
    st.builds(File, st.just(b"z" * 4096), mode=st.sampled_from([0o600, 0o755]), mtime=st.integers(0, 10**18)),
)


@examples(40)
@given(st.lists(st.dictionaries(_names, _whats, max_size=6), min_size=1, max_size=3), st.lists(_names, max_size=2))
def test_any_image_loses_what_the_plan_says_and_nothing_else(
    tmp_path: Path, layers: list[dict[str, What]], drop: list[str]
) -> None:
    _, tars, plan = built(tmp_path, *layers, drop=tuple(f"/{name}" for name in drop))
    before, after = original(tmp_path, *layers), stacked(tars)
    assert set(before) - set(after) == {action.path for action in plan.actions if action.do is Do.DROP}
    assert not set(after) - set(before)
    for path, facts in after.items():
        assert facts[-2] == before[path][-2], "content"
        assert (facts[0], facts[1], facts[4]) == (before[path][0], before[path][1], before[path][4])


@examples(40)
@given(st.lists(st.dictionaries(_names, _whats, max_size=6), min_size=1, max_size=3))
def test_no_link_is_left_dangling(tmp_path: Path, layers: list[dict[str, What]]) -> None:
    with facts_of(tmp_path, *layers) as (image, facts, _):
        plan = make_plan(image, facts, claim(facts), Wishes())
        with apply(plan, facts.files, {}) as slim:
            for path, node in slim.nodes.items():
                if node.inode.entry.kind is Kind.SYMLINK and facts.files.tree.resolve(path) is not None:
                    assert slim.tree.resolve(path) is not None, path
