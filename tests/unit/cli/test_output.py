from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from slimgpu import __version__
from slimgpu.cli.main import main
from tests.support.trees import Symlink, debian, tar_of, write_layout

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.trees import What

_LAYER: dict[str, What] = {
    **debian({"make": {"usr/bin/make": b"m" * 9000}, "base": {"usr/bin/base": b"b" * 500}}),
    "root/.cache/pip/\udcff\udcfe": b"c" * 5000,
    "opt/\udcff\n\x1b[31m": Symlink("/root/.cache/pip/\udcff\udcfe"),
    "usr/lib/a": b"same" * 2000,
    "usr/lib/b": b"same" * 2000,
}
_PROGRAM = """
import sys
from slimgpu.cli.main import main
code = main(sys.argv[1:])
print(code, *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.fixture
def image(tmp_path: Path) -> str:
    return write_layout(tmp_path / "image", [tar_of(_LAYER)], {"Labels": {"a": "b"}})


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "slimgpu", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"], ["frobnicate"], []])
def test_the_help_imports_nothing_heavy(arguments: list[str]) -> None:
    called = [sys.executable, "-c", _PROGRAM, *arguments]
    lines = subprocess.run(called, capture_output=True, text=True, check=True).stderr.splitlines()
    modules = set(lines[-1].split()[1:])
    assert "click" in modules
    heavy = {"pydantic", "rich", "requests", "docker", "torch", "yaml", "zstandard", "elftools", "isal", "numpy"}
    assert not modules & heavy


def test_analyzing_a_layout_needs_no_client_of_engines_or_registries(image: str) -> None:
    called = [sys.executable, "-c", _PROGRAM, "analyze", image, "--json"]
    lines = subprocess.run(called, capture_output=True, text=True, check=True).stderr.splitlines()
    assert lines[-1].startswith("0 ")
    assert not set(lines[-1].split()) & {"requests", "docker", "torch", "jinja2", "pynvml"}


def test_the_help_names_every_command_and_the_version() -> None:
    text = run("--help").stdout
    for word in ("analyze", "build", "oci-archive:", "SLIMGPU_<COMMAND>_<OPTION>", "130 interrupted"):
        assert word in " ".join(text.split())
    assert run("--version").stdout.split()[-1] == __version__


def test_json_goes_to_stdout_and_nothing_else(image: str, tmp_path: Path) -> None:
    analysis = run("analyze", image, "--json")
    assert (analysis.returncode, analysis.stderr) == (0, "")
    assert json.loads(analysis.stdout)["schema"] == "slimgpu.analysis.v1"
    dry = run("build", image, "--dry-run", "--json")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert json.loads(dry.stdout)["schema"] == "slimgpu.plan.v1"
    built = run("build", image, "--to", f"oci:{tmp_path}/slim", "--json")
    assert (built.returncode, built.stderr) == (0, "")
    assert json.loads(built.stdout)["schema"] == "slimgpu.build.v1"


def test_a_build_says_its_summary_on_stderr_unless_quiet(image: str, tmp_path: Path) -> None:
    loud = run("build", image, "--to", f"oci:{tmp_path}/loud")
    assert loud.returncode == 0
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", loud.stdout)
    assert "toolchain.apt" in loud.stderr
    quiet = run("-q", "build", image, "--to", f"oci:{tmp_path}/quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, loud.stdout, "")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("arguments", [["analyze"], ["analyze", "--all"], ["build", "--dry-run"]])
def test_names_that_are_no_text_are_shown_all_the_same(image: str, encoding: str, arguments: list[str]) -> None:
    shown = run(*arguments, image, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert shown.returncode == 0, shown.stderr
    assert "\x1b" not in shown.stdout, "a name in the image speaks to the terminal"
    assert "cache.pip" in shown.stdout


def test_no_colour_off_a_terminal_and_lines_of_at_most_100_columns(image: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    called = [sys.executable, "-m", "slimgpu", "analyze", image]
    text = subprocess.run(called, env=environment, capture_output=True, text=True, check=True).stdout
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_a_reader_that_goes_away_ends_it_quietly(image: str) -> None:
    command = f"{sys.executable} -m slimgpu analyze {image} --json | true; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in ended.stderr
    assert "Exception" not in ended.stderr
    assert ended.returncode in (0, 1)


def test_a_second_look_reads_the_cache(image: str, tmp_path: Path, cache: Path) -> None:
    first = run("analyze", image, "--json")
    for blob in (tmp_path / "image/blobs/sha256").iterdir():
        if blob.read_bytes()[:2] == b"\x1f\x8b":
            blob.write_bytes(bytes(blob.stat().st_size))
    assert run("analyze", image, "--json").stdout == first.stdout
    assert list(cache.glob("layers/*.tar"))


def test_workers_make_no_difference(image: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = []
    for jobs in ("1", "2", "7"):
        assert main(["build", image, "--to", f"oci:{tmp_path}/{jobs}", "-j", jobs, "--json"]) == 0
        texts.append(capfd.readouterr().out)
    assert len(set(texts)) == 1


def test_a_build_leaves_nothing_beside_its_destination(image: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("oci:{}/a", "oci:{}/b:v1", "oci-archive:{}/c.tar", "docker-archive:{}/d.tar:name:v1"):
        assert main(["-q", "build", image, "--to", name.format(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b", "c.tar", "d.tar"]
    assert sorted(path.name for path in (tmp_path / "out/a").iterdir()) == ["blobs", "index.json", "oci-layout"]


def test_what_was_built_can_be_built_again_and_nothing_more_goes(
    image: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["-q", "build", image, "--to", f"oci:{tmp_path}/slim"]) == 0
    capfd.readouterr()
    assert main(["build", f"oci:{tmp_path}/slim", "--dry-run", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["actions"] == []
