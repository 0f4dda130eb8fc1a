from __future__ import annotations

from typing import TYPE_CHECKING

from slimgpu.rootfs.patterns import Patterns
from slimgpu.slim.drops import following
from tests.support.trees import Symlink, debian, facts_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.trees import Layer


def followed(tmp_path: Path, layer: Layer, *gone: str, keep: tuple[str, ...] = ()) -> dict[str, str]:
    with facts_of(tmp_path, layer) as (_, facts, _):
        found = list(following(facts, gone, Patterns(keep)))
    assert len(dict(found)) == len(found)
    return dict(found)


def test_links_and_directories_that_follow(tmp_path: Path) -> None:
    layer: Layer = {"opt/a/x": b"x", "opt/b/link": Symlink("../a/x"), "opt/c/link": Symlink("/opt/b"), "opt/d": None}
    assert followed(tmp_path, layer, "opt/a/x") == {
        "opt/a": "",
        "opt/b": "",
        "opt/b/link": "opt/a/x",
        "opt/c": "",
        "opt/c/link": "opt/b",
    }
    assert set(followed(tmp_path, layer, "opt/a/x", keep=("/opt/b",))) == {"opt/a"}


def test_links_that_are_left_out_of_the_way_stay(tmp_path: Path) -> None:
    layer: Layer = {"opt/a": b"x", "opt/b": b"x", "opt/nowhere": Symlink("none"), "opt/loop": Symlink("loop")}
    assert followed(tmp_path, {**layer, "opt/fine": Symlink("b")}, "opt/a") == {}


def test_a_link_over_a_link_that_goes(tmp_path: Path) -> None:
    layer: Layer = {"opt/a/x": b"x", "opt/over": Symlink("link/x"), "opt/link": Symlink("a")}
    assert followed(tmp_path, layer, "opt/link") == {"opt/over": "opt/link"}


def test_directories_of_packages_stay_as_long_as_their_records(tmp_path: Path) -> None:
    layer: Layer = {**debian({"tool": {"opt/tool/x": b"x"}}), "opt/tool/x": b"x"}
    records = [f"var/lib/dpkg/info/tool.{kind}" for kind in ("list", "md5sums")]
    assert followed(tmp_path, layer, "opt/tool/x") == {}
    assert followed(tmp_path, layer, "opt/tool/x", *records) == {"opt/tool": "", "var/lib/dpkg/info": ""}


def test_a_chain_that_goes_link_by_link(tmp_path: Path) -> None:
    """Each directory holds nothing but a link to the one before."""
    count = 3000
    chain: Layer = {f"opt/{n:04}/link": Symlink(f"/opt/{n - 1:04}") for n in range(1, count)}
    found = followed(tmp_path, {"opt/0000/x": b"x", **chain}, "opt/0000/x")
    assert len(found) == 2 * count - 1
    assert found[f"opt/{count - 1}/link"] == f"opt/{count - 2}"
    assert "opt" not in found
