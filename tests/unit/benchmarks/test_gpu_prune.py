"""The machinery of ``benchmarks/gpu_prune.py`` on a small site directory, with a torch that is a few lines."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slimgpu.elf.shrink import Shrunk
from tests.support.elf import Compiler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
SCRIPT = BENCHMARKS / "gpu_prune.py"

TORCH = """
import ctypes, pathlib
library = ctypes.CDLL(str(pathlib.Path(__file__).with_name("libsmall.so")))
class version:
    cuda = None
class backends:
    class cudnn:
        @staticmethod
        def version():
            return None
class cuda:
    @staticmethod
    def is_available():
        return False
"""


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site directory with a package that loads a library."""
    root = tmp_path / "site-packages"
    (root / "torch").mkdir(parents=True)
    (root / "torch" / "__init__.py").write_text(TORCH)
    Compiler(root).library("torch/libsmall.so")
    (root / "torch" / "libsmall.so").chmod(0o750)
    (root / "torch" / "libsmall.so.1").symlink_to("libsmall.so")
    (root / "libfar.so").symlink_to("/nowhere/libfar.so")
    (root / "data").mkdir()
    (root / "data" / "plain.txt").write_text("plain")
    (root / "linked").symlink_to("data")
    return root


def longer(source: Path, destination: Path) -> Shrunk:
    """A file that differs, as a pruned one does, and works as before."""
    data = source.read_bytes()
    destination.write_bytes(data + b"pruned")
    return Shrunk(len(data), len(data), symbols=7, method="packed", untouched="")


def copied(site: Path, copy: Path, shrink: Callable[[Path, Path], Shrunk] = longer) -> list[Any]:
    from pruned.copies import make_copy  # noqa: PLC0415 - found once the fixture has run

    return list(make_copy({site: copy}, shrink, 2))


def test_a_copy_has_pruned_libraries_and_links_to_all_else(site: Path, tmp_path: Path) -> None:
    (library,) = copied(site, tmp_path / "copy")
    there = tmp_path / "copy" / "torch"
    assert (library.path, library.original) == (str(there / "libsmall.so"), str(site / "torch" / "libsmall.so"))
    assert library.after == library.before + 6
    assert (there / "libsmall.so").stat().st_mode == (site / "torch" / "libsmall.so").stat().st_mode
    assert (there / "libsmall.so.1").readlink() == Path("libsmall.so")
    assert (there / "__init__.py").samefile(site / "torch" / "__init__.py")
    assert (tmp_path / "copy" / "linked").readlink() == Path("data")
    assert (tmp_path / "copy" / "data" / "plain.txt").read_text() == "plain"


def test_a_copy_leaves_the_original_as_it_was(site: Path, tmp_path: Path) -> None:
    before = (site / "torch" / "libsmall.so").read_bytes()
    copied(site, tmp_path / "copy")
    assert (site / "torch" / "libsmall.so").read_bytes() == before


def test_a_library_behind_a_link_out_of_the_directory_is_pruned_too(site: Path, tmp_path: Path) -> None:
    shutil.copy(site / "torch" / "libsmall.so", tmp_path / "libouter.so")
    (site / "libouter.so").symlink_to(tmp_path / "libouter.so")
    copied(site, tmp_path / "copy")
    assert not (tmp_path / "copy" / "libouter.so").is_symlink()
    assert (tmp_path / "copy" / "libouter.so").read_bytes().endswith(b"pruned")


def test_a_real_library_still_loads_once_slimgpu_pruned_it(site: Path, tmp_path: Path) -> None:
    from pruned.copies import pruning  # noqa: PLC0415

    (library,) = copied(site, tmp_path / "copy", pruning("sm_90"))
    assert library.after <= library.before
    code = f"import ctypes; ctypes.CDLL({library.path!r})"
    subprocess.run([sys.executable, "-c", code], check=True)


def arm(name: str, path: Path, own: Path, foreign: Path, work: Path) -> Any:
    from pruned.arms import Arm  # noqa: PLC0415

    return Arm(name, (str(path),), (own,), (foreign,), work)


