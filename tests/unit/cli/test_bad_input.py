"""Every wrong input ends in one sentence, the right exit code, and nothing left behind."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest
import zstandard

from slimgpu.cli.main import main
from tests.support.trees import Hardlink, Symlink, compressed, digest, tar_of, write_layout

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.gpu_code import Workshop

_LAYER = {"usr/bin/x": b"x" * 5000, "var/lib/apt/lists/l": b"y" * 5000, "etc/passwd": "root:x:0:0::/:\n"}


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def called(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return called


Run = "Callable[..., tuple[int, str, str]]"


def refused(result: tuple[int, str, str], code: int, *said: str) -> None:
    """The exit code, nothing on stdout, and one sentence that says these things."""
    found, out, err = result
    assert (found, out) == (code, ""), err
    assert "Traceback" not in err
    assert "internal error" not in err
    message = err.strip().splitlines()[-1]
    for text in said:
        assert text in message, err


def files_of(cache: Path) -> list[str]:
    """What a failure must not leave in the cache: anything half-written or temporary."""
    return [str(path) for path in cache.rglob("*") if ".partial" in path.name or path.parent.name == "tmp"]


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("", "names no image"),
        ("UPPER CASE", "names no image"),
        ("docker://", "names no image"),
        ("oci:", "the path is missing"),
        ("podman:x", "unknown transport 'podman'"),
        ("oci-archve:x.tar", "did you mean oci-archive:"),
        ("http://host/x", "unknown transport 'http'"),
        ("host/x@sha256:abc", "no valid digest"),
    ],
)
@pytest.mark.parametrize("command", ["analyze", "build"])
def test_names_of_images(run: Run, command: str, reference: str, said: str) -> None:
    more = ["--to", "oci:/nowhere/x"] if command == "build" else []
    refused(run(command, reference, *more), 2, said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["analyze"], "Missing argument 'IMAGE'"),
        (["analyze", "oci:x", "--nope"], "No such option"),
        (["analyze", "oci:x", "--jobs", "0"], "--jobs"),
        (["analyze", "oci:x", "--platform", "linux"], "linux/amd64"),
        (["build", "oci:x"], "--to"),
        (["build", "oci:x", "--to", "oci:y", "--format", "xz"], "--format"),
        (["build", "oci:x", "--dry-run", "--plan", "/nowhere"], "--plan"),
        (["build", "oci:x", "--dry-run", "--plan", "/etc/passwd", "--keep", "a"], "--plan"),
        (["build", "oci:x", "--dry-run", "--plan", "/etc/passwd", "--drop", "a"], "--plan"),
        (["frobnicate"], "No such command"),
    ],
)
def test_wrong_arguments(run: Run, arguments: list[str], said: str) -> None:
    refused(run(*arguments), 2, said)


@pytest.mark.parametrize("reference", ["oci:/nowhere", "oci-archive:/nowhere.tar", "docker-archive:/nowhere.tar"])
def test_images_that_are_not_there(run: Run, reference: str) -> None:
    refused(run("analyze", reference), 1, "/nowhere", "does not exist")


def test_a_directory_that_is_no_layout(run: Run, tmp_path: Path) -> None:
    refused(run("analyze", f"oci:{tmp_path}"), 1, "not an OCI layout")
    refused(run("analyze", f"oci:{tmp_path}:latest"), 1, "not an OCI layout")


def test_a_tag_that_is_not_in_the_layout(run: Run, tmp_path: Path) -> None:
    reference = write_layout(tmp_path / "image", [tar_of(_LAYER)])
    refused(run("analyze", f"{reference}:v9"), 1, "v9 is not in the layout")


def test_another_platform(run: Run, tmp_path: Path) -> None:
    """A manifest without a platform is the only one there is; its own configuration is believed."""
    reference = write_layout(tmp_path / "image", [tar_of(_LAYER)])
    index = json.loads((tmp_path / "image/index.json").read_text())
    index["manifests"][0]["platform"] = {"os": "linux", "architecture": "arm64"}
    (tmp_path / "image/index.json").write_text(json.dumps(index))
    refused(run("analyze", reference), 1, "no image for linux/amd64", "linux/arm64", "--platform")


def spoiled(tmp_path: Path, blob: bytes, form: str = "gzip", tar: bytes | None = None) -> str:
    """An image whose second layer's file holds other bytes than its digest names."""
    tars = [tar_of(_LAYER), tar_of({"opt/y": b"z" * 9000}) if tar is None else tar]
    return write_layout(tmp_path / "image", tars, form=form, blobs={1: blob})


