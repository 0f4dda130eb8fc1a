from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.analysis.debian import parse_stanza, read_packages, split_stanzas
from slimgpu.analysis.facts import bytecode_source
from slimgpu.analysis.jit import Need, jit_needs, known_compilers
from slimgpu.analysis.python import Distribution, read_distributions
from tests.support.trees import SITE, Hardlink, Symlink, debian, distribution, facts_of, filesystem, status

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.trees import Layer


def test_a_package_with_its_files_through_a_merged_usr(tmp_path: Path) -> None:
    layer: Layer = {
        "bin": Symlink("usr/bin"),
        "usr/bin/bash": b"b",
        "usr/bin/sh": Symlink("bash"),
        "var/lib/dpkg/status": status(
            "bash\nEssential: yes\nDepends: libc6 (>= 2.36), a | b:any [amd64]\nProvides: sh"
        ),
        "var/lib/dpkg/info/bash.list": "/.\n/bin\n/bin/bash\n/bin/sh\n/usr/gone\n\n",
        "var/lib/dpkg/info/bash.postinst": "#!/bin/sh\n",
        "var/lib/dpkg/info/bash-doc.list": "/usr/bin/bash\n",
    }
    with filesystem(tmp_path, layer) as files:
        (bash,) = read_packages(files)
    assert bash.files == ("bin", "usr/bin/bash", "usr/bin/sh")
    assert bash.records == ("var/lib/dpkg/info/bash.list", "var/lib/dpkg/info/bash.postinst")
    assert bash.depends == (("libc6",), ("a", "b"))
    assert (bash.name, bash.version, bash.essential, bash.provides) == ("bash", "1.0", True, ("sh",))


def test_multiarch_lists(tmp_path: Path) -> None:
    layer = {
        "usr/lib/x": b"x",
        "var/lib/dpkg/status": status("libx"),
        "var/lib/dpkg/info/libx:amd64.list": "/usr/lib/x\n",
        "var/lib/dpkg/info/libx:amd64.symbols": "",
    }
    with filesystem(tmp_path, layer) as files:
        (package,) = read_packages(files)
    assert package.files == ("usr/lib/x",)
    assert len(package.records) == 2


def test_packages_that_are_not_installed_and_damage(tmp_path: Path) -> None:
    text = status("a").replace("install ok installed", "deinstall ok config-files")
    layer = {
        "var/lib/dpkg/status": f"{text}\n\n\n\n{status('b')}\n\x00garbage\n:::\n\n \n{status('c')}".encode()
        + b"\xff\xfe"
    }
    with filesystem(tmp_path, layer) as files:
        assert [package.name for package in read_packages(files)] == ["b", "c"]


def test_distroless_keeps_a_stanza_a_file(tmp_path: Path) -> None:
    layer = {
        "var/lib/dpkg/status.d/tzdata": "Package: tzdata\nVersion: 2024\n",
        "var/lib/dpkg/status.d/tzdata.md5sums": "Package: wrong\n",
    }
    with filesystem(tmp_path, layer) as files:
        assert [(package.name, package.version) for package in read_packages(files)] == [("tzdata", "2024")]


def test_no_dpkg(tmp_path: Path) -> None:
    with filesystem(tmp_path, {"x": b""}) as files:
        assert read_packages(files) == ()
        assert read_distributions(files) == ()


@given(st.text(st.sampled_from("Package: x\n\t #-|,()é\udcff"), max_size=200))
def test_any_text_is_stanzas(text: str) -> None:
    for stanza in split_stanzas(text):
        assert stanza.strip("\n") == stanza
        parse_stanza(stanza)


def test_a_distribution(tmp_path: Path) -> None:
    layer = distribution(
        "My_Dist.Name",
        "1.0",
        {"pkg/a.py": b"a", "../../../bin/tool": b"t", "pkg/é.py": b"e"},
        requires=["Torch_Vision>=1", "extra-only; extra == 'all'", "(weird"],
    )
    info = f"{SITE}/My_Dist.Name-1.0.dist-info"
    layer[f"{info}/RECORD"] = f'{layer[f"{info}/RECORD"]!s}pkg/gone.py,sha256=x,1\n\n,,\n"quoted,name.py",,\n'
    layer[f"{SITE}/quoted,name.py"] = b"q"
    with filesystem(tmp_path, layer) as files:
        (found,) = read_distributions(files)
    assert found == Distribution(
        name="my-dist-name",
        version="1.0",
        location=SITE,
        requires=("torch-vision",),
        files=(
            f"{SITE}/pkg/a.py",
            "usr/local/bin/tool",
            f"{SITE}/pkg/é.py",
            f"{info}/METADATA",
            f"{info}/RECORD",
            f"{SITE}/quoted,name.py",
        ),
        missing=("pkg/gone.py",),
        record=f"{info}/RECORD",
    )


