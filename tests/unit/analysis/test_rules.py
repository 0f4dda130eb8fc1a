from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from slimgpu.analysis.claims import Claim, claim
from slimgpu.analysis.rules.rule import Effect
from slimgpu.analysis.rules.weights import weights_format
from tests.support.trees import SITE, File, Symlink, What, debian, distribution, facts_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.trees import Layer

_AR = b"!<arch>\n" + bytes(100)


def claims_of(tmp_path: Path, *layers: Layer, runtime: dict[str, Any] | None = None, **more: bool) -> dict[str, Claim]:
    with facts_of(tmp_path, *layers, runtime=runtime, **more) as (_, facts, _):
        return claim(facts)


def dropped(claims: dict[str, Claim]) -> dict[str, str]:
    return {path: item.rule.id for path, item in sorted(claims.items()) if item.effect is Effect.DROP}


def held(claims: dict[str, Claim]) -> dict[str, str]:
    return {path: item.match.evidence for path, item in sorted(claims.items()) if item.match.held}


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("var/lib/apt/lists/deb.debian.org_Packages", "cache.apt-lists"),
        ("var/cache/apt/archives/gcc.deb", "cache.apt"),
        ("var/cache/debconf/config.dat-old", "cache.apt"),
        ("var/lib/dpkg/status-old", "cache.apt"),
        ("root/.cache/pip/http-v2/a/b", "cache.pip"),
        ("home/app/.cache/pip/wheels/x.whl", "cache.pip"),
        ("root/.cache/uv/archive-v0/x", "cache.python-tools"),
        ("home/any/.cache/pypoetry/y", "cache.python-tools"),
        ("opt/conda/pkgs/torch.tar.bz2", "cache.conda"),
        ("root/.npm/_cacache/z", "cache.build-tools"),
        ("root/.cargo/registry/z", "cache.build-tools"),
        ("var/cache/dnf/z", "cache.rpm"),
        ("var/log/apt/history.log", "cache.logs"),
        ("var/log/dpkg.log", "cache.logs"),
        ("usr/share/man/man1/ls.1.gz", "docs.pages"),
        ("usr/share/doc/bash/README", "docs.pages"),
        ("usr/share/locale/de/LC_MESSAGES/bash.mo", "docs.translations"),
        ("usr/share/i18n/charmaps/UTF-8.gz", "docs.locale-sources"),
        ("usr/include/stdio.h", "compile.headers"),
        ("usr/include/c++/12/vector", "compile.headers"),
    ],
)
def test_what_goes(tmp_path: Path, path: str, rule: str) -> None:
    assert dropped(claims_of(tmp_path, {path: b"x" * 10})) == {path: rule}


@pytest.mark.parametrize(
    "path",
    [
        "usr/share/doc/bash/copyright",
        "usr/share/doc/x/LICENSE.txt",
        "usr/share/doc/x/NOTICE",
        "usr/share/doc/x/AUTHORS.gz",
        "usr/share/locale/en/LC_MESSAGES/x.mo",
        "usr/share/locale/en_GB/LC_MESSAGES/x.mo",
        "usr/share/locale/locale.alias",
        "usr/lib/locale/C.utf8/LC_CTYPE",
        "var/lib/apt/extended_states",
        "var/log/app.log",
        "root/.cache/huggingface/x",
        "root/.cache/torch/x",
        "home/app/data",
        "var/cache/fontconfig/x",
        "opt/app/include/data.h",
        "opt/include/readme",
        "usr/include/readme.txt",
        "usr/lib/x.a",
        "home",
    ],
)
def test_what_stays(tmp_path: Path, path: str) -> None:
    assert dropped(claims_of(tmp_path, {path: b"no archive"})) == {}