def named(tmp_path: Path, blob: bytes, tar: bytes) -> str:
    """An image with a damaged layer that its manifest describes rightly: only decoding can find out."""
    reference = write_layout(tmp_path / "image", [tar_of(_LAYER), tar])
    blobs = tmp_path / "image/blobs/sha256"
    index = json.loads((tmp_path / "image/index.json").read_text())
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_text())
    manifest["layers"][1] |= {"digest": digest(blob), "size": len(blob)}
    data = json.dumps(manifest).encode()
    (blobs / digest(blob)[7:]).write_bytes(blob)
    (blobs / digest(data)[7:]).write_bytes(data)
    index["manifests"][0] |= {"digest": digest(data), "size": len(data)}
    (tmp_path / "image/index.json").write_text(json.dumps(index))
    return reference


_GOOD = tar_of({"opt/y": bytes(range(256)) * 400})
_BAD_IMAGES: dict[str, tuple[Callable[[Path], str], list[str]]] = {
    "truncated gzip": (
        lambda path: named(path, compressed(_GOOD, "gzip")[1][:-20], _GOOD),
        ["layer sha256:", "truncated gzip"],
    ),
    "gzip cut to its header": (lambda path: named(path, gzip.compress(_GOOD)[:10], _GOOD), ["truncated gzip"]),
    "gzip with a wrong checksum": (
        lambda path: named(path, gzip.compress(_GOOD)[:-8] + bytes(8), _GOOD),
        ["layer sha256:", "not valid gzip"],
    ),
    "garbage behind the magic": (lambda path: named(path, b"\x1f\x8b" + b"\xff" * 99, _GOOD), ["not valid gzip"]),
    "truncated zstd": (
        lambda path: named(path, zstandard.compress(_GOOD)[:-20], _GOOD),
        ["layer sha256:"],
    ),
    "garbage zstd": (lambda path: named(path, b"\x28\xb5\x2f\xfd" + b"\xff" * 99, _GOOD), ["not valid zstd"]),
    "xz": (lambda path: named(path, b"\xfd7zXZ\x00" + bytes(99), _GOOD), ["compressed with xz"]),
    "empty layer": (lambda path: named(path, b"", _GOOD), ["layer sha256:"]),
    "other bytes": (
        lambda path: spoiled(path, compressed(_GOOD, "gzip")[1]),
        ["layer sha256:"],
    ),
    "shorter blob": (
        lambda path: spoiled(path, compressed(_GOOD, "gzip")[1][:50], tar=_GOOD),
        ["layer sha256:", "fetch or copy the image again"],
    ),
    "another tar than the diff id names": (
        lambda path: named(path, compressed(tar_of({"a": b"b"}), "gzip")[1], _GOOD),
        ["the unpacked layer sha256:", "digest"],
    ),
    "no tar": (lambda path: write_layout(path / "image", [tar_of(_LAYER), b"no tar" * 1000]), ["layer 2", "valid tar"]),
    "cut tar": (
        lambda path: write_layout(path / "image", [tar_of(_LAYER), _GOOD[:20_000]]),
        ["layer 2", "ends inside"],
    ),
    "dot dot": (
        lambda path: write_layout(path / "image", [tar_of(_LAYER), tar_of({"../../etc/cron.d/evil": b"x"})]),
        ["layer 2 of oci:", "'../../etc/cron.d/evil' leaves the image's root"],
    ),
    "hard link out of the root": (
        lambda path: write_layout(path / "image", [tar_of({"x": Hardlink("../../etc/shadow")})]),
        ["layer 1 of oci:", "leaves the image's root"],
    ),
    "hard link to nothing": (
        lambda path: write_layout(path / "image", [tar_of(_LAYER), tar_of({"x": Hardlink("none")})]),
        ["layer 2 of oci:", "'x'", "'none'"],
    ),
    "through a symlink loop": (
        lambda path: write_layout(path / "image", [tar_of({"l": Symlink("l")}), tar_of({"l/x": b"y"})]),
        ["layer 2 of oci:", "'l/x'"],
    ),
    "a name that is no UTF-8": (
        lambda path: write_layout(path / "image", [tar_of({"../\udcff\udcfe": b"y"})]),
        ["leaves the image's root"],
    ),
}


@pytest.mark.parametrize("name", _BAD_IMAGES)
@pytest.mark.parametrize("command", ["analyze", "build"])
def test_damaged_and_hostile_images(run: Run, tmp_path: Path, cache: Path, name: str, command: str) -> None:
    make, said = _BAD_IMAGES[name]
    image = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    more = ["--to", f"oci:{tmp_path}/slim"] if command == "build" else []
    refused(run(command, image, *more), 1, *said)
    assert sorted(path for path in tmp_path.iterdir() if path != cache) == before
    assert files_of(cache) == []
    refused(run(command, image, *more), 1, *said)


