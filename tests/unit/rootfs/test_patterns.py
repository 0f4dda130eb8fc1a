from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from slimgpu.errors import UsageError
from slimgpu.rootfs.patterns import Patterns

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("lines", "path", "matches"),
    [
        ([], "a", False),
        (["**"], "a/b/c", True),
        (["*"], "a/b/c", True),
        (["*.md"], "a/b/c.md", True),
        (["/usr/share/doc"], "usr/share/doc/x/y", True),
        (["/usr/share/doc/**"], "usr/share/doc", False),
        (["/share"], "usr/share", False),
        (["share/"], "usr/share/x", True),
        (["*.so", "!libkeep.so"], "lib/libkeep.so", False),
        (["*.so", "!libkeep.so"], "lib/libgo.so", True),
        (["lib*.so.[0-9]"], "lib/libc.so.6", True),
        (["/a/**/z"], "a/b/c/z", True),
        (["#comment"], "#comment", False),
        (["\\#file"], "#file", True),
        (["a b"], "x/a b", True),
    ],
)
def test_matching(lines: list[str], path: str, matches: bool) -> None:  # noqa: FBT001
    assert Patterns(lines).match(path) is matches


def test_git_agrees(tmp_path: Path) -> None:
    lines = ["*.md", "/usr/share/*", "!/usr/share/keep", "b?c", "deep/**/x", "dir/", "[ab]z", "**/cache"]
    paths = ["a.md", "usr/share/x", "usr/share/keep", "usr/share/y/z", "bxc", "q/bxc", "deep/1/2/x", "deep/x", "dir/f"]
    paths += ["az", "cz", "1/2/cache/f", "x/usr/share/x", "bc", "usr/x"]
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("\n".join(lines) + "\n")
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")
    run = subprocess.run(
        ["git", "check-ignore", "--no-index", *paths], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    ours = Patterns(lines)
    assert [path for path in paths if ours.match(path)] == run.stdout.split()


@pytest.mark.parametrize("line", ["!", "/", "a/***/[", "[", "\\"])
def test_malformed_patterns_are_usage_errors_or_harmless(line: str) -> None:
    try:
        Patterns([line]).match("a/b")
    except UsageError as error:
        message = str(error)
        assert "pattern" in message


def test_what_git_calls_malformed() -> None:
    with pytest.raises(UsageError, match=r"write patterns as in \.gitignore"):
        Patterns(["!"])