@pytest.mark.parametrize("setting", ["LANG=de_DE.UTF-8", "LC_ALL=de_AT", "LANGUAGE=fr:de", "LC_MESSAGES=de@euro"])
def test_the_images_language_stays(tmp_path: Path, setting: str) -> None:
    layer = {f"usr/share/locale/{name}/LC_MESSAGES/x.mo": b"x" for name in ("de", "de_CH", "es", "pt_BR")}
    claims = claims_of(tmp_path, layer, runtime={"Env": [setting]})
    gone = ["usr/share/locale/es/LC_MESSAGES/x.mo", "usr/share/locale/pt_BR/LC_MESSAGES/x.mo"]
    assert list(dropped(claims)) == gone
    for path, evidence in held(claims).items():
        assert "usr/share/locale/de" in path
        assert "asks for" in evidence


def test_byte_code_is_reported_and_stays(tmp_path: Path) -> None:
    pyc = f"{SITE}/a/__pycache__/b.cpython-311.pyc"
    claims = claims_of(tmp_path, {f"{SITE}/a/b.py": b"x", pyc: b"y" * 9})
    assert claims[pyc].rule.id == "python.bytecode"
    assert claims[pyc].effect is Effect.KEEP
    assert dropped(claims) == {}


def test_static_archives_by_their_magic(tmp_path: Path) -> None:
    layer = {"usr/lib/a.a": _AR, "usr/lib/thin.a": b"!<thin>\n", "usr/lib/text.a": b"hello", "opt/x.a": _AR}
    assert set(dropped(claims_of(tmp_path, layer))) == {"usr/lib/a.a", "usr/lib/thin.a", "opt/x.a"}


_TOOLS: dict[str, dict[str, What]] = {
    "gcc": {"usr/bin/gcc": Symlink("gcc-12")},
    "gcc-12": {"usr/bin/gcc-12": b"g" * 50},
    "g++-12": {"usr/bin/g++-12": b"g" * 50},
    "make": {"usr/bin/make": b"m" * 50},
    "libc6-dev": {"usr/include/stdio.h": b"h", "usr/lib/libc.a": _AR},
    "bash": {"bin/bash": b"b" * 50, "usr/share/doc/bash/copyright": b"c"},
}
_DEPENDS = {
    "gcc": "Depends: gcc-12 (>= 12.1)",
    "g++-12": "Depends: gcc-12 (= 12.2), libc6-dev",
    "gcc-12": "Depends: libc6-dev | libc-dev",
}


def test_tools_go_as_whole_packages(tmp_path: Path) -> None:
    claims = claims_of(tmp_path, debian(_TOOLS, _DEPENDS))
    gone = dropped(claims)
    assert {path for path in gone if path.startswith("usr/")} == {
        "usr/bin/gcc",
        "usr/bin/gcc-12",
        "usr/bin/g++-12",
        "usr/bin/make",
        "usr/include/stdio.h",
        "usr/lib/libc.a",
    }
    assert "var/lib/dpkg/info/make.list" in gone
    assert "var/lib/dpkg/info/bash.list" not in gone


@pytest.mark.parametrize(
    ("name", "stay", "go"),
    [
        ("triton", {"usr/bin/gcc", "usr/bin/gcc-12", "usr/include/stdio.h", "usr/lib/libc.a"}, {"usr/bin/make"}),
        ("torch", {"usr/bin/g++-12", "usr/bin/gcc-12", "usr/include/stdio.h"}, {"usr/bin/make"}),
        ("flashinfer-python", {"usr/bin/g++-12", "usr/bin/gcc-12", "usr/bin/make"}, set()),
        ("numpy", set(), {"usr/bin/gcc-12", "usr/bin/g++-12", "usr/bin/make", "usr/include/stdio.h"}),
    ],
)
def test_who_compiles_at_run_time_keeps_its_tools(tmp_path: Path, name: str, stay: set[str], go: set[str]) -> None:
    layer = {**debian(_TOOLS, _DEPENDS), **distribution(name, "1.0", {"m/__init__.py": b""})}
    claims = claims_of(tmp_path, layer)
    assert not stay & set(dropped(claims))
    assert go <= set(dropped(claims))
    for path in stay:
        assert name in claims[path].match.evidence
    ignored = claims_of(tmp_path, layer, heed_jit=False)
    assert (stay | go) <= set(dropped(ignored))


