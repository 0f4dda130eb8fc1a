"""The tables of ``docs/gpu-code.md``, made from the results; ``python benchmarks/proof/docs.py`` renews them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = _ROOT / "docs" / "gpu-code.md"
_RESULTS = _ROOT / "benchmarks" / "results"
_BLOCK = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_PACKAGES = re.compile(r".*/(?:site|dist)-packages/")
_MEGA = 1_000_000
_TARGETS = ("h100", "l40s")

Result = dict[str, Any]


def update(document: Path = DOCUMENT) -> None:
    """Write each block ``<!-- generated: torch -->`` anew from that image's results."""
    text = document.read_text()
    document.write_text(_BLOCK.sub(lambda match: f"{match[1]}{_block(match[2])}{match[3]}", text))


def _block(name: str) -> str:
    results = {gpu: _RESULTS / f"gpu-code-{name}-{gpu}.json" for gpu in _TARGETS}
    found = {gpu: json.loads(path.read_text()) for gpu, path in results.items() if path.exists()}
    if not found:
        return ""
    return "\n".join(["", *_libraries(found), "", *_totals(found), "", *_proof(found), "", ""])


def _libraries(results: dict[str, Result]) -> Iterator[str]:
    yield from _header(
        "library", "before", *(f"after, {gpu}" for gpu in results), "over the least", "symbols", "method"
    )
    columns = zip(*(result["libraries"] for result in results.values()), strict=True)
    for libraries in columns:
        sizes = [library["sizes"] for library in libraries]
        path = _PACKAGES.sub("", libraries[0]["path"])
        yield _row(f"`{path}`", sizes, " / ".join(sorted({library["method"] for library in libraries})))
    totals = [_sum(result) for result in results.values()]
    yield _row("**all**", totals, "")


def _row(name: str, sizes: list[Result], method: str) -> str:
    over = max(size["after"] / size["smallest"] - 1 for size in sizes)
    figures = (
        _mb(sizes[0]["before"]),
        *(_mb(size["after"]) for size in sizes),
        f"{over:.2%}",
        _mb(sizes[0]["symbols"]),
    )
    return f"| {' | '.join((name, *figures, method))} |"


def _totals(results: dict[str, Result]) -> Iterator[str]:
    yield from _header("all of these, MB", "before", "zeros in place", "slimgpu", "the least")
    for gpu, result in results.items():
        total = _sum(result)
        sizes = (total["before"], total["before"], total["after"], total["smallest"])
        yield f"| {gpu}, file sizes | {' | '.join(map(_mb, sizes))} |"
        packed = (total["zstd_before"], total["zstd_zeroed"], total["zstd_after"])
        yield f"| {gpu}, after `zstd -3` | {' | '.join(map(_mb, packed))} | |"


def _proof(results: dict[str, Result]) -> Iterator[str]:
    yield from _header("proof", *results)
    lines = {
        "containers": lambda r: _count(r, "containers"),
        "pieces of code before": lambda r: _count(r, "entries"),
        "stay, by the rule": lambda r: _count(r, "kept"),
        "are stored as before": lambda r: _count(r, "stored"),
        "are decompressed to the same by cuobjdump": lambda r: _count(r, "extracted"),
        "containers of which nothing can run: placeholders": lambda r: sum(
            sum(o["proof"]["placeholders"].values()) for o in r["libraries"]
        ),
        "are listed by cuobjdump, placeholders included": lambda r: _count(r, "listed"),
        "pointers that moved": lambda r: _count(r, "moved"),
        "other ELF files": lambda r: r["others"]["files"],
        "of which lost symbols": lambda r: r["others"]["changed"],
        "MB of these before": lambda r: _mb(r["others"]["before"]),
        "MB of these after": lambda r: _mb(r["others"]["after"]),
        "files written anew that load, or list, as before": lambda r: r["ran"]["changed_and_loads"],
        "files written anew that fail with the same words as before": lambda r: len(
            r["ran"]["changed_and_fails_as_before"]
        ),
        "problems": _problems,
    }
    for title, figure in lines.items():
        yield f"| {title} | {' | '.join(f'{figure(result)}' for result in results.values())} |"


def _problems(result: Result) -> int:
    own = sum(len(library["proof"]["problems"]) for library in result["libraries"])
    return own + len(result["others"]["problems"]) + len(result["ran"]["problems"])


def _count(result: Result, name: str) -> int:
    return sum(library["proof"][name] for library in result["libraries"])


def _sum(result: Result) -> Result:
    sizes = [library["sizes"] for library in result["libraries"]]
    return {name: sum(size[name] for size in sizes) for name in sizes[0]}


def _header(*names: str) -> Iterable[str]:
    return (f"| {' | '.join(names)} |", f"| --- |{' ---: |' * (len(names) - 1)}")


def _mb(size: int) -> str:
    return f"{size / _MEGA:.2f}" if size < _MEGA else f"{size / _MEGA:.1f}"


if __name__ == "__main__":
    update()
