"""What package managers leave behind: caches, package lists, logs of installations."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from slimgpu.analysis.rules.rule import Effect, Match, Rule, below

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.analysis.facts import Facts

CACHES: Final = "caches"
_ENVIRONMENT: Final = "pyvenv.cfg"
"""Marks a virtual environment, which is no cache wherever it lies: poetry keeps its own below ``.cache``."""


def _find(directories: tuple[str, ...], evidence: str, facts: Facts) -> Iterator[Match]:
    paths = [path for path, _ in below(facts, directories)]
    environments = tuple(path.removesuffix(_ENVIRONMENT) for path in paths if path.endswith(_ENVIRONMENT))
    for path in paths:
        if not path.startswith(environments):
            yield Match(path, evidence)


def _uv(facts: Facts) -> Iterator[Match]:
    """What uv unpacked stays where the image starts something through uv: it runs from there."""
    started = {word.rpartition("/")[2] for word in facts.config.command_words}
    if not started & {"uv", "uvx"}:
        yield from _find(_of_users(".cache/uv"), "cache of uv", facts)


def _cache(rule: str, title: str, why: str, *directories: str) -> Rule:
    return Rule(rule, CACHES, title, why, Effect.DROP, partial(_find, directories, title))


def _of_users(*names: str) -> tuple[str, ...]:
    return tuple(f"{home}/{name}" for home in ("root", "home/*") for name in names)


RULES: Final = (
    _cache(
        "cache.apt-lists",
        "package lists of apt",
        "apt-get update fetches them again; nothing reads them at run time.",
        "var/lib/apt/lists",
    ),
    _cache(
        "cache.apt",
        "downloaded packages and caches of apt",
        "apt makes them again when it next runs.",
        "var/cache/apt",
        "var/cache/debconf/config.dat-old",
        "var/cache/debconf/templates.dat-old",
        "var/lib/dpkg/status-old",
        "var/lib/dpkg/available-old",
    ),
    _cache(
        "cache.pip",
        "download and wheel cache of pip",
        "pip only reads it when it installs; build with --no-cache-dir or a cache mount.",
        *_of_users(".cache/pip"),
    ),
    _cache(
        "cache.python-tools",
        "caches of poetry, pdm, hatch and pre-commit",
        "these tools only read them when they install; virtual environments below them stay.",
        *_of_users(".cache/pypoetry/cache", ".cache/pypoetry/artifacts", ".cache/pdm", ".cache/hatch"),
        *_of_users(".cache/pre-commit"),
    ),
    Rule(
        "cache.uv",
        CACHES,
        "cache of uv",
        "uv only reads it when it installs; it stays when the image starts something through uv or uvx.",
        Effect.DROP,
        _uv,
    ),
    _cache(
        "cache.conda",
        "package cache of conda",
        "conda only reads it when it installs; conda clean -afy empties it.",
        *(f"{prefix}/pkgs" for prefix in ("opt/conda", "opt/miniconda3", "opt/miniforge3", "root/miniconda3")),
    ),
    _cache(
        "cache.build-tools",
        "caches of npm, yarn, cargo, go, ccache and bazel",
        "these tools only read them when they build.",
        *_of_users(".npm/_cacache", ".cache/yarn", ".cargo/registry", ".cache/go-build", ".ccache", ".cache/ccache"),
        *_of_users(".cache/bazel", "go/pkg/mod"),
    ),
    _cache(
        "cache.rpm",
        "caches of dnf, yum, zypper and apk",
        "these tools fetch them again when they next run.",
        "var/cache/dnf",
        "var/cache/yum",
        "var/cache/zypp",
        "var/cache/apk",
    ),
    Rule(
        "cache.logs",
        CACHES,
        "logs of installations",
        "they tell how the image was built, and nothing reads them.",
        Effect.DROP,
        partial(
            _find,
            (
                "var/log/apt",
                "var/log/dpkg.log",
                "var/log/alternatives.log",
                "var/log/bootstrap.log",
                "var/log/fontconfig.log",
                "var/log/dnf.log",
                "var/log/yum.log",
            ),
            "log of an installation",
        ),
    ),
)
