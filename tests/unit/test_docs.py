"""Documents say what the code does."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from slimgpu.cli.main import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "examples" / "README.md"])


def test_generated_documents_are_current() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def commands_shown() -> list[tuple[str, str]]:
    """Every ``$ slimgpu ...`` line of the documents."""
    shown = {page.name: re.findall(r"^\$ (slimgpu .*)$", page.read_text(), flags=re.MULTILINE) for page in PAGES}
    return [(name, line) for name, lines in shown.items() for line in lines]


@pytest.mark.parametrize(("page", "line"), commands_shown())
def test_every_command_shown_exists_with_its_options(page: str, line: str) -> None:
    del page
    words = shlex.split(line.partition(" | ")[0].partition(" > ")[0], comments=True)[1:]
    words = words[: words.index("--")] if "--" in words else words  # what follows is another program's
    names = iter([word for word in words if not word.startswith("-")])
    command: click.Command = cli
    while isinstance(command, click.Group) and (name := next(names, None)) is not None:
        inner = command.get_command(click.Context(command), name)
        assert inner is not None, f"no command {name}"
        command = inner
    if command is cli:
        return
    options = [option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)]
    used = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert used <= {*options, "--help", "-h"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_list_of_commands_is_true() -> None:
    for name, summary in COMMANDS.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.name == name
        assert summary.endswith(".")
