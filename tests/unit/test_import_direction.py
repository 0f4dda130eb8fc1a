"""Dependencies point one way: what a module imports, for types too, lies below it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import slimgpu

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(slimgpu.__file__).parent
_BASE = ("errors", "units", "progress", "events")
_LEVELS = {
    **dict.fromkeys(("", *_BASE), 0),
    "parallel": 1,
    "oci": 2,
    "store": 3,
    "rootfs": 3,
    "elf": 4,
    "weights": 4,
    "coldstart": 5,
    "analysis": 6,
    "layers": 7,
    "slim": 8,
    "bench": 9,
    "report": 10,
    "cli": 11,
    "__main__": 12,
}
_RESULTS = {
    "slimgpu.bench.comparison",
    "slimgpu.bench.results",
    "slimgpu.analysis.analysis",
    "slimgpu.analysis.gpu_code",
    "slimgpu.slim.plan",
    "slimgpu.slim.result",
    "slimgpu.weights.results",
}
"""The modules whose types reports may take."""
_NEVER_AT_MODULE_LEVEL = {"torch", "docker", "pynvml", "jinja2"}
_ONLY_IN = {"click": {"cli"}, "rich": {"cli", "report"}, "requests": {"store", "bench"}, "urllib3": {"store"}}

MODULES = sorted(ROOT.rglob("*.py"))


def part_of(path: Path) -> str:
    """The package or base module that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py").replace("__init__", "")


def name_of(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def imports(path: Path, *, everywhere: bool = True) -> Iterator[tuple[int, str]]:
    """Line and module of each import; ``everywhere`` False leaves out those inside functions."""
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            module = node.module or ""
            if module.count(".") < 2 and module.startswith("slimgpu"):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module
        if everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending += ast.iter_child_nodes(node)


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_imports_point_down(path: Path) -> None:
    own = part_of(path)
    assert own in _LEVELS, f"{own} has no place in the order yet"
    for line, module in imports(path):
        if module.partition(".")[0] != "slimgpu" or module == "slimgpu.__version__":
            continue
        other = name_of(module)
        assert other == own or _LEVELS[other] < _LEVELS[own], f"{path}:{line} imports {module}"


@pytest.mark.parametrize("path", [path for path in MODULES if part_of(path) == "report"], ids=_id)
def test_reports_import_result_types_only(path: Path) -> None:
    for line, module in imports(path):
        if module.startswith("slimgpu.") and name_of(module) not in ("report", "__version__", *_BASE):
            assert any(module == known or module.startswith(f"{known}.") for known in _RESULTS), f"{path}:{line}"


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_heavy_libraries_wait_until_they_are_needed(path: Path) -> None:
    for line, module in imports(path, everywhere=False):
        top = module.partition(".")[0]
        if not _only_for_types(path, line):
            assert top not in _NEVER_AT_MODULE_LEVEL, f"{path}:{line} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_libraries_have_their_places(path: Path) -> None:
    for line, module in imports(path):
        places = _ONLY_IN.get(module.partition(".")[0])
        assert places is None or part_of(path) in places, f"{path}:{line} imports {module}"


def _only_for_types(path: Path, line: int) -> bool:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            assert node.end_lineno is not None
            if node.lineno <= line <= node.end_lineno:
                return True
    return False


def test_the_test_sees_imports(tmp_path: Path) -> None:
    module = tmp_path / "m.py"
    module.write_text(
        "import a.b, c\nfrom slimgpu import oci\nfrom slimgpu.oci import media\nfrom slimgpu.oci.media import X\n"
        "def f():\n    import d\n"
    )
    found = {"a.b", "c", "slimgpu.oci", "slimgpu.oci.media"}
    assert {name for _, name in imports(module, everywhere=False)} == found
    assert {name for _, name in imports(module)} == {*found, "d"}
