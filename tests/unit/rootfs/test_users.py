from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.errors import NotFoundError
from slimgpu.rootfs.users import Identity, identify, identity_of

if TYPE_CHECKING:
    from pathlib import Path

_USERS = """root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
app:x:1000:1001:,,,:/home/app:/bin/sh
twin:x:1000:7::/twin:/bin/sh
1234:x:5:5::/five:/bin/sh
relative:x:9:9::home:/bin/sh
"""
_GROUPS = """root:x:0:
app:x:1001:
video:x:44:app,other
render:x:105:other,app
gpu:x:1001:app
"""


@pytest.mark.parametrize(
    ("user", "identity"),
    [
        ("", Identity(0, 0, (0,), "/root")),
        ("root", Identity(0, 0, (0,), "/root")),
        ("app", Identity(1000, 1001, (1001, 44, 105), "/home/app")),
        ("1000", Identity(1000, 1001, (1001, 44, 105), "/home/app")),
        ("app:", Identity(1000, 1001, (1001, 44, 105), "/home/app")),
        ("app:video", Identity(1000, 44, (44,), "/home/app")),
        ("app:77", Identity(1000, 77, (77,), "/home/app")),
        (":video", Identity(0, 44, (44,), "/root")),
        ("4242", Identity(4242, 0, (0,), "/")),
        ("4242:4343", Identity(4242, 4343, (4343,), "/")),
        ("1234", Identity(1234, 0, (0,), "/")),
        ("relative", Identity(9, 9, (9,), "/")),
    ],
)
def test_as_engines_look_it_up(user: str, identity: Identity) -> None:
    assert identify(user, _USERS, _GROUPS) == identity


@pytest.mark.parametrize("user", ["nobody", "99999999999", "-1", "2147483648", "٣"])
def test_names_without_an_entry(user: str) -> None:
    with pytest.raises(NotFoundError, match=r"the image has no user .* in /etc/passwd; give the user's number"):
        identify(user, _USERS, _GROUPS)
    with pytest.raises(NotFoundError, match=r"the image has no group .* in /etc/group; give the group's number"):
        identify(f"app:{user}", _USERS, _GROUPS)


def test_an_image_without_the_files(tmp_path: Path) -> None:
    assert identity_of(tmp_path, "") == Identity(0, 0, (0,), "/")
    assert identity_of(tmp_path, "7:8") == Identity(7, 8, (8,), "/")


@pytest.mark.parametrize("etc", ["{outside}", "../outside", "/proc/self/root{outside}"])
def test_links_do_not_lead_to_other_users(tmp_path: Path, etc: str) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    (outside / "passwd").write_text("app:x:13:13::/:/bin/sh\n")
    (root / "etc").symlink_to(etc.format(outside=outside))
    with pytest.raises(NotFoundError):
        identity_of(root, "app")


def test_links_inside_are_followed(tmp_path: Path) -> None:
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr/passwd").write_text("app:x:13:14::/:/bin/sh\n")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").symlink_to("/etc/../../usr/passwd")
    assert identity_of(tmp_path, "app").uid == 13


def test_files_of_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "etc/passwd").mkdir(parents=True)
    (tmp_path / "etc/group").symlink_to("group")
    assert identity_of(tmp_path, "").uid == 0


@given(st.text(), st.text(), st.text())
def test_anything_is_an_identity_or_none(user: str, passwd: str, group: str) -> None:
    try:
        identity = identify(user, passwd, group)
    except NotFoundError:
        return
    assert 0 <= identity.uid < 2**31
    assert identity.gid == identity.groups[0]
