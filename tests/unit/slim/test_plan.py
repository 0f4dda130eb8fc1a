from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.analysis.claims import claim
from slimgpu.errors import UsageError
from slimgpu.slim.build import check_source
from slimgpu.slim.plan import Action, Do, Held, Plan, Wishes, load_plan, make_plan
from slimgpu.slim.result import rule_totals
from slimgpu.slim.shrinks import GpuCode
from tests.support.trees import Symlink, debian, facts_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.trees import Layer, What

_LAYER: dict[str, What] = {
    **debian(
        {
            "make": {"usr/bin/make": b"m" * 900, "usr/share/make/x": b"x"},
            "bash": {"usr/bin/bash": b"b" * 400},
            "lib": {"usr/lib/one": b"same" * 2000, "usr/lib/two": b"same" * 2000},
        }
    ),
    "root/.cache/pip/a/b": b"p" * 3000,
    "root/.cache/pip/c": b"p" * 30,
    "usr/share/doc/bash/copyright": b"c",
    "usr/share/doc/bash/README": b"r",
    "opt/app/model.md": b"d" * 10,
    "opt/app/link": Symlink("model.md"),
    "empty": None,
}


def plan_of(
    tmp_path: Path, *layers: Layer, keep: tuple[str, ...] = (), drop: tuple[str, ...] = (), **more: Any
) -> Plan:
    with facts_of(tmp_path, *layers, **more) as (image, facts, _):
        return make_plan(image, facts, claim(facts), Wishes(keep, drop))


def done(plan: Plan, do: Do = Do.DROP) -> dict[str, str]:
    return {action.path: action.rule for action in plan.actions if action.do is do}


def test_the_plan_of_an_image(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, _LAYER)
    assert done(plan) == {
        "root/.cache": "slim.empty-directory",
        "root/.cache/pip": "slim.empty-directory",
        "root/.cache/pip/a": "slim.empty-directory",
        "root/.cache/pip/a/b": "cache.pip",
        "root/.cache/pip/c": "cache.pip",
        "usr/bin/make": "toolchain.apt",
        "usr/share/doc/bash/README": "docs.pages",
        "usr/share/make": "slim.empty-directory",
        "usr/share/make/x": "toolchain.apt",
        "var/lib/dpkg/info/make.list": "toolchain.apt",
        "var/lib/dpkg/info/make.md5sums": "toolchain.apt",
    }
    assert done(plan, Do.LINK) == {"usr/lib/two": "waste.duplicates"}
    assert done(plan, Do.EDIT) == {"var/lib/dpkg/status": "toolchain.apt"}
    assert plan.removed_packages == ("make:amd64",)
    assert all(action.reason for action in plan.actions)
    assert [action.path for action in plan.actions] == sorted(action.path for action in plan.actions)


def test_the_same_image_gives_the_same_plan(tmp_path: Path) -> None:
    plans = [plan_of(tmp_path, _LAYER, jobs=jobs) for jobs in (1, 2, 7)]
    assert len({replace(plan, image="").dump() for plan in plans}) == 1
    assert len({replace(plan, image="").digest for plan in plans}) == 1


def test_keeping_everything_leaves_nothing_to_do(tmp_path: Path) -> None:
    for keep in ("**", "*", "/**"):
        plan = plan_of(tmp_path, _LAYER, keep=(keep,), drop=("*.md",))
        assert (plan.actions, plan.removed_packages) == ((), ())


def test_keep_wins_over_drop_and_over_every_rule(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, _LAYER, keep=("/opt", "/root/.cache/pip/c", "two"), drop=("*.md", "/usr/bin/bash"))
    assert done(plan)["usr/bin/bash"] == "user.drop"
    assert not {"opt/app/model.md", "root/.cache/pip/c", "root/.cache/pip", "usr/lib/two"} & {
        a.path for a in plan.actions
    }
    assert "root/.cache/pip/a" in done(plan)


def test_a_package_of_which_something_is_kept_stays_in_the_database(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, _LAYER, keep=("/usr/bin/make",))
    assert plan.removed_packages == ()
    assert "var/lib/dpkg/status" not in {action.path for action in plan.actions}


def test_keeping_the_database_removes_no_package_from_it(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, _LAYER, keep=("/var/lib/dpkg/status",))
    assert plan.removed_packages == ()
    assert done(plan, Do.EDIT) == {}


def test_links_to_what_goes_go_too(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, _LAYER, drop=("*.md",))
    assert done(plan)["opt/app/link"] == "slim.dangling-link"
    assert "opt/app/model.md, which goes" in {a.path: a for a in plan.actions}["opt/app/link"].reason


def test_duplicates_of_what_the_user_drops_stay_files(tmp_path: Path) -> None:
    layer = debian({"lib": {f"usr/lib/{name}": b"same" * 2000 for name in ("one", "two", "zzz")}})
    plan = plan_of(tmp_path, layer, drop=("/usr/lib/one",))
    assert [(action.path, action.do) for action in plan.actions] == [("usr/lib/one", Do.DROP)]


def test_links_that_led_nowhere_stay(tmp_path: Path) -> None:
    layer: Layer = {"opt/dangling": Symlink("none"), "opt/loop": Symlink("loop"), "opt/x": b"x"}
    assert plan_of(tmp_path, layer, drop=("/opt/x",)).actions[0].path == "opt/x"
    assert len(plan_of(tmp_path, layer, drop=("/opt/x",)).actions) == 1