def test_a_package_that_stays_holds_what_it_depends_on(tmp_path: Path) -> None:
    packages = {**_TOOLS, "dkms": {"usr/bin/dkms": b"d"}, "helper": {"usr/bin/helper": b"h"}}
    claims = claims_of(tmp_path, debian(packages, {**_DEPENDS, "dkms": "Depends: helper, make:any | gmake"}))
    assert "usr/bin/make" not in dropped(claims)
    assert "the package dkms depends on it" in claims["usr/bin/make"].match.evidence
    assert "usr/bin/gcc-12" in dropped(claims)


def test_a_provided_name_holds_its_provider(tmp_path: Path) -> None:
    fields = {**_DEPENDS, "bash": "Depends: c-compiler", "gcc-12": "Provides: c-compiler, gcc-x (= 1)"}
    claims = claims_of(tmp_path, debian(_TOOLS, fields))
    assert "usr/bin/gcc-12" not in dropped(claims)
    assert "usr/bin/make" in dropped(claims)


@pytest.mark.parametrize("field", ["Essential: yes", "Priority: required"])
def test_essential_packages_stay(tmp_path: Path, field: str) -> None:
    claims = claims_of(tmp_path, debian(_TOOLS, {**_DEPENDS, "make": field}))
    assert "usr/bin/make" not in dropped(claims)


@pytest.mark.parametrize(
    "runtime",
    [
        {"Entrypoint": ["make", "serve"]},
        {"Entrypoint": ["/usr/bin/make"]},
        {"Cmd": ["make"]},
        {"Entrypoint": ["bash", "-c"], "Cmd": ["/usr/bin/make"]},
        {"Entrypoint": ["m"], "Env": ["PATH=/opt/links:/usr/bin"]},
    ],
)
def test_what_the_image_starts_stays(tmp_path: Path, runtime: dict[str, Any]) -> None:
    layer = {**debian(_TOOLS, _DEPENDS), "opt/links/m": Symlink("../../usr/bin/make")}
    claims = claims_of(tmp_path, layer, runtime=runtime)
    assert held(claims) == {"usr/bin/make": "package make: the image starts it"}
    assert "usr/bin/gcc-12" in dropped(claims)


@pytest.mark.parametrize("runtime", [{"Entrypoint": "make"}, {"Entrypoint": [], "Cmd": None}, {"Cmd": [1, None]}])
def test_odd_entry_points_hold_nothing(tmp_path: Path, runtime: dict[str, Any]) -> None:
    assert "usr/bin/make" in dropped(claims_of(tmp_path, debian(_TOOLS, _DEPENDS), runtime=runtime))


def test_a_file_of_two_packages_stays(tmp_path: Path) -> None:
    packages = {"make": {"usr/share/common": b"x", "usr/bin/make": b"m"}, "bash": {"usr/share/common": b"x"}}
    assert "usr/share/common" not in dropped(claims_of(tmp_path, debian(packages)))


def test_alternatives_go_along_with_what_they_lead_to(tmp_path: Path) -> None:
    layer = {
        **debian(_TOOLS, _DEPENDS),
        "usr/bin/cc": Symlink("/etc/alternatives/cc"),
        "etc/alternatives/cc": Symlink("/usr/bin/gcc"),
        "usr/bin/pager": Symlink("/etc/alternatives/pager"),
        "etc/alternatives/pager": Symlink("/bin/bash"),
    }
    gone = dropped(claims_of(tmp_path, layer))
    assert {"usr/bin/cc", "etc/alternatives/cc", "usr/bin/gcc-12"} <= set(gone)
    assert not {"usr/bin/pager", "etc/alternatives/pager", "bin/bash"} & set(gone)


@pytest.mark.parametrize("cache", ["root/.cache/pip/x", "root/.cache/uv/archive-v0/x", "home/u/.cache/uv/a/b/x"])
def test_a_link_into_a_cache_holds_the_file(tmp_path: Path, cache: str) -> None:
    claims = claims_of(tmp_path, {f"{cache}.py": b"x", f"{cache}.gone": b"y", f"{SITE}/m.py": Symlink(f"/{cache}.py")})
    assert list(dropped(claims)) == [f"{cache}.gone"]
    assert held(claims)[f"{cache}.py"].endswith(f"the symlink {SITE}/m.py leads to it")


