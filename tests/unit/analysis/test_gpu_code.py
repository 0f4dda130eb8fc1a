"""What an analysis says of GPU code, and which files rules let go or make smaller."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from slimgpu.analysis.analysis import Analysis, summarize
from slimgpu.analysis.claims import claim
from slimgpu.analysis.rules.rule import Effect
from slimgpu.elf.arch import parse_target
from slimgpu.elf.choice import Policy
from slimgpu.elf.shrink import NOTHING, SYMBOLS_ONLY, Wanted, shrink_file
from slimgpu.errors import UsageError
from tests.support.gpu_code import Workshop, nvcc
from tests.support.trees import SITE, File, Hardlink, Symlink, distribution, facts_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.trees import Layer


def wanted(*gpus: str) -> Wanted:
    return Wanted(Policy(tuple(map(parse_target, gpus))))


def analysis_of(tmp_path: Path, layer: Layer, wish: Wanted) -> Analysis:
    with facts_of(tmp_path, layer, wanted=wish) as (image, facts, _):
        return summarize(image, facts, claim(facts))


def findings(analysis: Analysis) -> dict[str, tuple[str, int, int]]:
    return {finding.rule: (finding.effect, finding.bytes, finding.files) for finding in analysis.findings}


def test_without_a_gpu_the_code_is_only_counted(shop: Workshop, tmp_path: Path) -> None:
    library = shop.get("plain.so")
    layer = distribution("kernels", "1", {"kernels/plain.so": library.read_bytes()})

    analysis = analysis_of(tmp_path, layer, NOTHING)

    names = {row.name for row in analysis.gpu_code.architectures}
    assert {"sm_75", "sm_90", "sm_90a", "sm_100f", "sm_103a", "compute_90", "compute_90a"} <= names
    assert analysis.gpu_code.targets == ()
    assert analysis.gpu_code.kept == analysis.gpu_code.bytes
    assert not {"gpu.libraries", "gpu.files", "debug.sections"} & set(findings(analysis))


def test_a_gpu_tells_what_stays(shop: Workshop, tmp_path: Path) -> None:
    library = shop.get("plain.so")
    alone = shrink_file(library, tmp_path / "alone.so", wanted("h100"))
    layer = {"usr/lib/plain.so": library.read_bytes(), "usr/lib/again.so": Hardlink("usr/lib/plain.so")}

    analysis = analysis_of(tmp_path, layer, wanted("h100"))

    assert alone.after < alone.before
    assert findings(analysis)["gpu.libraries"] == (Effect.SHRINK, alone.before - alone.after - alone.symbols, 2)
    assert findings(analysis)["debug.sections"] == (Effect.SHRINK, alone.symbols, 2)
    (found,) = analysis.gpu_code.libraries
    assert (found.bytes, found.kept, found.method) == (alone.before, alone.after, "packed")
    kept = {row.name for row in analysis.gpu_code.architectures if row.kept}
    assert kept == {"sm_90", "sm_90a"}


def test_symbols_go_without_a_gpu_too(shop: Workshop, tmp_path: Path) -> None:
    library = shop.get("plain.so")
    alone = shrink_file(library, tmp_path / "alone.so", SYMBOLS_ONLY)

    analysis = analysis_of(tmp_path, {"usr/lib/plain.so": library.read_bytes()}, SYMBOLS_ONLY)

    assert findings(analysis)["debug.sections"] == (Effect.SHRINK, alone.before - alone.after, 1)
    assert "gpu.libraries" not in findings(analysis)


def test_files_that_are_code(shop: Workshop, tmp_path: Path) -> None:
    source = tmp_path / "kernel.cu"
    source.write_text("__global__ void kernel(float *p) { p[0] = 1; }")
    layer: dict[str, bytes] = {"opt/all.bin": shop.get("raw.fatbin").read_bytes()}
    for name in ("80", "90", "100"):
        nvcc("-cubin", f"-arch=sm_{name}", source, "-o", tmp_path / "cubin")
        nvcc("-ptx", f"-arch=compute_{name}", source, "-o", tmp_path / "ptx")
        layer |= {
            f"opt/k{name}.data": (tmp_path / "cubin").read_bytes(),
            f"opt/k{name}.txt": (tmp_path / "ptx").read_bytes(),
        }

    with facts_of(tmp_path, layer, wanted=wanted("h100")) as (image, facts, _):
        claims = claim(facts)
        analysis = summarize(image, facts, claims)

    gone = {path: found.rule.id for path, found in claims.items() if found.effect is Effect.DROP}
    assert gone == dict.fromkeys(["opt/k80.data", "opt/k100.data", "opt/k100.txt"], "gpu.files")
    assert "sm_100, which sm_90 cannot use" in claims["opt/k100.data"].match.evidence
    (library,) = analysis.gpu_code.libraries
    assert library.path == "opt/all.bin"
    assert library.kept < library.bytes


@pytest.mark.parametrize(
    ("seal", "content"),
    [
        ("usr/lib/plain.chk", ""),
        ("usr/lib/.plain.so.hmac", ""),
        ("usr/lib/.plain.so.1.hmac", ""),
        ("usr/lib/fipscheck/plain.so.1.hmac", ""),
        ("usr/lib/.other.so.hmac", "[plain.so]\npath = /usr/lib/plain.so\nhmac = 00\n"),
        ("usr/lib/plain.so.sha256", ""),
        ("usr/lib/SHA256SUMS", "00 *plain.so\n11  none\n"),
        ("usr/checksums.txt", "00  lib/plain.so\n"),
    ],
)
def test_what_something_vouches_for_stays_whole(shop: Workshop, tmp_path: Path, seal: str, content: str) -> None:
    layer = {"usr/lib/plain.so": shop.get("plain.so").read_bytes(), "usr/lib/plain.so.1": Symlink("plain.so")}
    analysis = analysis_of(tmp_path, {**layer, seal: content}, wanted("h100"))
    (found,) = analysis.gpu_code.libraries
    assert found.kept == found.bytes
    assert found.untouched == f"{seal} vouches for its bytes"
    assert not {"gpu.libraries", "debug.sections"} & set(findings(analysis))


@pytest.mark.parametrize("seal", ["usr/lib/plain.so.md", "usr/lib/other.so.sig", "opt/plain.so.sig", "usr/lib/SUMS"])
def test_what_has_nothing_to_do_with_it_holds_nothing(shop: Workshop, tmp_path: Path, seal: str) -> None:
    layer = {"usr/lib/plain.so": shop.get("plain.so").read_bytes(), seal: "x plain.so"}
    assert "gpu.libraries" in findings(analysis_of(tmp_path, layer, wanted("h100")))


@pytest.mark.parametrize(
    ("name", "xattrs"), [("plain.so", (("security.ima", b"\x03"),)), ("fips.so", ())], ids=["attribute", "fips"]
)
def test_other_seals(shop: Workshop, tmp_path: Path, name: str, xattrs: tuple[tuple[str, bytes], ...]) -> None:
    library = File(shop.get("plain.so").read_bytes(), xattrs=xattrs)
    analysis = analysis_of(tmp_path, {f"usr/lib/{name}": library}, wanted("h100"))
    assert analysis.gpu_code.libraries[0].untouched.endswith(" vouches for its bytes")


def test_a_gpu_for_which_there_is_nothing(shop: Workshop, tmp_path: Path) -> None:
    layer = {"usr/lib/plain.so": shop.get("plain.so").read_bytes()}
    with pytest.raises(UsageError, match=r"nothing in the image runs on sm_70: it has .*sm_75.*; name other GPUs"):
        analysis_of(tmp_path, layer, wanted("v100", "h100"))


def test_an_image_without_any_gpu_code_is_for_every_gpu(tmp_path: Path) -> None:
    analysis = analysis_of(tmp_path, distribution("x", "1", {"x.py": b"1"}, site=SITE), wanted("v100"))
    assert analysis.gpu_code.bytes == 0


def test_code_in_other_places_is_told_and_left_alone(shop: Workshop, tmp_path: Path) -> None:
    """As cuFFT keeps it."""
    fatbin = shop.get("raw.fatbin").read_bytes()
    source = tmp_path / "data.s"
    source.write_text(f'.section .rodata\n.balign 64\n.incbin "{shop.get("raw.fatbin")}"\n')
    subprocess.run(["gcc", "-shared", "-nostdlib", "-o", tmp_path / "data.so", source], check=True)

    analysis = analysis_of(tmp_path, {"usr/lib/data.so": (tmp_path / "data.so").read_bytes()}, wanted("h100"))

    (found,) = analysis.gpu_code.libraries
    assert found.method == ""
    assert found.scattered == len(fatbin)
    assert analysis.gpu_code.kept == analysis.gpu_code.bytes == len(fatbin) - 16
