"""Small ELF files by gcc, which need each other in every way the loader knows."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Compiler:
    """Small libraries and programs, linked as asked."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def library(self, path: str, *flags: str, needs: tuple[str, ...] = ()) -> Path:
        """A shared library at ``path`` that is linked to the libraries at ``needs``."""
        return self._link(path, f"int f_{abs(hash(path))}(void) {{ return 1; }}", "-shared", *flags, needs=needs)

    def program(self, path: str, *flags: str, needs: tuple[str, ...] = ()) -> Path:
        return self._link(path, "int main(void) { return 0; }", *flags, needs=needs)

    def _link(self, path: str, source: str, *flags: str, needs: tuple[str, ...]) -> Path:
        out = self.root / path
        out.parent.mkdir(parents=True, exist_ok=True)
        libraries = [str(self.root / need) for need in needs]
        command = ["gcc", "-x", "c", "-", "-x", "none", "-fPIC", "-o", out, "-Wl,--no-as-needed", *flags, *libraries]
        command += ["-Wl,--allow-shlib-undefined", "-Wl,--unresolved-symbols=ignore-all"]
        subprocess.run(command, input=source, text=True, check=True)
        return out


def libraries(root: Path) -> None:
    """A tree of them; one library that is needed is missing."""
    make = Compiler(root)
    plain = ("-nostdlib", "-Wl,--build-id=none")
    make.library("usr/lib/libbase.so.1", *plain, "-Wl,-soname,libbase.so.1")
    make.library("opt/own/libown.so", *plain, "-Wl,-soname,libown.so")
    make.library("opt/far/libfar.so", *plain, "-Wl,-soname,libfar.so")
    make.library("opt/far/libpreloaded.so", *plain, "-Wl,-soname,libpreloaded.so")
    make.library("opt/env/libown.so", *plain, "-Wl,-soname,libown.so")
    make.library("gone/libgone.so", *plain, "-Wl,-soname,libgone.so")
    own, far = "opt/own/libown.so", "opt/far/libfar.so"
    runpath, rpath = ("-Wl,--enable-new-dtags", "-Wl,-rpath"), ("-Wl,--disable-new-dtags", "-Wl,-rpath")
    make.library("opt/own/runpath.so", *plain, f"{runpath[0]},-rpath,$ORIGIN:$ORIGIN/../far", needs=(own, far))
    make.library("opt/own/rpath.so", *plain, f"{rpath[0]},-rpath,${{ORIGIN}}:/opt/far", needs=(own, far))
    make.library("opt/own/bare.so", *plain, needs=("usr/lib/libbase.so.1", "opt/far/libpreloaded.so"))
    make.library("opt/own/missing.so", *plain, needs=("gone/libgone.so",))
    make.program("usr/bin/program", needs=("usr/lib/libbase.so.1",))
    make.program("usr/bin/debug", "-g")
    make.program("usr/bin/static", "-static")
    (root / "gone" / "libgone.so").unlink()