def test_links_over_links_into_a_cache_hold_them_all(tmp_path: Path) -> None:
    layer: Layer = {
        "root/.cache/uv/a/x.py": b"x",
        "root/.cache/uv/b": Symlink("a"),
        "root/.cache/uv/c.py": Symlink("b/x.py"),
        f"{SITE}/m.py": Symlink("/root/.cache/uv/c.py"),
    }
    assert dropped(claims_of(tmp_path, layer)) == {}


def test_a_link_to_a_directory_in_a_cache_holds_all_in_it(tmp_path: Path) -> None:
    layer: Layer = {
        "root/.cache/uv/archive-v0/abc/pkg/m.py": b"x",
        "root/.cache/uv/archive-v0/abc/pkg/sub/n.py": b"x",
        "root/.cache/uv/archive-v0/other/o.py": b"x",
        f"{SITE}/pkg": Symlink("/root/.cache/uv/archive-v0/abc/pkg"),
    }
    assert list(dropped(claims_of(tmp_path, layer))) == ["root/.cache/uv/archive-v0/other/o.py"]


def test_a_link_to_a_place_above_a_cache_holds_nothing(tmp_path: Path) -> None:
    layer: Layer = {"root/.cache/uv/x": b"x", "root/.profile": b"p", "data/home": Symlink("/root"), "all": Symlink("/")}
    assert list(dropped(claims_of(tmp_path, layer))) == ["root/.cache/uv/x"]


@pytest.mark.parametrize(
    ("name", "size", "magic", "kind"),
    [
        ("x.gguf", 10, b"GGUF\x03", "GGUF"),
        ("any", 2000, (100).to_bytes(8, "little") + b'{"__metadata', "safetensors"),
        ("any", 2000, (100).to_bytes(8, "little") + b"{ ", "safetensors"),
        ("any", 100, (100).to_bytes(8, "little") + b'{"', ""),
        ("any", 2000, (100).to_bytes(8, "little") + b"[]", ""),
        ("x.safetensors", 2000, b"version https://git-lfs", ""),
        ("x.pt", 2**20, b"PK\x03\x04", "torch pickle"),
        ("x.bin", 2**20, b"\x80\x02}q", "torch pickle"),
        ("x.pt", 100, b"PK\x03\x04", ""),
        ("x.zip", 2**20, b"PK\x03\x04", ""),
        ("x.onnx", 2**20, b"\x08", "ONNX"),
        ("x.engine", 2**20, b"ftrt", "TensorRT engine"),
        ("", 0, b"", ""),
    ],
)
def test_formats_of_weights(name: str, size: int, magic: bytes, kind: str) -> None:
    assert weights_format(name, size, magic) == kind


def test_weights_are_reported_and_stay(tmp_path: Path) -> None:
    header = b'{"a":{}}'
    layer = {
        "models/m.safetensors": len(header).to_bytes(8, "little") + header + bytes(500),
        "models/g": b"GGUF" + b"x",
    }
    claims = claims_of(tmp_path, layer)
    assert {path: item.match.evidence for path, item in claims.items()} == {
        "models/m.safetensors": "safetensors",
        "models/g": "GGUF",
    }
    assert dropped(claims) == {}


_BIG = b"same bytes " * 500


def links(claims: dict[str, Claim]) -> dict[str, str]:
    return {path: item.match.target for path, item in claims.items() if item.effect is Effect.LINK}


def test_duplicates_become_links(tmp_path: Path) -> None:
    layer = {"usr/lib/a": _BIG, "opt/b": _BIG, "usr/lib/c": _BIG, "usr/lib/small": b"s", "usr/lib/small2": b"s"}
    assert links(claims_of(tmp_path, layer)) == {"usr/lib/a": "opt/b", "usr/lib/c": "opt/b"}


