"""Manual pages, documentation and translations."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from slimgpu.analysis.rules.rule import Effect, Match, Rule, below
from slimgpu.rootfs.entry import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.analysis.facts import Facts

_GROUP: Final = "documentation"
_LEGAL: Final = re.compile(r"copyright|licen[sc]es?|notice|copying|authors", re.IGNORECASE)
_USED: Final = re.compile(r"\.sql\b|/examples?/|/sql/|/schema")
"""What set-up scripts read at run time although it lies with the documentation."""
_LOCALE: Final = "usr/share/locale"
_DIRECTORIES: Final = (
    *(f"usr/share/{name}" for name in ("man", "info", "doc", "doc-base", "gtk-doc", "lintian", "linda")),
    *(f"usr/local/{name}" for name in ("share/man", "share/doc", "share/info", "man")),
)


def _pages(facts: Facts) -> Iterator[Match]:
    """Everything there but licences, which have to go along with what they cover, and what programs may use."""
    for path, node in below(facts, _DIRECTORIES):
        name = path.rpartition("/")[2]
        executable = node.inode.entry.kind is Kind.FILE and node.inode.entry.mode & 0o111
        if not (_LEGAL.match(name.partition(".")[0]) or _USED.search(path) or executable):
            yield Match(path, "manual page or documentation")


def _translations(facts: Facts) -> Iterator[Match]:
    wanted = _languages(facts)
    for path, _ in below(facts, [_LOCALE]):
        language = path.removeprefix(f"{_LOCALE}/").partition("/")[0]
        plain = re.split(r"[_.@]", language)[0]
        if path.count("/") <= 3 or plain == "en":  # noqa: PLR2004 - locale.alias and its like
            continue
        because = "the image's environment asks for it" if plain in wanted else ""
        yield Match(path, f"translation to {language}", because=because)


def _languages(facts: Facts) -> set[str]:
    """The languages that the image's own environment chooses."""
    chosen: set[str] = set()
    for variable in facts.config.environment.items():
        if variable[0] in ("LANG", "LANGUAGE") or variable[0].startswith("LC_"):
            chosen |= {re.split(r"[_.@]", language)[0] for language in variable[1].split(":")}
    return chosen


def _sources(facts: Facts) -> Iterator[Match]:
    for path, _ in below(facts, ["usr/share/i18n"]):
        yield Match(path, "source of a locale")


RULES: Final = (
    Rule(
        "docs.pages",
        _GROUP,
        "manual pages and documentation",
        "only people read them; licences stay, and so do SQL schemas, examples and programs that lie among them.",
        Effect.DROP,
        _pages,
    ),
    Rule(
        "docs.translations",
        _GROUP,
        "translated messages",
        "only programs run in another language read them; English stays, and what LANG or LC_* ask for.",
        Effect.DROP,
        _translations,
    ),
    Rule(
        "docs.locale-sources",
        _GROUP,
        "sources of locales",
        "only localedef reads them; compiled locales stay.",
        Effect.DROP,
        _sources,
    ),
)