@pytest.mark.parametrize(
    "record", [b"", b"\xff\xfe\x00", b'"unclosed', b"../../../../../../etc/passwd,,\n", b"\x00,\n" * 3]
)
def test_damaged_records_own_nothing_outside(tmp_path: Path, record: bytes) -> None:
    layer = {**distribution("d", "1", {"d.py": b""}), "etc/passwd": b"root", f"{SITE}/d-1.dist-info/RECORD": record}
    with filesystem(tmp_path, layer) as files:
        (found,) = read_distributions(files)
    assert set(found.files) <= {"etc/passwd"}


def test_the_first_owner_wins_and_byte_code_follows_its_source(tmp_path: Path) -> None:
    cached = f"{SITE}/m/__pycache__/a.cpython-311.pyc"
    layer = {
        **debian({"python3-m": {f"{SITE}/m/a.py": b"a"}}),
        **distribution("m", "1.0", {"m/a.py": b"a", "m/b.py": b"b"}),
        cached: b"pyc",
        "opt/mine": b"x",
    }
    with facts_of(tmp_path, layer) as (_, facts, _):
        assert str(facts.owners[f"{SITE}/m/a.py"]) == "python3-m 1.0"
        assert facts.owners[cached].kind == "apt"
        assert str(facts.owners[f"{SITE}/m/b.py"]) == "m 1.0"
        assert "opt/mine" not in facts.owners
        assert SITE not in facts.owners


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("a/__pycache__/b.cpython-311.pyc", "a/b.py"),
        ("a/__pycache__/b.cpython-311.opt-1.pyc", "a/b.py"),
        ("__pycache__/b.pyc", "b.py"),
        ("a/b.pyc", ""),
        ("a/__pycache__/b.txt", ""),
        ("b.pyc", ""),
    ],
)
def test_sources_of_byte_code(path: str, source: str) -> None:
    assert bytecode_source(path) == source


def test_sizes_count_each_file_once(tmp_path: Path) -> None:
    layers: list[Layer] = [
        {"usr/lib/x": b"12345", "lib": Symlink("usr/lib"), "usr/lib/y": Hardlink("usr/lib/x")},
        {"lib/p": b"123", "lib/q": Hardlink("lib/p")},
        {".wh.none": b"", "usr/lib/z": Hardlink("usr/lib/y"), "usr/lib/.wh.x": b""},
    ]
    with facts_of(tmp_path, *layers) as (_, facts, _):
        sizes = {path: facts.size(path) for path in facts.files.nodes}
    assert {path: size for path, size in sizes.items() if size} == {"usr/lib/p": 3, "usr/lib/y": 5}


def test_the_table_of_compilers() -> None:
    table = known_compilers()
    assert len({compiler.name for compiler in table}) == len(table)
    for compiler in table:
        assert compiler.needs
        assert compiler.name == compiler.name.lower().replace("_", "-")


def test_needs_name_who_needs_them() -> None:
    triton = Distribution("triton", "3.0", SITE, (), (), (), "")
    needs = jit_needs([triton, Distribution("numpy", "2", SITE, (), (), (), "")], [])
    assert needs.holds(Need.C_COMPILER).startswith("triton ")
    assert needs.holds(Need.CUDA_COMPILER) == ""
    assert needs.holds(Need.CUDA_COMPILER, Need.PYTHON_HEADERS).startswith("triton ")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"{SITE}/torch/__init__.py", "torch"),
        ("opt/conda/lib/python3.11/site-packages/flashinfer/__init__.py", "flashinfer-python"),
        ("usr/lib/python3/dist-packages/deep_gemm/__init__.py", "deep-gemm"),
        (f"{SITE}/torch/sub/__init__.py", ""),
        (f"{SITE}/torch.py", ""),
        ("opt/src/torch/__init__.py", ""),
    ],
)
def test_importable_packages_count_without_metadata(path: str, name: str) -> None:
    assert jit_needs([], [path]).holds(Need.CXX_COMPILER).partition(" ")[0] == name
