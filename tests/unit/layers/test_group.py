from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.analysis.facts import Owner
from slimgpu.layers import group
from slimgpu.layers.group import LayerPlan, group_layers
from slimgpu.rootfs.entry import Entry, Kind
from slimgpu.rootfs.filesystem import FileSystem
from slimgpu.rootfs.tree import merge
from tests.support.fuzz import examples

if TYPE_CHECKING:
    from collections.abc import Mapping

MB = 1_000_000


def files_of(sizes: Mapping[str, int], links: Mapping[str, str] | None = None) -> FileSystem:
    """A file system of these files, never opened: grouping looks at no content."""
    entries = [Entry(path, Kind.FILE, 0o644, size=size) for path, size in sizes.items()]
    entries += [Entry(path, Kind.HARDLINK, 0o644, link=target) for path, target in (links or {}).items()]
    return FileSystem(merge([entries], ["it"]), [], [entries])


def owners(names: Mapping[str, str], kind: str = "python") -> dict[str, Owner]:
    return {path: Owner(kind, name, "1.0") for path, name in names.items()}


def by_name(plans: list[LayerPlan]) -> dict[str, tuple[str, ...]]:
    assert len({plan.name for plan in plans}) == len(plans)
    return {plan.name: plan.paths for plan in plans}


def test_origins_from_what_changes_least_to_what_changes_most() -> None:
    files = files_of(
        dict.fromkeys(["app/main.py", "etc/os", "usr/lib/libcublas.so", "s/numpy.py", "s/torch.py", "b"], 5)
    )
    owned = {
        **owners({"s/numpy.py": "numpy", "s/torch.py": "torch"}),
        **owners({"usr/lib/libcublas.so": "libcublas-12-4"}, "apt"),
    }
    assert by_name(group_layers(files, owned)) == {
        "base": ("etc/os",),
        "cuda": ("usr/lib/libcublas.so",),
        "framework": ("s/torch.py",),
        "dependencies": ("s/numpy.py",),
        "application": ("app/main.py", "b"),
    }


def test_usr_local_without_an_owner_is_the_applications() -> None:
    plans = by_name(group_layers(files_of({"usr/local/bin/x": 1, "usr/bin/y": 1}), {}))
    assert plans == {"base": ("usr/bin/y",), "application": ("usr/local/bin/x",)}


def test_the_applications_layer_is_there_even_when_empty() -> None:
    assert by_name(group_layers(files_of({}), {})) == {"application": ()}
    assert list(by_name(group_layers(files_of({"usr/x": 1}), {}))) == ["base", "application"]


def test_large_packages_have_layers_of_their_own_the_largest_first() -> None:
    sizes = {"s/a": 70 * MB, "s/b": 90 * MB, "s/c": 10 * MB, "s/d": 64 * MB, "s/e": 64 * MB - 1}
    plans = group_layers(files_of(sizes), owners({path: f"dist-{path[-1]}" for path in sizes}))
    assert [plan.name for plan in plans] == [
        "dependencies dist-b",
        "dependencies dist-a",
        "dependencies dist-d",
        "dependencies",
        "application",
    ]
    assert plans[3].paths == ("s/c", "s/e")


def test_the_same_package_is_cut_the_same_in_every_image() -> None:
    package = {f"s/torch/f{n:03}": (n % 7 + 1) * 10 * MB for n in range(40)}
    owned = owners(dict.fromkeys(package, "torch"))
    alone = by_name(group_layers(files_of(package), owned))
    more = {"a/first": 300 * MB, "s/other/x": 100 * MB, "s/torch/zz": 5, "z/last": 5}
    among = by_name(
        group_layers(
            files_of({**more, **package}), {**owned, **owners({"s/other/x": "other", "a/first": "torchaudio"})}
        )
    )
    names = [name for name in alone if name.startswith("framework torch")]
    assert len(names) > 3
    for name in names:
        assert among[name] == alone[name]


