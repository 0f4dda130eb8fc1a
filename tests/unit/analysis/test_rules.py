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
    return {path: item.match.reason for path, item in sorted(claims.items()) if item.match.held}


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("var/lib/apt/lists/deb.debian.org_Packages", "cache.apt-lists"),
        ("var/cache/apt/archives/gcc.deb", "cache.apt"),
        ("var/cache/debconf/config.dat-old", "cache.apt"),
        ("var/lib/dpkg/status-old", "cache.apt"),
        ("root/.cache/pip/http-v2/a/b", "cache.pip"),
        ("home/app/.cache/pip/wheels/x.whl", "cache.pip"),
        ("root/.cache/uv/archive-v0/x", "cache.uv"),
        ("home/any/.cache/pypoetry/cache/y", "cache.python-tools"),
        ("home/any/.cache/pypoetry/artifacts/y", "cache.python-tools"),
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
        "usr/share/doc/zabbix/create.sql.gz",
        "usr/share/doc/p/examples/run.py",
        "usr/share/doc/p/sql/upgrade",
        "root/.cache/pypoetry/virtualenvs/app/lib/x.py",
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


def test_programs_among_the_documentation_stay(tmp_path: Path) -> None:
    layer = {"usr/share/doc/p/setup": File(b"#!/bin/sh", mode=0o755), "usr/share/doc/p/README": File(b"r")}
    assert list(dropped(claims_of(tmp_path, layer))) == ["usr/share/doc/p/README"]


def test_an_environment_below_a_cache_is_no_cache(tmp_path: Path) -> None:
    layer = {"root/.cache/pip/env/pyvenv.cfg": b"", "root/.cache/pip/env/lib/x": b"x", "root/.cache/pip/other": b"o"}
    assert list(dropped(claims_of(tmp_path, layer))) == ["root/.cache/pip/other"]


@pytest.mark.parametrize(
    ("runtime", "stays"),
    [
        ({"Cmd": ["uv", "run", "app"]}, True),
        ({"Entrypoint": ["/usr/local/bin/uvx"], "Cmd": ["app"]}, True),
        ({"Cmd": ["/bin/sh", "-c", "uv run app"]}, True),
        ({"Cmd": ["/bin/sh", "-c", "cd /app&&exec /root/.local/bin/uv run app"]}, True),
        ({"Cmd": ["python", "-m", "uvicorn", "uv.main:app"]}, False),
        ({"Cmd": ["/bin/sh", "-c", "echo uv-cache"]}, False),
    ],
)
def test_uvs_cache_stays_where_uv_starts_the_image(tmp_path: Path, runtime: dict[str, Any], *, stays: bool) -> None:
    claims = claims_of(tmp_path, {"root/.cache/uv/archive-v0/x": b"x"}, runtime=runtime)
    assert dropped(claims) == ({} if stays else {"root/.cache/uv/archive-v0/x": "cache.uv"})


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
    assert set(dropped(claims_of(tmp_path, debian(_TOOLS, _DEPENDS)))) == {
        "usr/bin/gcc",
        "usr/bin/gcc-12",
        "usr/bin/g++-12",
        "usr/bin/make",
        "usr/include/stdio.h",
        "usr/lib/libc.a",
    }


