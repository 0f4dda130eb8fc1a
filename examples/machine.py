"""What this machine has that assembling needs: tools, and the way to its package indexes.

pip's settings, a CA file and apt's proxy are mounted into each build step as build secrets, never copied into a layer.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

SUITE = "bookworm"
PIP_CONF, CA_FILE, APT_CONF, APT_SOURCES = (
    "/etc/pip.conf",
    "/run/ca.crt",
    "/etc/apt/apt.conf.d/99host",
    "/etc/apt/sources.list",
)
PIP_KEYS = ("index-url", "extra-index-url", "find-links", "no-index", "proxy", "trusted-host", "default-timeout")
SPARE_DIRECTORIES = ("/mnt", "/media", "/srv")  # empty in Debian: mounting there leaves no trace in a layer


class Failed(click.ClickException):
    """A step failed; what it said is on stderr."""


class Missing(click.ClickException):
    """Something that assembling needs is not on this machine."""

    exit_code = 5


def run(*command: str | Path, **environment: str) -> None:
    """Run a command with its output on stderr."""
    words = [str(word) for word in command]
    try:
        subprocess.run(words, check=True, stdout=sys.stderr, env=os.environ | environment)
    except subprocess.CalledProcessError as error:
        raise Failed(f"{words[0]} ended with status {error.returncode}; what it said is above.") from error


def answer(*command: str) -> str:
    """A command's stdout, or nothing if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def succeeds(*command: str) -> bool:
    """Whether a command, whose output nobody needs, ends well."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def require(*tools: str) -> None:
    """Make sure that these commands are here; each is in the Debian package of the same name."""
    if os.geteuid() != 0:
        raise Missing("Assembling an image needs root: run this with sudo, or with --docker.")
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise Missing(f"{' and '.join(missing)} not found, and this is not a Debian that could install it.")
    try:
        run("apt-get", "update")
        run("apt-get", "install", "--yes", *missing, DEBIAN_FRONTEND="noninteractive")
    except Failed as error:
        raise Missing(f"{' and '.join(missing)} not found, and apt-get could not install it.") from error


@dataclass
class Handover:
    """What build steps are given of this machine: files by the path where a step sees them, and directories."""

    files: dict[str, str] = field(default_factory=dict)
    directories: dict[str, str] = field(default_factory=dict)

    @property
    def mounts(self) -> str:
        """The options that a RUN instruction gets."""
        options = (f"--mount=type=secret,id=host{n},target={path},mode=0444" for n, path in enumerate(self.files))
        return "".join(f"{option} " for option in options)

    def arguments(self, scratch: Path) -> list[str]:
        """The build command's options, with the files written to `scratch`."""
        arguments = []
        for number, text in enumerate(self.files.values()):
            source = scratch / f"host{number}"
            source.write_text(text)
            arguments += ["--secret", f"id=host{number},src={source}"]
        for source_directory, target in self.directories.items():
            arguments += ["--volume", f"{source_directory}:{target}:ro"]
        return arguments


def pip_settings() -> dict[str, str]:
    """What pip is told by its files and, with the last word, by the environment."""
    lines = answer(sys.executable, "-m", "pip", "config", "list").splitlines()
    pairs = [line.partition("=") for line in sorted(lines, key=lambda line: line.startswith(":env:"))]
    return {name.rpartition(".")[2]: str(ast.literal_eval(value)) for name, _, value in pairs}


def mounted(setting: str, directories: dict[str, str], spare: Sequence[str]) -> str:
    """A pip setting with each local directory of wheels replaced by the place where a build step sees it.

    Local indexes are left out: their links lead to other directories.
    """
    words = []
    for word in setting.split():
        if not word.startswith(("/", "file:")):
            words.append(word)
        elif Path(word).is_dir() and (word in directories or len(directories) < len(spare)):
            words.append(directories.setdefault(word, spare[len(directories) % len(spare)]))
    return " ".join(words)


def handover(mirror: str | None, spare: Sequence[str]) -> Handover:
    """What this machine has for pip, TLS and apt that a plain one has not."""
    given = Handover()
    settings = pip_settings()
    pip = {key: mounted(settings[key], given.directories, spare) for key in PIP_KEYS if key in settings}
    authority = settings.get("cert") or os.environ.get("SSL_CERT_FILE")
    if authority and Path(authority).is_file():
        pip["cert"] = CA_FILE
        given.files[CA_FILE] = Path(authority).read_text()
    if any(pip.values()):
        given.files[PIP_CONF] = "[global]\n" + "".join(f"{key} = {value}\n" for key, value in pip.items() if value)
    apt = re.findall(r"^Acquire::(?:https?::.*|Check-.*)$", answer("apt-config", "dump"), re.MULTILINE)
    if apt:
        given.files[APT_CONF] = "\n".join(line for line in apt if '""' not in line) + "\n"
    if mirror:
        given.files[APT_SOURCES] = f"deb {mirror} {SUITE} main\n"
    return given
