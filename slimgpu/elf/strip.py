"""Which sections only debuggers and linkers read.

As ``strip --strip-all`` of GNU binutils does for libraries and programs: symbol tables with their strings, debug
information, and the relocations that refer to these. What is loaded stays: dynamic symbols, notes with the build id,
unwinding tables. So does ``.gnu_debuglink``, which leads to debug information kept elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slimgpu.elf.tables import Section, SectionType

if TYPE_CHECKING:
    from slimgpu.elf.tables import Tables

_PREFIXES: Final = (".debug_", ".zdebug_", ".gnu.debuglto_", ".stab")
_NAMES: Final = (".gdb_index", ".gnu_debugdata")


def is_debug(name: str) -> bool:
    """Whether a section of that name holds debug information."""
    return name.startswith(_PREFIXES) or name in _NAMES


def unneeded(tables: Tables) -> set[int]:
    """The numbers of these sections."""
    found = {n for n, section in enumerate(tables.sections) if _goes(section)}
    before = -1
    while before < len(found):
        before = len(found)
        found |= {n for n, s in enumerate(tables.sections) if not s.allocated and s.link in found and _follows(s)}
    kept_links = {s.link for n, s in enumerate(tables.sections) if n not in found} | {tables.names}
    strings = {tables.sections[n].link for n in found if tables.sections[n].type == SectionType.SYMTAB}
    found |= {n for n in strings if tables.sections[n].type == SectionType.STRTAB and not tables.sections[n].allocated}
    return found - kept_links - {0}


def _goes(section: Section) -> bool:
    return not section.allocated and (section.type == SectionType.SYMTAB or is_debug(section.name))


def _follows(section: Section) -> bool:
    return section.type in (SectionType.REL, SectionType.RELA, SectionType.SYMTAB_SHNDX, SectionType.GROUP)
