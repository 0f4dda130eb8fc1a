from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from slimgpu.cli.lazy import options_of
from slimgpu.cli.main import COMMANDS, cli, main
from tests.support.trees import tar_of, write_layout

if TYPE_CHECKING:
    from pathlib import Path

_LAYER = {"opt/a.md": b"x" * 10, "opt/b.txt": b"y" * 10, "opt/c.so": b"z" * 10, "var/lib/apt/lists/l": b"y" * 5000}


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return write_layout(tmp_path / "image", [tar_of(_LAYER)])


def plan(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    assert main([*arguments]) == 0
    document: dict[str, Any] = json.loads(capfd.readouterr().out)
    return {action["path"]: action["rule"] for action in document["actions"]}


def media_types(root: Path) -> set[str]:
    index = json.loads((root / "index.json").read_text())
    manifest = json.loads((root / "blobs/sha256" / index["manifests"][0]["digest"][7:]).read_text())
    return {layer["mediaType"].rpartition("+")[2] for layer in manifest["layers"]}


@pytest.mark.parametrize("text", ["build: {drop: ['*.md', '*.txt']}", 'build:\n  drop:\n    - "*.md"\n    - "*.txt"'])
def test_a_list_in_the_file(image: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str) -> None:
    (tmp_path / "slimgpu.yaml").write_text(text)
    found = plan(capfd, "build", image, "--dry-run", "--json")
    assert [path for path, rule in found.items() if rule == "user.drop"] == ["opt/a.md", "opt/b.txt"]


def test_one_pattern_in_the_file_is_not_taken_letter_by_letter(
    image: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slimgpu.yaml").write_text("build: {drop: '*.md', dry-run: true, json: true}")
    found = plan(capfd, "build", image)
    assert [path for path, rule in found.items() if rule == "user.drop"] == ["opt/a.md"]


def test_the_command_line_wins_over_the_variable_and_that_over_the_file(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slimgpu.yaml").write_text("build: {format: gzip}")
    assert main(["build", image, "--to", f"oci:{tmp_path}/file"]) == 0
    assert media_types(tmp_path / "file") == {"gzip"}
    monkeypatch.setenv("SLIMGPU_BUILD_FORMAT", "zstd")
    assert main(["build", image, "--to", f"oci:{tmp_path}/variable"]) == 0
    assert media_types(tmp_path / "variable") == {"zstd"}
    assert main(["build", image, "--to", f"oci:{tmp_path}/line", "--format", "gzip"]) == 0
    assert media_types(tmp_path / "line") == {"gzip"}


def test_the_destination_from_a_variable(image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMGPU_BUILD_TO", f"oci:{tmp_path}/slim")
    assert main(["build", image]) == 0
    assert (tmp_path / "slim/index.json").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_the_variable_that_the_help_promises(command: str) -> None:
    found = cli.get_command(None, command)  # type: ignore[arg-type]
    assert found is not None
    for name, option in options_of(found).items():
        assert option.envvar == f"SLIMGPU_{command}_{name}".upper()
        assert f"--{name.replace('_', '-')}" in option.opts


@pytest.mark.parametrize("text", ["", "{}", "# nothing\n", "build: {}\nanalyze: {}"])
def test_files_that_say_nothing(image: str, tmp_path: Path, text: str) -> None:
    (tmp_path / "slimgpu.yaml").write_text(text)
    assert main(["build", image, "--dry-run"]) == 0


def test_the_help_answers_in_spite_of_a_wrong_file(tmp_path: Path, slimgpu: list[str]) -> None:
    (tmp_path / "slimgpu.yaml").write_text("nonsense")
    for arguments in (["--help"], ["--version"], ["build", "--help"]):
        run = subprocess.run([*slimgpu, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        if arguments[0] != "build":
            assert run.returncode == 0
        assert "Traceback" not in run.stderr
