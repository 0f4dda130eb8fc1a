"""Builds that make files smaller: what the image then holds, what stays whole, and what is told about it."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import zstandard

from slimgpu.analysis.claims import claim
from slimgpu.elf.arch import parse_target
from slimgpu.elf.choice import Policy
from slimgpu.elf.shrink import Wanted, shrink_file
from slimgpu.errors import MissingGpuCodeError, UsageError
from slimgpu.layers.compress import Format
from slimgpu.rootfs.tarread import TarReader
from slimgpu.slim.build import build
from slimgpu.slim.plan import Action, Do, Plan, Wishes, load_plan, make_plan
from tests.support.gpu_code import Workshop, nvcc
from tests.support.trees import SITE, Hardlink, Symlink, debian, distribution, facts_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.trees import Layer, What

_H100 = Wanted(Policy((parse_target("h100"),)))


def built(
    tmp_path: Path, layer: Layer, wanted: Wanted, *, keep: tuple[str, ...] = (), plan: Plan | None = None, jobs: int = 2
) -> tuple[dict[str, bytes], Plan, list[str]]:
    """The content of every file in the slim image, the plan, and the layers' digests."""
    with facts_of(tmp_path, layer, wanted=wanted, jobs=jobs) as (image, facts, context):
        plan = plan or make_plan(image, facts, claim(facts), Wishes(keep))
        plan = load_plan(plan.dump(), "the plan")
        result = build(image, facts, plan, Format.ZSTD, tmp_path / "blobs", context)
        files: dict[str, bytes] = {}
        for written in result.image.layers:
            with written.open() as chunks:
                tar = zstandard.ZstdDecompressor().decompressobj().decompress(b"".join(chunks))
            for entry in TarReader(tar, "a layer"):
                content = tar[entry.offset : entry.offset + entry.size]
                files[entry.path] = files[entry.link] if entry.kind == "hardlink" else content
    return files, plan, [written.diff_id for written in result.image.layers]


def shrunk(library: Path, tmp_path: Path, wanted: Wanted) -> bytes:
    result = shrink_file(library, tmp_path / "alone", wanted)
    assert result.after < result.before
    return (tmp_path / "alone").read_bytes()


def test_the_image_holds_the_smaller_file(shop: Workshop, tmp_path: Path) -> None:
    library = shop.get("plain.so")
    files, plan, _ = built(
        tmp_path, {"usr/lib/a.so": library.read_bytes(), "usr/lib/b.so": Hardlink("usr/lib/a.so")}, _H100
    )

    assert files["usr/lib/a.so"] == files["usr/lib/b.so"] == shrunk(library, tmp_path, _H100)
    did = {(action.path, action.rule): action for action in plan.actions if action.do is Do.SHRINK}
    saved = sum(action.bytes for action in did.values())
    assert saved == library.stat().st_size - len(files["usr/lib/a.so"])
    assert set(did) == {(f"usr/lib/{name}.so", rule) for name in "ab" for rule in ("debug.sections", "gpu.libraries")}
    assert plan.gpu_code.gpus == ("sm_90",)


def test_workers_and_a_second_time_change_nothing(shop: Workshop, tmp_path: Path) -> None:
    layer = {f"usr/lib/{name}": shop.get(name).read_bytes() for name in ("plain.so", "nodebug.so", "rdc.so")}
    results = {tuple(built(tmp_path, layer, _H100, jobs=jobs)[2]) for jobs in (1, 4, 4)}
    assert len(results) == 1


@pytest.mark.parametrize("kept", ["/usr/lib/a.so", "/usr/lib/b.so"])
def test_a_file_that_is_kept_under_one_name_stays_whole_under_all(shop: Workshop, tmp_path: Path, kept: str) -> None:
    library = shop.get("plain.so").read_bytes()
    files, plan, _ = built(
        tmp_path, {"usr/lib/a.so": library, "usr/lib/b.so": Hardlink("usr/lib/a.so")}, _H100, keep=(kept,)
    )
    assert files["usr/lib/a.so"] == files["usr/lib/b.so"] == library
    assert not plan.actions