def test_a_bomb(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = write_layout(tmp_path / "image", [tar_of({"zeros": bytes(3_000_000)})])
    monkeypatch.setenv("SLIMGPU_MAX_LAYER_SIZE", "1MB")
    refused(run("build", image, "--to", f"oci:{tmp_path}/slim"), 1, "layer sha256:", "SLIMGPU_MAX_LAYER_SIZE")
    monkeypatch.setenv("SLIMGPU_MAX_LAYER_SIZE", "much")
    refused(run("analyze", image), 2, "SLIMGPU_MAX_LAYER_SIZE", "not a size")
    monkeypatch.setenv("SLIMGPU_MAX_LAYER_SIZE", "4MB")
    assert run("analyze", image)[0] == 0


def test_a_missing_blob(run: Run, tmp_path: Path) -> None:
    image = write_layout(tmp_path / "image", [tar_of(_LAYER)])
    blobs = tmp_path / "image/blobs/sha256"
    layer = max(blobs.iterdir(), key=lambda path: path.read_bytes()[:2] == b"\x1f\x8b")
    layer.unlink()
    refused(run("analyze", image), 1, "lacks the blob", layer.name)


@pytest.mark.parametrize("which", ["index", "manifest", "config"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schemaVersion":2}', b"[" * 100_000])
def test_documents_that_are_none(run: Run, tmp_path: Path, which: str, content: bytes) -> None:
    image = write_layout(tmp_path / "image", [tar_of(_LAYER)])
    root = tmp_path / "image"
    if which == "index":
        (root / "index.json").write_bytes(content)
    else:
        index = json.loads((root / "index.json").read_text())
        descriptor = index["manifests"][0]
        path = root / "blobs/sha256" / descriptor["digest"][7:]
        if which == "config":
            manifest = json.loads(path.read_text())
            manifest["config"] |= {"digest": digest(content), "size": len(content)}
            (root / "blobs/sha256" / digest(content)[7:]).write_bytes(content)
            content = json.dumps(manifest).encode()
        descriptor |= {"digest": digest(content), "size": len(content)}
        (root / "blobs/sha256" / digest(content)[7:]).write_bytes(content)
        (root / "index.json").write_text(json.dumps(index))
    refused(run("analyze", image), 1, str(root))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("build: [", "not valid YAML"),
        ("\x00", "not valid YAML"),
        ("- a\n- b", "must map commands to options"),
        ("build: gzip", "must map commands to options"),
        ("bulid: {format: gzip}", "unknown command 'bulid'"),
        ("1: {}\nbulid: {}", "unknown command"),
        ("build: {1: gzip}", "unknown option"),
        ("build: {fromat: gzip}", "unknown option 'fromat'"),
        ("build: {format: lzma}", "lzma"),
        ("build: {format: [gzip]}", "--format"),
        ("build: {jobs: many}", "--jobs"),
        ("build: {image: x}", "unknown option 'image'"),
        ("[" * 5000, "not valid YAML"),
        ("a: &a [*a, *a]\n", "must map commands to options"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_wrong_configuration(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    image = write_layout(tmp_path / "image", [tar_of(_LAYER)])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slimgpu.yaml").write_text(text)
    refused(run("build", image, "--dry-run"), 2, said)
    (tmp_path / "slimgpu.yaml").rename(tmp_path / "other.yaml")
    refused(run("--config", "other.yaml", "build", image, "--dry-run"), 2, said)


def test_configuration_that_is_no_text(run: Run, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    refused(run("--config", tmp_path / "c.yaml", "build", "oci:x", "--dry-run"), 2, "c.yaml is not valid YAML")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b"\xff", b'{"schema":"slimgpu.plan.v9"}', b"[" * 10**5]
)
def test_plans_that_are_none(run: Run, tmp_path: Path, content: bytes) -> None:
    image = write_layout(tmp_path / "image", [tar_of(_LAYER)])
    (tmp_path / "plan.json").write_bytes(content)
    before = sorted(tmp_path.iterdir())
    to = ["--to", f"oci:{tmp_path}/slim"]
    refused(run("build", image, *to, "--plan", tmp_path / "plan.json"), 2, "plan.json is not a plan")
    assert sorted(path for path in tmp_path.iterdir()) == before


def test_a_plan_for_another_image(run: Run, tmp_path: Path) -> None:
    first = write_layout(tmp_path / "first", [tar_of(_LAYER)])
    second = write_layout(tmp_path / "second", [tar_of({**_LAYER, "etc/more": b"x"})])
    code, plan, _ = run("build", first, "--dry-run", "--json")
    assert code == 0
    (tmp_path / "plan.json").write_text(plan)
    refused(run("build", second, "--dry-run", "--plan", tmp_path / "plan.json"), 2, "the plan was made for sha256:")
    before = sorted(tmp_path.iterdir())
    to = ["--to", f"oci:{tmp_path}/slim"]
    refused(run("build", second, *to, "--plan", tmp_path / "plan.json"), 2, "the plan was made for sha256:")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("option", ["--keep", "--drop"])
def test_malformed_patterns(run: Run, tmp_path: Path, option: str) -> None:
    image = write_layout(tmp_path / "image", [tar_of(_LAYER)])
    before = sorted(tmp_path.iterdir())
    refused(run("build", image, option, "!", "--to", f"oci:{tmp_path}/slim"), 2, ".gitignore")
    assert sorted(tmp_path.iterdir()) == before


def test_a_build_that_would_break_what_it_keeps(run: Run, tmp_path: Path, elf_root: Path) -> None:
    layer = {str(p.relative_to(elf_root)): p.read_bytes() for p in sorted(elf_root.rglob("*")) if p.is_file()}
    image = write_layout(tmp_path / "image", [tar_of(layer)])
    before = sorted(tmp_path.iterdir())
    result = run("build", image, "--drop", "libown.so", "--to", f"oci:{tmp_path}/slim")
    refused(result, 3, "opt/own/runpath.so needs libown.so, which was opt/own/libown.so", "--keep")
    assert sorted(tmp_path.iterdir()) == before


def test_destinations_that_cannot_be(run: Run, tmp_path: Path) -> None:
    image = write_layout(tmp_path / "image", [tar_of(_LAYER)])
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for name in ("oci:file", "oci:full", "oci-archive:file", "docker-archive:file", "oci:file/x"):
        transport, path = name.split(":")
        refused(run("build", image, "--to", f"{transport}:{tmp_path}/{path}"), 1, str(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_an_image_built_onto_itself_is_still_there_after_a_failure(run: Run, tmp_path: Path) -> None:
    image = named(tmp_path, compressed(_GOOD, "gzip")[1][:-20], _GOOD)
    before = {path: path.read_bytes() for path in (tmp_path / "image").rglob("*") if path.is_file()}
    refused(run("build", image, "--to", f"{image}:slim"), 1, "truncated gzip")
    assert {path: path.read_bytes() for path in (tmp_path / "image").rglob("*") if path.is_file()} == before


def test_a_traceback_only_for_those_who_ask(run: Run) -> None:
    assert "Traceback" not in run("-v", "analyze", "oci:/nowhere")[2]
    assert "Traceback" in run("-vv", "analyze", "oci:/nowhere")[2]
    assert "Traceback" in run("-v", "-v", "analyze", "oci:/nowhere")[2]


def test_a_cache_that_cannot_be_written(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = write_layout(tmp_path / "image", [tar_of(_LAYER)])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SLIMGPU_CACHE_DIR", str(tmp_path / "file"))
    refused(run("analyze", image), 1, str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gpu", "h1000"], "'h1000' is no GPU that slimgpu knows; name a product (t4,"),
        (["--gpu", ""], "'' is no GPU"),
        (["--gpu", "sm_91"], "'sm_91' is no GPU"),
        (["--keep-ptx"], "name it with --gpu"),
        (["--gpu-native"], "name it with --gpu"),
        (["--gpu", "h100", "--gpu-native", "--keep-ptx"], "leave out --keep-ptx"),
    ],
)
@pytest.mark.parametrize("command", ["analyze", "build"])
def test_gpus(run: Run, command: str, options: list[str], said: str) -> None:
    more = ["--to", "oci:/nowhere/x"] if command == "build" else []
    refused(run(command, "oci:/nowhere", *more, *options), 2, said)


def test_gpus_are_part_of_a_plan(run: Run, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text("{}")
    arguments = ["build", "oci:/nowhere", "--to", "oci:/nowhere/x", "--plan", plan]
    for option in (["--gpu", "h100"], ["--symbols", "keep"]):
        refused(run(*arguments, *option), 2, "--plan replays a finished plan")


def test_an_image_without_code_for_the_gpu(run: Run, tmp_path: Path, shop: Workshop) -> None:
    image = write_layout(tmp_path / "image", [tar_of({"usr/lib/a.so": shop.get("plain.so").read_bytes()})])
    refused(run("analyze", image, "--gpu", "v100"), 2, "nothing in the image runs on sm_70")
    refused(
        run("build", image, "--to", f"oci:{tmp_path}/out", "--gpu", "v100"), 2, "nothing in the image runs on sm_70"
    )
    refused(run("build", image, "--to", f"oci:{tmp_path}/out", "--gpu", "l40s", "--gpu-native"), 3, "nothing but PTX")
    assert not (tmp_path / "out").exists()