@pytest.mark.parametrize(
    ("name", "stay", "go"),
    [
        ("triton", {"usr/bin/gcc", "usr/bin/gcc-12", "usr/include/stdio.h", "usr/lib/libc.a"}, {"usr/bin/make"}),
        ("torch", {"usr/bin/g++-12", "usr/bin/gcc-12", "usr/include/stdio.h", "usr/bin/make"}, set()),
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
        assert name in claims[path].match.because
    ignored = claims_of(tmp_path, layer, heed_jit=False)
    assert (stay | go) <= set(dropped(ignored))


@pytest.mark.parametrize("package", [f"{SITE}/torch", "usr/lib/python3/dist-packages/triton"])
def test_who_compiles_is_seen_without_metadata(tmp_path: Path, package: str) -> None:
    tools = debian(_TOOLS, _DEPENDS)
    claims = claims_of(tmp_path, {**tools, f"{package}/__init__.py": b""})
    assert "usr/bin/gcc-12" not in dropped(claims)
    assert package.rpartition("/")[2] in held(claims)["usr/bin/gcc-12"]
    elsewhere = claims_of(tmp_path, {**tools, f"{package}/sub/__init__.py": b"", "opt/torch/__init__.py": b""})
    assert "usr/bin/gcc-12" in dropped(elsewhere)


def test_a_compiler_that_stays_holds_every_dev_package(tmp_path: Path) -> None:
    tools = debian({**_TOOLS, "libfoo-dev": {"usr/include/foo.h": b"f", "usr/lib/libfoo.a": _AR}}, _DEPENDS)
    assert {"usr/include/foo.h", "usr/lib/libfoo.a"} <= set(dropped(claims_of(tmp_path, tools)))
    claims = claims_of(tmp_path, {**tools, **distribution("triton", "1.0", {"triton/__init__.py": b""})})
    assert set(dropped(claims)) == {"usr/bin/make", "usr/bin/g++-12"}
    assert "triton" in held(claims)["usr/include/foo.h"]


def test_a_dev_link_to_a_library_proper_stays(tmp_path: Path, tiny: bytes) -> None:
    packages: dict[str, dict[str, What]] = {
        "libgdal32": {"usr/lib/libgdal.so.32": tiny},
        "libgdal-dev": {
            "usr/lib/libgdal.so": Symlink("libgdal.so.32"),
            "usr/lib/libown.so": Symlink("../../opt/libown.so.1"),
            "usr/lib/libtool.so": Symlink("libtool.so.1"),
            "usr/lib/libtool.so.1": tiny,
            "usr/lib/script.so": Symlink("script.so.txt"),
        },
        "gdal-data": {"usr/lib/script.so.txt": b"INPUT(x)"},
    }
    gone = dropped(claims_of(tmp_path, {**debian(packages), "opt/libown.so.1": tiny}))
    assert set(gone) == {"usr/lib/libtool.so", "usr/lib/libtool.so.1", "usr/lib/script.so"}


def test_metapackages_of_tools_are_tools(tmp_path: Path) -> None:
    packages: dict[str, dict[str, What]] = {
        "cuda-nvcc-12-9": {"usr/local/cuda-12.9/bin/nvcc": b"n"},
        "cuda-toolkit-12-9": {"usr/share/doc/cuda-toolkit-12-9/copyright": b"c"},
        "cuda-12-9": {"usr/share/doc/cuda-12-9/changelog.gz": b"c"},
        "cuda-cudart-12-9": {"usr/local/cuda-12.9/lib64/libcudart.so.12": b"c"},
        "cuda-runtime-12-9": {"usr/share/doc/cuda-runtime-12-9/copyright": b"c"},
        "make": {"usr/bin/make": b"m"},
        "loner": {"usr/share/doc/loner/copyright": b"c", "usr/lib/loner/x": b"x"},
    }
    fields = {
        "cuda-12-9": "Depends: cuda-toolkit-12-9 (>= 12.9.1), cuda-runtime-12-9",
        "cuda-toolkit-12-9": "Depends: cuda-nvcc-12-9",
        "cuda-runtime-12-9": "Depends: cuda-cudart-12-9",
        "loner": "Depends: make",
    }
    claims = claims_of(tmp_path, debian(packages, fields))
    assert set(dropped(claims)) == {
        "usr/local/cuda-12.9/bin/nvcc",
        "usr/share/doc/cuda-12-9/changelog.gz",
        "usr/share/doc/cuda-toolkit-12-9/copyright",
    }
    assert "the package loner depends on it" in held(claims)["usr/bin/make"]


def test_docker_credential_helpers_are_no_tools(tmp_path: Path) -> None:
    helper: dict[str, What] = {"usr/bin/docker-credential-pass": b"d"}
    packages = {"golang-docker-credential-helpers": helper, "golang-1.19-go": {"usr/lib/go-1.19/bin/go": b"g"}}
    assert set(dropped(claims_of(tmp_path, debian(packages)))) == {"usr/lib/go-1.19/bin/go"}


@pytest.mark.parametrize("folder", ["usr/local/cuda-12.9", "usr/local/cuda-12.9/targets/x86_64-linux"])
def test_nvrtc_keeps_the_headers_of_cuda(tmp_path: Path, folder: str) -> None:
    packages: dict[str, dict[str, What]] = {
        "cuda-cccl-12-9": {f"{folder}/include/nv/target": b"t"},
        "cuda-cudart-dev-12-9": {f"{folder}/include/cuda.h": b"h"},
        "cuda-nvcc-12-9": {"usr/local/cuda-12.9/bin/nvcc": b"n"},
        "gcc-12": {"usr/bin/gcc-12": b"g"},
        "libfoo-dev": {"usr/include/foo.h": b"f"},
    }
    tools = debian(packages)
    assert f"{folder}/include/nv/target" in dropped(claims_of(tmp_path, tools))
    claims = claims_of(tmp_path, {**tools, **distribution("cupy-cuda12x", "1.0", {"cupy/__init__.py": b""})})
    assert set(dropped(claims)) == {"usr/local/cuda-12.9/bin/nvcc", "usr/bin/gcc-12", "usr/include/foo.h"}


def test_a_package_that_stays_holds_what_it_depends_on(tmp_path: Path) -> None:
    packages = {**_TOOLS, "dkms": {"usr/bin/dkms": b"d"}, "helper": {"usr/bin/helper": b"h"}}
    claims = claims_of(tmp_path, debian(packages, {**_DEPENDS, "dkms": "Depends: helper, make:any | gmake"}))
    assert "usr/bin/make" not in dropped(claims)
    assert "the package dkms depends on it" in claims["usr/bin/make"].match.because
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
        {"Cmd": ["/bin/sh", "-c", "cd /srv && exec make serve"]},
        {"Cmd": ["/bin/sh", "-c", "true; (make|cat)"]},
        {"Cmd": ["/bin/sh", "-c", "/usr/bin/make 'an open quote"]},
        {"Healthcheck": {"Test": ["CMD", "make", "health"]}},
        {"Healthcheck": {"Test": ["CMD-SHELL", "make health || exit 1"]}},
        {"Entrypoint": ["bin/make"], "WorkingDir": "/usr"},
        {"Entrypoint": ["./make"], "WorkingDir": "/usr/bin"},
        {"Entrypoint": ["usr/bin/make"]},
        {"Env": ["LD_PRELOAD=/usr/bin/make"]},
        {"Env": ["LD_PRELOAD=/none.so:/usr/bin/../bin/make"]},
        {"Env": ["LD_PRELOAD=/none.so /usr/bin/make"]},
        {"Env": ["GDAL_LIBRARY_PATH=/usr/bin/make"]},
    ],
)
def test_what_the_image_starts_stays(tmp_path: Path, runtime: dict[str, Any]) -> None:
    layer = {**debian(_TOOLS, _DEPENDS), "opt/links/m": Symlink("../../usr/bin/make")}
    if runtime.get("Entrypoint") != ["m"]:
        del layer["opt/links/m"]  # it holds make all by itself
    claims = claims_of(tmp_path, layer, runtime=runtime)
    assert held(claims) == {"usr/bin/make": "package make: the image starts it"}
    assert "usr/bin/gcc-12" in dropped(claims)