def test_an_arm_proves_where_its_libraries_came_from(site: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copied(site, copy)
    said = arm("pruned", copy, copy, site, tmp_path).run(("workload", "matmul", "cpu"), 60)
    assert str(copy / "torch" / "libsmall.so") in said["mapped"]
    assert "workloads" in said["unavailable"] or "torch" in said["unavailable"]


def test_an_arm_refuses_a_result_of_the_other_libraries(site: Path, tmp_path: Path) -> None:
    from pruned.arms import ChildError  # noqa: PLC0415

    copy = tmp_path / "copy"
    copied(site, copy)
    with pytest.raises(ChildError, match="torch came from"):
        arm("pruned", site, copy, site, tmp_path).run(("workload", "matmul", "cpu"), 60)
    (copy / "torch" / "__init__.py").unlink()
    (copy / "torch" / "__init__.py").write_text(TORCH.replace("__file__", repr(str(site / "torch" / "__init__.py"))))
    with pytest.raises(ChildError, match=r"loaded .*libsmall\.so"):
        arm("pruned", copy, copy, site, tmp_path).run(("workload", "matmul", "cpu"), 60)


def test_a_process_that_dies_or_hangs_is_told(site: Path, tmp_path: Path) -> None:
    from pruned.arms import ChildError  # noqa: PLC0415

    init = site / "torch" / "__init__.py"
    init.write_text("import os; os.abort()")
    with pytest.raises(ChildError, match="it died of SIGABRT"):
        arm("original", site, site, tmp_path / "copy", tmp_path).run(("measure", "cpu"), 60)
    init.write_text("import time; time.sleep(600)")
    with pytest.raises(ChildError, match="longer than 1 s"):
        arm("original", site, site, tmp_path / "copy", tmp_path).run(("measure", "cpu"), 1)
    assert not list(tmp_path.glob("process-*"))


def outcome(unavailable: str = "", **cases: Any) -> dict[str, Any]:
    results = {
        name: {"unavailable": value} if isinstance(value, str) else {"outputs": value} for name, value in cases.items()
    }
    return {"cases": results, "unavailable": unavailable}


SAME = {"out": "aa", "int8": "RuntimeError: it takes no int8"}


@pytest.mark.parametrize(
    ("original", "again", "pruned", "kind", "detail"),
    [
        (SAME, SAME, SAME, "identical", ""),
        (SAME, SAME, SAME | {"out": "bb"}, "different", "1 of 2 outputs: out (aa, then bb)"),
        (SAME, SAME, {"out": "aa"}, "different", "then none"),
        (SAME, SAME, "no kernel image", "failed", "no kernel image"),
        (SAME, SAME | {"out": "bb"}, SAME, "unstable", "out (aa, then bb)"),
        ("not here", "not here", "not here", "skipped", "not here"),
        ("not here", "not here", "no kernel image", "failed", "not here, then no kernel image"),
        ("not here", "not here", SAME, "failed", "not here, then 2 outputs"),
    ],
)
def test_a_case_is_judged_by_all_three_runs(original: Any, again: Any, pruned: Any, kind: str, detail: str) -> None:
    from pruned.compare import judge  # noqa: PLC0415

    (verdict,) = judge("some", *(outcome(case=value) for value in (original, again, pruned)))
    assert verdict.kind == kind
    assert detail in verdict.detail
    assert verdict.kind.good is (kind in {"identical", "skipped"})
    if kind == "identical":
        assert (verdict.outputs, verdict.refused) == (1, 1)


def test_a_workload_that_dies_in_the_pruned_arm_only_fails() -> None:
    from pruned.compare import judge  # noqa: PLC0415

    ran = outcome(one=SAME, two=SAME)
    died = outcome("it died of SIGSEGV")
    verdicts = list(judge("some", ran, ran, died))
    assert [verdict.kind for verdict in verdicts] == ["failed", "failed", "failed"]
    assert [verdict.kind for verdict in judge("some", died, died, died)] == ["skipped"]


def run(*arguments: str, path: Path | None, work: Path) -> subprocess.CompletedProcess[str]:
    places = [str(place) for place in (path, SCRIPT.parents[1]) if place]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    command = [sys.executable, SCRIPT, "--work", work, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_without_a_gpu_it_ends_with_5(site: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    result = run(path=site, work=work)
    assert (result.returncode, list(work.iterdir())) == (5, [])
    assert "torch sees no GPU here" in result.stderr


def test_a_gpu_that_nobody_knows_ends_with_2(site: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    result = run("--cpu", "--gpu", "voodoo2", path=site, work=work)
    assert (result.returncode, list(work.iterdir())) == (2, [])
    assert "'voodoo2' is no GPU" in result.stderr


def test_cpu_mode_wants_the_gpu_named(tmp_path: Path) -> None:
    result = run("--cpu", path=None, work=tmp_path)
    assert result.returncode == 2
    assert "--gpu" in result.stderr


def test_the_whole_comparison_leaves_a_document_and_nothing_else(site: Path, tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out.json"
    work.mkdir()
    arguments = ("--cpu", "--gpu", "h100", "--only", "matmul", "--rounds", "0", "--out", str(out))
    result = run(*arguments, path=site, work=work)
    assert result.returncode == 1, result.stderr
    assert "Nothing could be compared." in result.stdout  # such a torch calculates nothing
    document: Mapping[str, Any] = json.loads(out.read_text())
    loaded = {one["path"]: one["loaded"] for one in document["libraries"]}  # this interpreter may have more of NVIDIA's
    assert loaded["torch/libsmall.so"] is True
    assert [verdict["kind"] for verdict in document["verdicts"]] == ["skipped"]
    assert "skipped: matmul" in result.stdout
    assert list(work.iterdir()) == []


def test_the_names_of_workloads_are_those_of_the_table() -> None:
    from gpu_prune import WORKLOADS  # noqa: PLC0415

    assert table("pruned/workloads.py", "WORKLOADS") + table("pruned/more_workloads.py", "MORE") == list(WORKLOADS)


def table(module: str, name: str) -> list[str]:
    """The keys of a table in a module that cannot be imported without torch."""
    for statement in ast.parse((BENCHMARKS / module).read_text()).body:
        if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == name:
            assert isinstance(statement.value, ast.Dict)
            return [ast.literal_eval(key) for key in statement.value.keys if key]
    raise AssertionError(name)