@pytest.mark.parametrize(
    "other",
    [
        File(_BIG, mode=0o755),
        File(_BIG, uid=1000),
        File(_BIG, xattrs=(("security.capability", b"\x01"),)),
        File(_BIG + b"!"),
    ],
)
def test_files_that_differ_in_anything_are_no_duplicates(tmp_path: Path, other: File) -> None:
    assert links(claims_of(tmp_path, {"usr/a": _BIG, "usr/b": other})) == {}


def test_times_matter_for_python_sources_only(tmp_path: Path) -> None:
    layer = {
        "usr/a.so": File(_BIG, mtime=1),
        "usr/b.so": File(_BIG, mtime=2),
        "usr/a.py": File(_BIG + b"py", mtime=1),
        "usr/b.py": File(_BIG + b"py", mtime=2),
        "usr/c.py": File(_BIG + b"py", mtime=2),
    }
    assert links(claims_of(tmp_path, layer)) == {"usr/b.so": "usr/a.so", "usr/c.py": "usr/b.py"}


def test_duplicates_of_what_goes_share_one_that_stays(tmp_path: Path) -> None:
    header = b"#define X\n" * 500
    layer = {"usr/include/x.h": header, "usr/lib/m/x.h": header, "usr/lib/n/x.h": header}
    claims = claims_of(tmp_path, layer)
    assert dropped(claims) == {"usr/include/x.h": "compile.headers"}
    assert links(claims) == {"usr/lib/n/x.h": "usr/lib/m/x.h"}


def test_users_files_are_never_linked(tmp_path: Path) -> None:
    assert links(claims_of(tmp_path, {"home/a": _BIG, "srv/b": _BIG, "etc/c": _BIG, "var/d": _BIG})) == {}


def test_python_tools_go_unless_required(tmp_path: Path) -> None:
    ninja = distribution("ninja", "1.11", {"ninja/__init__.py": b"n", "../../../bin/ninja": b"N" * 9})
    gone = dropped(claims_of(tmp_path, ninja))
    assert {f"{SITE}/ninja/__init__.py", "usr/local/bin/ninja"} <= set(gone)
    user = distribution("builder", "2.0", {"builder.py": b"b"}, requires=["Ninja>=1.0", "cmake; extra == 'all'"])
    cmake = distribution("cmake", "3.0", {"cmake/c.py": b"c"})
    claims = claims_of(tmp_path, {**ninja, **user, **cmake})
    assert f"{SITE}/ninja/__init__.py" not in dropped(claims)
    assert "builder requires it" in held(claims)[f"{SITE}/ninja/__init__.py"]
    assert f"{SITE}/cmake/c.py" in dropped(claims)


def test_headers_in_distributions(tmp_path: Path) -> None:
    layer = {
        **distribution("numpy", "1.0", {"numpy/include/ndarray.h": b"h", "numpy/core.h": b"h"}),
        **distribution("torch", "2.0", {"torch/include/ATen.h": b"h"}),
        **distribution("nvidia-cublas", "13.0", {"nvidia/cu13/include/cublas.h": b"h"}),
        "usr/local/include/python3.11/Python.h": b"h",
        "usr/local/cuda-13/include/cuda.h": b"h",
    }
    claims = claims_of(tmp_path, layer)
    assert set(dropped(claims)) == {
        f"{SITE}/numpy/include/ndarray.h",
        f"{SITE}/nvidia/cu13/include/cublas.h",
        "usr/local/cuda-13/include/cuda.h",
    }
    assert "torch compiles at run time with its own headers" in held(claims)[f"{SITE}/torch/include/ATen.h"]
    assert "torch.compile" in held(claims)["usr/local/include/python3.11/Python.h"]


@pytest.mark.parametrize("deep", [100, 1500])
def test_caches_as_deep_as_linux_allows(tmp_path: Path, deep: int) -> None:
    path = f"root/.cache/pip/{'d/' * deep}x"
    assert list(dropped(claims_of(tmp_path, {path: b"x"}))) == [path]