_ODD: list[dict[str, Any]] = [
    {"Healthcheck": ["make"]},
    {"Healthcheck": {"Test": "make"}},
    {"Healthcheck": {"Test": None}},
    {"WorkingDir": 5, "Cmd": ["bin/make"]},
    {"WorkingDir": "/srv", "Cmd": ["usr/bin/make"]},
]


@pytest.mark.parametrize(
    "runtime", [{"Entrypoint": "make"}, {"Entrypoint": [], "Cmd": None}, {"Cmd": [1, None]}, *_ODD]
)
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


@pytest.mark.parametrize("link", ["aaa/own", "zzz/own"])
def test_alternatives_stay_with_what_another_link_holds(tmp_path: Path, link: str) -> None:
    layer = {
        **debian({"gcc-12": {"usr/bin/gcc-12": b"g"}}),
        "usr/bin/cc": Symlink("/etc/alternatives/cc"),
        "etc/alternatives/cc": Symlink("/usr/bin/gcc-12"),
        link: Symlink("/usr/bin/gcc-12"),
    }
    assert dropped(claims_of(tmp_path, layer)) == {}


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


def test_links_inside_what_a_link_holds_hold_on(tmp_path: Path) -> None:
    layer: Layer = {
        "root/.cache/uv/a/l": Symlink("../b/f"),
        "root/.cache/uv/b/f": Symlink("../c/g"),
        "root/.cache/uv/b/gone": b"x",
        "root/.cache/uv/c/g": b"g",
        "opt/app/x": Symlink("/root/.cache/uv/a"),
    }
    assert list(dropped(claims_of(tmp_path, layer))) == ["root/.cache/uv/b/gone"]


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


def owned(layer: Layer) -> Layer:
    """The layer, all of it from one package."""
    return debian({"p": layer})


def test_duplicates_become_links(tmp_path: Path) -> None:
    layer = {"usr/lib/a": _BIG, "opt/b": _BIG, "usr/lib/c": _BIG, "usr/lib/small": b"s", "usr/lib/small2": b"s"}
    assert links(claims_of(tmp_path, owned(layer))) == {"usr/lib/a": "opt/b", "usr/lib/c": "opt/b"}


def test_duplicates_of_packages_and_distributions_only(tmp_path: Path) -> None:
    layer = {**owned({"usr/lib/a": _BIG}), **distribution("d", "1.0", {"d/b": _BIG}), "opt/app/c": _BIG}
    assert links(claims_of(tmp_path, layer)) == {f"{SITE}/d/b": "usr/lib/a"}


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_what_others_than_root_write_is_never_linked(tmp_path: Path, mode: int) -> None:
    assert links(claims_of(tmp_path, owned({"usr/a": File(_BIG, mode=mode), "usr/b": File(_BIG, mode=mode)}))) == {}


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
    assert links(claims_of(tmp_path, owned({"usr/a": _BIG, "usr/b": other}))) == {}