def test_duplicates_become_links_to_the_smaller_file(shop: Workshop, tmp_path: Path) -> None:
    library = shop.get("plain.so")
    layer = distribution(
        "a", "1", {"a.so": library.read_bytes(), "b.so": library.read_bytes()}, site="usr/lib/site-packages"
    )
    files, plan, _ = built(tmp_path, layer, _H100)
    assert files["usr/lib/site-packages/a.so"] == shrunk(library, tmp_path, _H100)
    assert {action.do for action in plan.actions if action.path.endswith("b.so")} == {Do.LINK}


def test_records_of_distributions_stay_true(shop: Workshop, tmp_path: Path) -> None:
    library = shop.get("plain.so")
    source = tmp_path / "kernel.cu"
    source.write_text("__global__ void kernel(float *p) { p[0] = 1; }")
    nvcc("-cubin", "-arch=sm_100", source, "-o", tmp_path / "cubin")
    info = "k-1.dist-info"
    rest = f"k/d.py,sha256=z,3\r\nbroken\r\n../../bin/t,,\r\n{info}/RECORD,,\r\n"
    old = f'"k/a,b.so",sha256=x,1\r\nk/c.cubin,sha256=y,2\r\n{rest}'
    files: dict[str, What] = {
        f"{SITE}/k/a,b.so": library.read_bytes(),
        f"{SITE}/k/c.cubin": (tmp_path / "cubin").read_bytes(),
        f"{SITE}/k/d.py": b"1",
        f"{SITE}/{info}/METADATA": "Name: k\nVersion: 1\n\n",
        f"{SITE}/{info}/RECORD": old,
    }

    after, plan, _ = built(tmp_path, files, _H100)

    data = shrunk(library, tmp_path, _H100)
    assert after[f"{SITE}/k/a,b.so"] == data
    assert f"{SITE}/k/c.cubin" not in after
    assert after[f"{SITE}/{info}/RECORD"].decode() == (f'"k/a,b.so",sha256={encoded(data)},{len(data)}\r\n{rest}')
    (edit,) = [action for action in plan.actions if action.do is Do.EDIT]
    assert (edit.rule, edit.reason) == ("slim.records", "2 of the files that it names go or change")


def test_native_code_only(shop: Workshop, tmp_path: Path) -> None:
    layer = {"usr/lib/plain.so": shop.get("plain.so").read_bytes()}
    policy = Policy((parse_target("l40s"),), native=True)
    sentence = (
        r"nothing but PTX for a GPU that is wanted: 2, most in usr/lib/plain.so \(.*kernel.*\); leave out --gpu-native"
    )
    with pytest.raises(MissingGpuCodeError, match=sentence):
        built(tmp_path, layer, Wanted(policy))
    with facts_of(tmp_path, layer, wanted=Wanted(policy)) as (image, facts, _):
        assert make_plan(image, facts, claim(facts), Wishes(drop=("/usr/lib/plain.so",))).actions, "it goes anyway"
        assert not make_plan(image, facts, claim(facts), Wishes(keep=("/usr/lib/plain.so",))).actions, "it stays whole"


def test_a_plan_can_shrink_only_what_gets_smaller(shop: Workshop, tmp_path: Path) -> None:
    layer = {"usr/lib/a.so": shop.get("plain.so").read_bytes(), "etc/text": b"text", "usr/lib/b.so": Symlink("a.so")}
    _, plan, _ = built(tmp_path, layer, _H100)
    for path in ("etc/text", "usr/lib/b.so", "etc"):
        wrong = replace(plan, actions=(*plan.actions, Action(path, Do.SHRINK, "gpu.libraries", "", 1)))
        with pytest.raises(UsageError, match=f"wants to shrink '{path}', which cannot be"):
            built(tmp_path, layer, _H100, plan=wrong)