def test_links_to_directories_that_go_go_too(tmp_path: Path) -> None:
    layer: Layer = {
        "usr/share/doc/a/x": b"x",
        "opt/one/doc": Symlink("/usr/share/doc/a"),
        "opt/two": Symlink("one/doc"),
    }
    gone = done(plan_of(tmp_path, layer))
    assert {"usr/share/doc/a", "opt/one/doc", "opt/one", "opt/two"} <= set(gone)
    assert gone["opt/one/doc"] == "slim.dangling-link"


def test_directories_that_were_empty_stay(tmp_path: Path) -> None:
    layer: Layer = {"var/empty": None, "var/log/apt/history.log": b"x", "var/log/apt/old": None}
    assert set(done(plan_of(tmp_path, layer))) == {"var/log/apt/history.log"}


def test_directories_of_packages_that_stay_stay(tmp_path: Path) -> None:
    layer = {**debian({"apt": {"var/cache/apt/archives/x": b"x"}}), "var/cache/apt/archives/x": b"x"}
    plan = plan_of(tmp_path, layer)
    assert set(done(plan)) == {"var/cache/apt/archives/x"}


@pytest.mark.parametrize(
    ("path", "runtime"),
    [
        ("home/app", {}),
        ("root", {}),
        ("var", {}),
        ("usr/share/doc/work", {"WorkingDir": "/usr/share/doc/work"}),
        ("usr/share/doc/data", {"Volumes": {"/usr/share/doc/data": {}}}),
        ("usr/share/doc/me", {"Env": ["HOME=/usr/share/doc/me"]}),
    ],
)
def test_directories_that_programs_count_on_stay(tmp_path: Path, path: str, runtime: dict[str, Any]) -> None:
    layer: Layer = {"home/app/.cache/pip/x": b"x", "root/.cache/pip/x": b"y", "var/lib/apt/lists/x": b"z"}
    more: Layer = {f"usr/share/doc/{name}/x": b"x" for name in ("work", "data", "me", "other")}
    gone = done(plan_of(tmp_path, {**layer, **more}, runtime=runtime))
    assert path not in gone
    assert {"home/app/.cache", "root/.cache", "usr/share/doc/other"} <= set(gone)


def test_what_is_held_is_told(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, _LAYER, runtime={"Cmd": ["make"]})
    assert plan.held == (Held("toolchain.apt", "package make: the image starts it", 1, 900),)


def test_totals(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, _LAYER)
    totals = list(rule_totals(plan))
    assert sum(total.bytes for total in totals) == sum(action.bytes for action in plan.actions)
    assert sum(total.files for total in totals) == len(plan.actions)
    assert totals == sorted(totals, key=lambda total: -total.bytes)


_text = st.text(max_size=20) | st.binary(max_size=9).map(lambda b: b.decode("utf-8", "surrogateescape"))
_actions = st.builds(
    Action, path=_text, do=st.sampled_from(Do), rule=st.text(), reason=_text, bytes=st.integers(0, 2**50), target=_text
)
_plans = st.builds(
    Plan,
    schema=st.just("slimgpu.plan.v1"),
    image=st.text(),
    source=st.text(),
    actions=st.lists(_actions, max_size=4).map(tuple),
    held=st.lists(st.builds(Held, st.text(), _text, st.integers(), st.integers()), max_size=2).map(tuple),
    removed_packages=st.lists(st.text(), max_size=2).map(tuple),
)


@given(_plans)
def test_a_plan_survives_being_printed(plan: Plan) -> None:
    assert load_plan(plan.dump(), "it") == plan
    assert load_plan(plan.dump(), "it").digest == plan.digest


@given(st.binary(max_size=200))
def test_random_bytes_are_no_plan(data: bytes) -> None:
    with pytest.raises(UsageError, match="it is not a plan"):
        load_plan(data, "it")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(["schema", "image", "source", "actions", "held", "removed_packages"]), _json)
def test_a_plan_with_one_wrong_field(field: str, value: Any) -> None:
    good = Plan("slimgpu.plan.v1", "i", "s", (Action("p", Do.DROP, "r", "why", 1),), (), (), GpuCode(("sm_90",)))
    document = {**json.loads(good.dump()), field: value}
    try:
        load_plan(json.dumps(document).encode(), "it")
    except UsageError as error:
        message = str(error)
        assert message.startswith("it ")


def test_a_plan_of_another_version() -> None:
    plan = Plan("slimgpu.plan.v2", "i", "s", (), (), (), GpuCode())
    with pytest.raises(
        UsageError, match=r"it has the schema 'slimgpu\.plan\.v2', this slimgpu reads slimgpu\.plan\.v1"
    ):
        load_plan(plan.dump(), "it")


def test_a_plan_fits_one_image_only(tmp_path: Path) -> None:
    with facts_of(tmp_path, _LAYER) as (image, facts, _):
        plan = make_plan(image, facts, claim(facts), Wishes())
        check_source(plan, image)
    with facts_of(tmp_path, {"x": b"x"}) as (other, _, _), pytest.raises(UsageError, match="make a new plan"):
        check_source(plan, other)
