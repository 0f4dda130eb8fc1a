"""The closure against readelf's tags and against the system's own loader."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slimgpu.analysis.claims import loader_of
from slimgpu.elf.closure import Loader, Provider, library_path, search_directories
from slimgpu.elf.read import ElfFacts
from slimgpu.rootfs.entry import Entry, Kind
from slimgpu.rootfs.tree import merge
from tests.support.trees import File, Symlink, facts_of, filesystem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.trees import Layer, What


def loaded(root: Path) -> dict[str, What]:
    """Every file under a directory as a layer."""
    return {
        str(path.relative_to(root)): File(path.read_bytes(), mode=0o755)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def providers(
    tmp_path: Path, layer: Layer, path: str, environment: Mapping[str, str] | None = None
) -> dict[str, Provider]:
    runtime = {"Env": [f"{name}={value}" for name, value in (environment or {}).items()]}
    with facts_of(tmp_path, layer, runtime=runtime) as (_, facts, _):
        return loader_of(facts).providers(path)


def test_runpath_with_origin(elf_root: Path, tmp_path: Path) -> None:
    assert providers(tmp_path, loaded(elf_root), "opt/own/runpath.so") == {
        "libown.so": Provider("opt/own/libown.so", elsewhere=False),
        "libfar.so": Provider("opt/far/libfar.so", elsewhere=False),
    }


def test_rpath_with_origin(elf_root: Path, tmp_path: Path) -> None:
    found = providers(tmp_path, loaded(elf_root), "opt/own/rpath.so")
    assert [(name, provider.path) for name, provider in found.items()] == [
        ("libown.so", "opt/own/libown.so"),
        ("libfar.so", "opt/far/libfar.so"),
    ]


def test_default_directories_and_what_was_loaded_before(elf_root: Path, tmp_path: Path) -> None:
    assert providers(tmp_path, loaded(elf_root), "opt/own/bare.so") == {
        "libbase.so.1": Provider("usr/lib/libbase.so.1", elsewhere=False),
        "libpreloaded.so": Provider("opt/far/libpreloaded.so", elsewhere=True),
    }


def test_a_library_that_is_not_there(elf_root: Path, tmp_path: Path) -> None:
    found = providers(tmp_path, loaded(elf_root), "opt/own/missing.so")
    assert found == {"libgone.so": Provider("", elsewhere=True)}


def test_library_path_comes_after_rpath_and_before_runpath(elf_root: Path, tmp_path: Path) -> None:
    """ld.so(8): RPATH unless there is a RUNPATH, LD_LIBRARY_PATH, RUNPATH."""
    environment = {"LD_LIBRARY_PATH": "/nowhere:/opt/env"}
    rpath = providers(tmp_path, loaded(elf_root), "opt/own/rpath.so", environment)
    assert rpath["libown.so"].path == "opt/own/libown.so"
    runpath = providers(tmp_path, loaded(elf_root), "opt/own/runpath.so", environment)
    assert runpath["libown.so"].path == "opt/env/libown.so"


def test_the_real_loader_agrees_about_library_path(elf_root: Path) -> None:
    """The rule of the test above, asked of the machine's own loader."""
    found = {}
    for name in ("rpath.so", "runpath.so"):
        run = subprocess.run(
            ["ldd", elf_root / "opt/own" / name],
            env={"LD_LIBRARY_PATH": str(elf_root / "opt/env"), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        match = re.search(r"libown\.so => (\S+)", run.stdout)
        assert match is not None
        found[name] = str(Path(match[1]).resolve().relative_to(elf_root))
    assert found == {"rpath.so": "opt/own/libown.so", "runpath.so": "opt/env/libown.so"}


def test_symlinks_on_the_way_are_named(elf_root: Path, tmp_path: Path) -> None:
    layer = loaded(elf_root)
    layer["usr/lib/libbase.so.1.0"] = layer.pop("usr/lib/libbase.so.1")
    layer["usr/lib/libbase.so.1"] = Symlink("libbase.so.1.0")
    layer["lib"] = Symlink("usr/lib")
    found = providers(tmp_path, layer, "opt/own/bare.so")["libbase.so.1"]
    assert found == Provider("usr/lib/libbase.so.1.0", elsewhere=False, links=("lib", "usr/lib/libbase.so.1"))


def _elf(path: str, needed: tuple[str, ...] = (), bits: int = 64, **more: str) -> tuple[str, ElfFacts]:
    return path, ElfFacts(bits, "EM_X86_64" if bits == 64 else "EM_386", needed=needed, **more)


def _loader(*elf: tuple[str, ElfFacts], directories: tuple[str, ...] = ("lib",)) -> Loader:
    tree = merge([[Entry(path, Kind.FILE, 0o755) for path, _ in elf]], ["it"])
    return Loader(dict(elf), tree.trail, directories)


def test_a_library_of_another_class_is_passed_over() -> None:
    loader = _loader(_elf("app", ("libx.so",)), _elf("a/libx.so", bits=32), _elf("b/libx.so"), directories=("a", "b"))
    assert loader.providers("app")["libx.so"].path == "b/libx.so"


def test_the_name_can_be_the_soname_of_a_file_called_otherwise() -> None:
    loader = _loader(_elf("app", ("libx.so.1",)), _elf("opt/libx-abc123.so", soname="libx.so.1"))
    assert loader.providers("app")["libx.so.1"] == Provider("opt/libx-abc123.so", elsewhere=True)


def test_a_needed_path_is_taken_as_it_is() -> None:
    loader = _loader(_elf("app", ("/opt/y.so", "/none/z.so")), _elf("opt/y.so"))
    found = loader.providers("app")
    assert found["/opt/y.so"] == Provider("opt/y.so", elsewhere=False)
    assert found["/none/z.so"].path == ""


@pytest.mark.parametrize(
    ("runpath", "place"),
    [
        ("$ORIGIN", "opt/x"),
        ("${ORIGIN}/sub", "opt/x/sub"),
        ("$ORIGIN/../y", "opt/y"),
        ("/a:$ORIGIN/sub", "opt/x/sub"),
        ("/usr/$LIB", "usr/lib64"),
        ("$ORIGINAL:/opt/y", "opt/y"),
        ("::/opt/y:", "opt/y"),
    ],
)
def test_tokens_in_search_paths(runpath: str, place: str) -> None:
    loader = _loader(
        _elf("opt/x/app", ("libq.so",), runpath=runpath), _elf(f"{place}/libq.so"), _elf("opt/x/sub/u"), _elf("opt/y/v")
    )
    assert loader.providers("opt/x/app")["libq.so"] == Provider(f"{place}/libq.so", elsewhere=False)


def test_runpath_silences_rpath() -> None:
    loader = _loader(_elf("app", ("libq.so",), rpath="/a", runpath="/b"), _elf("a/libq.so"), _elf("b/libq.so"))
    assert loader.providers("app")["libq.so"].path == "b/libq.so"


def test_ld_so_conf_with_includes(tmp_path: Path) -> None:
    layer: Layer = {
        "etc/ld.so.conf": "include /etc/ld.so.conf.d/*.conf\n/opt/last # comment\nrelative\nhwcap 1 nosegneg\n",
        "etc/ld.so.conf.d/b.conf": "/opt/b\n\n# /opt/no\ninclude more/x.conf\n",
        "etc/ld.so.conf.d/a.conf": "/opt/a\n",
        "etc/ld.so.conf.d/ignored": "/opt/no\n",
        "etc/ld.so.conf.d/more/x.conf": "  /opt/x  \ninclude /etc/ld.so.conf\n",
    }
    with filesystem(tmp_path, layer) as files:
        found = search_directories(files)
    own = [directory for directory in found if directory.startswith("/")]
    assert own[:3] == ["/opt/a", "/opt/b", "/opt/x"]
    assert own[-1] == "/opt/last"
    assert "/opt/no" not in own
    assert found[-1] == "usr/lib"
    assert len(found) < 1000


def test_no_configuration_leaves_the_defaults(tmp_path: Path) -> None:
    with filesystem(tmp_path, {"x": b""}) as files:
        assert search_directories(files) == ("lib64", "usr/lib64", "lib", "usr/lib")
    assert library_path({"LD_LIBRARY_PATH": "/x::/y"}) == ("/x", "/y")
    assert library_path({}) == ()


@pytest.mark.parametrize("program", ["/bin/ls", "/usr/bin/tar", "/usr/bin/skopeo", "/usr/bin/gcc", "/usr/bin/podman"])
def test_ldd_agrees_about_real_programs(program: str, tmp_path: Path) -> None:
    """A layer of the program and all that ldd finds for it, at the places where ldd finds it."""
    text = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    found = {m[1]: m[2] for m in re.finditer(r"^\s+(\S+) => (/\S+)", text, re.MULTILINE)}
    layer: dict[str, What] = {"app": Path(program).read_bytes()}
    conf = subprocess.run(["cat", *map(str, Path("/etc/ld.so.conf.d").glob("*.conf"))], capture_output=True, check=True)
    layer["etc/ld.so.conf"] = conf.stdout
    for place in ("lib", "lib64", "bin"):
        if Path("/", place).is_symlink():
            layer[place] = Symlink(str(Path("/", place).readlink()))
    for path in [*found.values(), *re.findall(r"^\s+(/\S+) \(", text, re.MULTILINE)]:
        real = Path(path).resolve()
        layer[str(real)[1:]] = real.read_bytes()
        parent = Path(path).parent.resolve()
        if parent / Path(path).name != real:
            layer[str(parent / Path(path).name)[1:]] = Symlink(str(real))
    with facts_of(tmp_path, layer) as (_, facts, _):
        loader = loader_of(facts)
        pending, ours = ["app"], {}
        while pending:
            for name, provider in loader.providers(pending.pop()).items():
                if name not in ours:
                    ours[name] = provider
                    pending.append(provider.path)
    assert {name: f"/{p.path}" for name, p in ours.items() if name in found} == {
        name: str(Path(path).resolve()) for name, path in found.items()
    }
    assert not any(provider.elsewhere or not provider.path for provider in ours.values())