def test_times_matter_for_python_sources_only(tmp_path: Path) -> None:
    layer = {
        "usr/a.so": File(_BIG, mtime=1),
        "usr/b.so": File(_BIG, mtime=2),
        "usr/a.py": File(_BIG + b"py", mtime=1),
        "usr/b.py": File(_BIG + b"py", mtime=2),
        "usr/c.py": File(_BIG + b"py", mtime=2),
    }
    assert links(claims_of(tmp_path, owned(layer))) == {"usr/b.so": "usr/a.so", "usr/c.py": "usr/b.py"}


def test_duplicates_of_what_goes_share_one_that_stays(tmp_path: Path) -> None:
    header = b"#define X\n" * 500
    layer = {"usr/include/x.h": header, "usr/lib/m/x.h": header, "usr/lib/n/x.h": header}
    claims = claims_of(tmp_path, owned(layer))
    assert dropped(claims) == {"usr/include/x.h": "compile.headers"}
    assert links(claims) == {"usr/lib/n/x.h": "usr/lib/m/x.h"}


def test_users_files_are_never_linked(tmp_path: Path) -> None:
    layer = owned({"home/a": _BIG, "srv/b": _BIG, "etc/c": _BIG, "var/d": _BIG})
    assert links(claims_of(tmp_path, layer)) == {}


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


_HEADERS: dict[str, What] = {
    **distribution("numpy", "1.0", {"numpy/include/n.h": b"h", "numpy/core.h": b"h", "numpy/lib/libn.a": _AR}),
    **distribution("nvidia-cublas", "13.0", {"nvidia/cu13/include/cublas.h": b"h", "nvidia/cu13/lib/libc.a": _AR}),
    "usr/local/include/python3.11/Python.h": b"h",
    "usr/local/cuda-13/include/cuda.h": b"h",
}
_CUDA_HEADERS = {f"{SITE}/nvidia/cu13/include/cublas.h", "usr/local/cuda-13/include/cuda.h"}
_PYTHON_HEADER = "usr/local/include/python3.11/Python.h"


@pytest.mark.parametrize(
    ("name", "stay"),
    [
        ("requests", set()),
        ("torch", {f"{SITE}/numpy/include/n.h", _PYTHON_HEADER, *_CUDA_HEADERS}),
        ("cupy-cuda13x", {f"{SITE}/numpy/include/n.h", *_CUDA_HEADERS}),
        ("deepspeed", {f"{SITE}/numpy/include/n.h", _PYTHON_HEADER, *_CUDA_HEADERS}),
    ],
)
def test_headers_in_distributions_stay_with_any_compiler(tmp_path: Path, name: str, stay: set[str]) -> None:
    claims = claims_of(tmp_path, {**_HEADERS, **distribution(name, "2.0", {"m/__init__.py": b""})})
    headers = {f"{SITE}/numpy/include/n.h", _PYTHON_HEADER, *_CUDA_HEADERS}
    gone = set(dropped(claims))
    assert f"{SITE}/numpy/lib/libn.a" in gone
    assert (f"{SITE}/nvidia/cu13/lib/libc.a" in gone) == (name in {"requests", "torch"})
    assert gone & headers == headers - stay
    assert headers & set(held(claims)) == stay
    assert all(f": {name} " in evidence for evidence in held(claims).values())


@pytest.mark.parametrize("deep", [100, 1500])
def test_caches_as_deep_as_linux_allows(tmp_path: Path, deep: int) -> None:
    path = f"root/.cache/pip/{'d/' * deep}x"
    assert list(dropped(claims_of(tmp_path, {path: b"x"}))) == [path]


def test_a_package_without_a_list_of_files_is_no_metapackage(tmp_path: Path) -> None:
    layer = debian({"make": {"usr/bin/make": b"x"}, "keeper": {}}, {"keeper": "Depends: make"})
    del layer["var/lib/dpkg/info/keeper.list"]
    assert "usr/bin/make" in held(claims_of(tmp_path, layer))


@pytest.mark.parametrize(
    "runtime", [{"Cmd": ["/root/.cache/uv/a"]}, {"Env": ["PYTHONPATH=/root/.cache/uv/a"]}, {"Cmd": ["sh", "run"]}]
)
def test_what_lies_below_a_named_directory_of_a_cache_stays(tmp_path: Path, runtime: dict[str, Any]) -> None:
    layer: Layer = {"root/.cache/uv/a/m.py": b"x", "usr/share/doc/app/run": b"x"}
    found = dropped(claims_of(tmp_path, layer, runtime={"WorkingDir": "/usr/share/doc/app", **runtime}))
    gone = "root/.cache/uv/a/m.py" if "sh" in runtime.get("Cmd", ()) else "usr/share/doc/app/run"
    assert set(found) == {gone}