def test_layers_are_closed_before_they_get_too_large() -> None:
    sizes = {"a": 200 * MB, "b": 100 * MB, "c": 300 * MB, "d": 10 * MB, "e": 246 * MB, "f": 1}
    plans = group_layers(files_of(sizes), {})
    assert [plan.paths for plan in plans] == [("a",), ("b",), ("c",), ("d", "e"), ("f",)]
    assert [plan.name for plan in plans] == [f"application {number}/5" for number in range(1, 6)]


def test_there_are_never_too_many_layers() -> None:
    packages = {f"s/p{n:03}/f": 70 * MB for n in range(150)}
    sizes = {**packages, "s/large/a": 150 * MB, "s/large/b": 300 * MB, "s/large/c": 1 * MB}
    owned = owners({path: path.split("/")[1] for path in sizes})
    plans = by_name(group_layers(files_of(sizes), owned))
    assert len(plans) <= group.MAX_LAYERS
    assert plans["dependencies large"] == ("s/large/a", "s/large/b", "s/large/c"), "the sizes were doubled once"
    assert plans["dependencies 1/22"] == tuple(packages)[:7]
    huge = {f"a/{n:05}": 300 * MB for n in range(20_000)}
    assert len(group_layers(files_of(huge), {})) <= group.MAX_LAYERS


def test_as_many_layers_as_may_be() -> None:
    sizes = {f"s/p{n:03}/f": 64 * MB for n in range(group.MAX_LAYERS - 1)}
    owned = owners({path: path.split("/")[1] for path in sizes})
    assert len(group_layers(files_of(sizes), owned)) == group.MAX_LAYERS
    sizes["s/one/f"] = 64 * MB
    assert len(group_layers(files_of(sizes), {**owned, **owners({"s/one/f": "one"})})) < group.MAX_LAYERS


def test_hard_links_stay_with_their_file() -> None:
    sizes = {"app/a": 200 * MB, "app/b": 100 * MB, "usr/lib/x": 5}
    files = files_of(sizes, {"app/z": "app/a", "opt/x": "usr/lib/x", "usr/lib/y": "usr/lib/x"})
    plans = group_layers(files, owners({"usr/lib/x": "numpy"}))
    for paths in (plan.paths for plan in plans):
        assert ("app/a" in paths) == ("app/z" in paths)
        assert ("usr/lib/x" in paths) == ("opt/x" in paths) == ("usr/lib/y" in paths)
    assert sorted(path for plan in plans for path in plan.paths) == sorted({*sizes, "app/z", "opt/x", "usr/lib/y"})


_path = st.sampled_from(["usr/a", "usr/b", "opt/c", "app/d", "s/e", "s/f", "s/g", "etc/h"])
_owner = st.builds(
    Owner, st.sampled_from(["apt", "python"]), st.sampled_from(["torch", "nvidia-x", "m", "n"]), st.just("1")
)


@examples(150)
@given(
    st.dictionaries(_path, st.integers(0, 400 * MB), max_size=8),
    st.dictionaries(_path, _owner),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 7)), max_size=4),
)
def test_every_path_is_in_one_layer(
    sizes: dict[str, int], owned: dict[str, Owner], links: list[tuple[int, int]]
) -> None:
    present = sorted(sizes)
    named = {f"{'usr' if n % 2 else 'z'}/link{n}": present[at % len(present)] for n, at in links if present}
    files = files_of(sizes, named)
    plans = group_layers(files, owned)
    assert sorted(p for plan in plans for p in plan.paths) == sorted({*sizes, *named})
    assert plans[-1].name.startswith("application")
    layer_of = {path: number for number, plan in enumerate(plans) for path in plan.paths}
    for link, target in named.items():
        assert layer_of[link] == layer_of[target]
    for plan in plans:
        inodes = {id(files.nodes[path].inode): files.nodes[path].inode.entry.size for path in plan.paths}
        assert len(inodes) <= 1 or sum(inodes.values()) <= group.CUT


@pytest.mark.parametrize("name", ["base", "cuda", "framework", "dependencies", "application"])
def test_origins_have_names(name: str) -> None:
    assert name in [origin.label for origin in group.Origin]