@pytest.mark.parametrize("seal", ["usr/lib/b/.x.so.hmac", "usr/lib/b/x.so.sig", "usr/lib/a/x.so.sha256"])
@pytest.mark.parametrize("linked", [True, False])
def test_a_seal_holds_for_every_name(shop: Workshop, tmp_path: Path, seal: str, *, linked: bool) -> None:
    library = shop.get("plain.so").read_bytes()
    again: What = Hardlink("usr/lib/a/x.so") if linked else library
    packages = debian({"a": {"usr/lib/a/x.so": library}, "b": {"usr/lib/b/x.so": again}})
    files, plan, _ = built(tmp_path, {**packages, seal: b"x"}, _H100)
    assert files["usr/lib/a/x.so"] == files["usr/lib/b/x.so"] == library
    assert Do.SHRINK not in {action.do for action in plan.actions}


def test_two_environments_share_a_library_and_not_their_records(shop: Workshop, tmp_path: Path) -> None:
    library = shop.get("plain.so")
    more = {f"x/module{number}.py": b"" for number in range(300)}
    sites = ("usr/lib/one", "usr/lib/two")
    layer: dict[str, What] = {}
    for site in sites:
        layer |= distribution("x", "1", {"x/a.so": library.read_bytes(), **more}, site=site)
        record = layer[f"{site}/x-1.dist-info/RECORD"]
        assert isinstance(record, str)
        layer[f"{site}/x-1.dist-info/RECORD"] = record.replace("x/a.so,,", "x/a.so,sha256=old,1")

    files, _, _ = built(tmp_path, layer, _H100)
    kept, _, _ = built(tmp_path, layer, _H100, keep=("/usr/lib/two/x/a.so",))

    line = f"x/a.so,sha256={encoded(shrunk(library, tmp_path, _H100))},"
    for site in sites:
        assert line in files[f"{site}/x-1.dist-info/RECORD"].decode()
    assert line in kept["usr/lib/one/x-1.dist-info/RECORD"].decode()
    assert "x/a.so,sha256=old,1\n" in kept["usr/lib/two/x-1.dist-info/RECORD"].decode()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"k/a.so","sha256=x","1"\n', "k/a.so,sha256={},{}\n"),
        ("k/a.so,sha256=x,1", "k/a.so,sha256={},{}"),
        ("k/a.so,,\n", "k/a.so,,\n"),
        ("k/a.so,sha256=x\n", "k/a.so,sha256=x\n"),
        ("k/no\x85such.so,sha256=x,1\n", "k/no\x85such.so,sha256=x,1\n"),
    ],
)
def test_lines_of_records(shop: Workshop, tmp_path: Path, before: str, after: str) -> None:
    library = shop.get("plain.so")
    info = f"{SITE}/k-1.dist-info"
    layer = {f"{SITE}/k/a.so": library.read_bytes(), f"{info}/METADATA": "Name: k\n\n", f"{info}/RECORD": before}
    files, _, _ = built(tmp_path, layer, _H100)
    data = shrunk(library, tmp_path, _H100)
    assert files[f"{info}/RECORD"].decode() == after.format(encoded(data), len(data))


@pytest.mark.parametrize("more", [{"RECORD.jws": b"{}"}, {"RECORD.p7s": b"{}"}])
def test_signed_records_stay(shop: Workshop, tmp_path: Path, more: dict[str, bytes]) -> None:
    info = f"{SITE}/k-1.dist-info"
    layer = distribution("k", "1", {"k/a.so": shop.get("plain.so").read_bytes()})
    _, plan, _ = built(tmp_path, {**layer, **{f"{info}/{name}": data for name, data in more.items()}}, _H100)
    assert Do.EDIT not in {action.do for action in plan.actions}


def test_a_record_that_is_a_link_stays(shop: Workshop, tmp_path: Path) -> None:
    layer = distribution("k", "1", {"k/a.so": shop.get("plain.so").read_bytes()})
    record = f"{SITE}/k-1.dist-info/RECORD"
    files, plan, _ = built(tmp_path, {**layer, "opt/REC": layer[record], record: Symlink("/opt/REC")}, _H100)
    assert files["opt/REC"].decode() == layer[record]
    assert {action.do for action in plan.actions} == {Do.SHRINK}


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
