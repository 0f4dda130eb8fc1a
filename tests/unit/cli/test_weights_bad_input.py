"""Wrong input for commands on weights ends in one sentence, the right exit code, and nothing left behind."""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slimgpu.cli.main import main
from slimgpu.oci.digest import digest_bytes
from tests.support.models import write_model
from tests.support.trees import tar_of, write_layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[..., tuple[int, str, str]]

_IMAGE = f"sha256:{'1' * 64}"
_KEY = ["--image", _IMAGE, "--gpu", "h100", "--configuration", "x"]


@pytest.fixture(autouse=True)
def _memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMGPU_MEMORY_DIR", str(tmp_path_factory.mktemp("memory")))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def called(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return called


def refused(result: tuple[int, str, str], code: int, *said: str) -> None:
    found, out, err = result
    assert (found, out) == (code, ""), err
    assert "Traceback" not in err
    assert "internal error" not in err
    message = err.strip().splitlines()[-1]
    for text in said:
        assert text in message, err


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", width=64)


@pytest.fixture
def packed(tmp_path: Path, model: Path, run: Run) -> str:
    assert run("-q", "weights", "pack", model, "--to", f"oci:{tmp_path}/packed:v1")[0] == 0
    return f"oci:{tmp_path}/packed:v1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["weights", "frobnicate"], "No such command"),
        (["weights", "pack", "x"], "--to"),
        (["weights", "pack", "--to", "oci:x"], "SRC"),
        (["weights", "pack", "x", "--to", "oci:x", "--jobs", "0"], "--jobs"),
        (["weights", "pack", "x", "--to", "oci:x", "--cache"], "--cache goes together with"),
        (["weights", "pack", "x", "--to", "oci:x", *_KEY], "--cache goes together with"),
        (["weights", "pack", "x", "--to", "oci:x", "--cache", "--gpu", "h100"], "add what is missing"),
        (["weights", "pull", "oci:x", "y", "--image", "sha256:1", *_KEY[2:]], "no digest"),
        (["weights", "pull", "oci:x", "y", *_KEY[:2], "--gpu", "h1000", *_KEY[4:]], "no GPU"),
        (["weights", "pull", "oci:x", "y", *_KEY, "--versions", "bad"], "--versions 'bad' names no version"),
        (["weights", "pack", "x", "--to", "oci:x", "--versions", "=1"], "write it like driver=570.1"),
        (["weights", "pull", "oci:x"], "DIR"),
        (["weights", "export", "oci:x", "y", "--as", "zip"], "--as"),
        (["weights", "export", "oci:x", "docker-daemon:y", "--as", "modelpack"], "can hold images only"),
        (["weights", "export", "oci:x", "./y", "--as", "modelpack"], "write oci:./y for an OCI layout"),
        (["weights", "export", "oci:x", "/srv/y", "--as", "modelpack"], "looks like a path"),
        (["weights", "export", "oci:x", "y", "--as", "modelpack"], "looks like a path"),
        (["weights", "list"], "REF"),
        (["weights", "serve", "--listen", "5005"], "is no address"),
        (["weights", "serve", "--listen", "host:99999"], "is no address"),
        (["weights", "serve", "oci-archive:x"], "is no OCI layout to serve"),
        (["prefetch"], "REF"),
        (["prefetch", "oci:x", "--planes", "maybe"], "--planes"),
        (["run", "oci:x"], "CMD"),
    ],
)
def test_wrong_arguments(run: Run, arguments: list[str], said: str) -> None:
    refused(run(*arguments), 2, said)


_READING = [
    ["weights", "list"],
    ["weights", "verify"],
    ["weights", "load"],
    ["weights", "pull", "{}", "out"],
    ["weights", "export", "{}", "out"],
    ["weights", "export", "{}", "oci:out", "--as", "modelpack"],
    ["weights", "push", "{}", "oci:out"],
    ["prefetch"],
]


def reading(arguments: list[str], reference: str) -> list[str]:
    words = arguments if "{}" in arguments else [*arguments, "{}"]
    return [word.replace("{}", reference) for word in words]


@pytest.mark.parametrize("arguments", _READING)
@pytest.mark.parametrize(
    ("reference", "code", "said"),
    [
        ("docker-archive:x.tar", 2, "can hold images only"),
        ("docker-daemon:x:latest", 2, "can hold images only"),
        ("UPPER CASE", 2, "names no image"),
        ("oci:/nowhere", 1, "does not exist"),
        ("oci-archive:/nowhere.tar", 1, "does not exist"),
        ("127.0.0.1:1/a/b:c", 4, "127.0.0.1"),
    ],
)
def test_references(  # noqa: PLR0917 - a table of two dimensions
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    reference: str,
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run(*reading(arguments, reference)), code, said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", _READING)
def test_what_is_no_artifact_of_weights(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], packed: str
) -> None:
    monkeypatch.chdir(tmp_path)
    image = write_layout(tmp_path / "image", [tar_of({"etc/x": b"x"})])
    before = sorted(tmp_path.iterdir())
    refused(run(*reading(arguments, image)), 1, f"{image} is an image, and points to no weights")
    refused(run(*reading(arguments, f"{packed}9")), 1, "is not in the layout; its tags are: v1")
    refused(run(*reading(arguments, f"oci:{tmp_path}/model")), 1, "not an OCI layout")
    assert sorted(tmp_path.iterdir()) == before


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> str:
    """The artifact with another index, rightly described by a manifest of its own."""
    blobs = tmp_path / "packed/blobs/sha256"
    layout = json.loads((tmp_path / "packed/index.json").read_text())
    manifest = json.loads((blobs / layout["manifests"][0]["digest"][7:]).read_text())
    index = json.loads((blobs / manifest["config"]["digest"][7:]).read_text())
    change(index)
    for place, document in ((manifest["config"], index), (layout["manifests"][0], manifest)):
        data = json.dumps(document).encode()
        place |= {"digest": digest_bytes(data), "size": len(data)}
        (blobs / place["digest"][7:]).write_bytes(data)
    (tmp_path / "packed/index.json").write_text(json.dumps(layout))
    return f"oci:{tmp_path}/packed:v1"


def _path(index: dict[str, Any]) -> None:
    index["files"][0]["path"] = "../../etc/cron.d/evil"


def _link(index: dict[str, Any]) -> None:
    index["links"][0]["target"] = "../../../etc"


def _version(index: dict[str, Any]) -> None:
    index["schema"] = "slimgpu.weights.v2"


def _outside(index: dict[str, Any]) -> None:
    index["chunks"][0]["offset"] = 10**12


@pytest.mark.parametrize("arguments", [["analyze"], ["build", "{}", "--to", "oci:out"]])
def test_what_is_no_image(run: Run, arguments: list[str], packed: str) -> None:
    refused(run(*reading(arguments, packed)), 1, f"a weights artifact, no image; slimgpu weights list {packed}")


@pytest.mark.parametrize("tag", ["", ":v1"])
def test_a_layout_of_weights_only_is_no_image(run: Run, tmp_path: Path, model: Path, tag: str) -> None:
    reference = f"oci:{tmp_path}/only"
    assert run("-q", "weights", "pack", model, "--to", f"{reference}{tag}")[0] == 0
    refused(
        run("analyze", reference), 1, f"{reference} is a weights artifact, no image; slimgpu weights list {reference}"
    )


def test_a_layout_of_another_artifact_only_has_no_image(run: Run, tmp_path: Path, packed: str) -> None:
    assert run("weights", "export", packed, f"oci:{tmp_path}/other", "--as", "modelpack")[0] == 0
    refused(run("analyze", f"oci:{tmp_path}/other"), 1, "has no image for linux/amd64")


@pytest.mark.parametrize("arguments", _READING)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_path, "is not a path inside the artifact"),
        (_link, "leads out of the artifact"),
        (_version, "use a newer slimgpu"),
        (_outside, "lies outside of its blob"),
    ],
)
def test_unsafe_indexes(  # noqa: PLR0917 - a table of two dimensions
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    packed: str,
    arguments: list[str],
    change: Callable[[dict[str, Any]], None],
    said: str,
) -> None:
    del packed
    monkeypatch.chdir(tmp_path)
    reference = changed(tmp_path, change)
    before = sorted(tmp_path.iterdir())
    refused(run(*reading(arguments, reference)), 1, said)
    assert sorted(tmp_path.iterdir()) == before


def _values(index: dict[str, Any]) -> None:
    index["values"] = _IMAGE


def _tensor(index: dict[str, Any]) -> None:
    index["tensors"][2]["digest"] = _IMAGE


def _raw(index: dict[str, Any]) -> None:
    index["chunks"][1]["raw"] = _IMAGE


def _blob(index: dict[str, Any]) -> None:
    index["blobs"][0]["digest"] = _IMAGE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_values, ["the digest", _IMAGE]),
        (_tensor, ["model.layers.0", "in model-00001-of-00002.safetensors"]),
        (_raw, ["chunk 1 (of "]),
        (_blob, ["does not list the blob"]),
    ],
)
def test_verify_finds_every_wrong_digest(
    run: Run, tmp_path: Path, packed: str, change: Callable[[dict[str, Any]], None], said: list[str]
) -> None:
    assert run("weights", "verify", packed)[0] == 0
    refused(run("weights", "verify", changed(tmp_path, change)), 1, *said)


def test_a_byte_that_changed_in_a_blob(run: Run, tmp_path: Path, packed: str) -> None:
    blob = max((tmp_path / "packed/blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    for arguments in (["verify", packed], ["pull", packed, tmp_path / "out"], ["load", packed]):
        refused(run("weights", *arguments), 1, "chunk ", ".safetensors)", "does not have the digest")
    refused(run("weights", "push", packed, f"oci:{tmp_path}/copy"), 1, blob.name)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "copy").exists()


def test_verify_of_a_directory(run: Run, tmp_path: Path, packed: str, model: Path) -> None:
    assert run("weights", "verify", packed, model)[0] == 0
    path = model / "model-00002-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    refused(run("weights", "verify", packed, model), 1, str(path), "chunk ", "model.layers.2")
    path.write_bytes(data[:-1])
    refused(run("weights", "verify", packed, model), 1, str(path), "differs")
    path.unlink()
    refused(run("weights", "verify", packed, model), 1, str(path), "cannot be read")
    refused(run("weights", "verify", packed, tmp_path / "none"), 1, "none does not exist; name the directory")
    refused(run("weights", "verify", packed, model / "config.json"), 1, "config.json is no directory")


def test_sources(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/m.safetensors").write_bytes((50).to_bytes(8, "little") + b'{"x":{' + bytes(100))
    to = ["--to", f"oci:{tmp_path}/out"]
    refused(run("weights", "pack", tmp_path / "none", *to), 1, "none does not exist")
    refused(run("weights", "pack", tmp_path / "empty", *to), 2, "empty holds no files")
    refused(run("weights", "pack", tmp_path / "bad", *to), 1, "m.safetensors")
    refused(run("weights", "pack", "/dev/null", *to), 2, "/dev/null is no regular file")
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "empty"]


def test_bases_and_subjects_that_are_not_there(run: Run, tmp_path: Path, model: Path) -> None:
    to = ["weights", "pack", model, "--to", f"oci:{tmp_path}/out:v1"]
    refused(run(*to, "--base", "oci:/nowhere:x"), 1, "/nowhere does not exist")
    refused(run(*to, "--subject", "oci:/nowhere:x"), 1, "/nowhere does not exist")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_caches_for_another_key(run: Run, tmp_path: Path, model: Path) -> None:
    reference = f"oci:{tmp_path}/caches"
    assert run("-q", "weights", "pack", "--cache", *_KEY, model, "--to", reference)[0] == 0
    other = [*_KEY[:4], "--configuration", "y"]
    refused(
        run("weights", "pull", reference, tmp_path / "out", *other), 1, "has no cache for", "sm_90", "'y'", "--versions"
    )
    assert ":latest" not in run("weights", "pull", "127.0.0.1:1/a/b", tmp_path / "out", *_KEY)[2]
    assert run("-q", "weights", "pack", model, "--to", f"{reference}:plain")[0] == 0
    refused(run("weights", "pull", f"{reference}:plain", tmp_path / "out", *_KEY), 1, "has no cache for")
    assert not (tmp_path / "out").exists()


def test_destinations_with_other_content(run: Run, tmp_path: Path, packed: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("mine")
    refused(run("weights", "pull", packed, out), 1, "config.json is there with other content")
    assert [path.name for path in out.iterdir()] == ["config.json"]
    (tmp_path / "file").write_text("mine")
    refused(run("weights", "pull", packed, tmp_path / "file"), 1, "is a file; name a directory")
    refused(run("weights", "pull", packed, tmp_path / "file/x"), 1, str(tmp_path / "file"))
    refused(run("weights", "push", packed, f"oci:{out}"), 1, "in use by something else")


@contextmanager
def disk(path: Path, size: str) -> Iterator[None]:
    """A small disk at the directory; mounting takes root."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_full_disk(run: Run, tmp_path: Path) -> None:
    large = write_model(tmp_path / "large", width=512)
    assert run("-q", "weights", "pack", large, "--to", f"oci:{tmp_path}/packed:v1")[0] == 0
    packed = f"oci:{tmp_path}/packed:v1"
    with disk(tmp_path / "small", "4m"):
        refused(run("weights", "pull", packed, tmp_path / "small/out"), 1, "small/out is on a disk that is full")
        assert not (tmp_path / "small/out").exists()
        refused(run("weights", "pack", large, "--to", f"oci:{tmp_path}/small/x"), 1, "no space is left on the disk")
        refused(run("weights", "push", packed, f"oci:{tmp_path}/small/x"), 1, "no space is left on the disk")
        assert not (tmp_path / "small/x").exists()


def test_full_memory(run: Run, tmp_path: Path, packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What doesn't fit in memory goes to the cache's disk."""
    with disk(tmp_path / "small", "100k"):
        monkeypatch.setenv("SLIMGPU_MEMORY_DIR", str(tmp_path / "small"))
        code, out, err = run("prefetch", packed)
        assert code == 0
        assert not out.startswith(str(tmp_path / "small"))
        assert " on disk, since shared memory has no room for it" in err
        assert run("prefetch", packed, "--drop")[2].endswith(" freed\n")
        assert not Path(out.strip()).exists()


def test_a_read_only_disk(run: Run, tmp_path: Path, packed: str) -> None:
    with disk(tmp_path / "ro", "1m"):
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "ro"], check=True)
        refused(run("weights", "pull", packed, tmp_path / "ro/out"), 1, "ro/out cannot be written")
        refused(run("weights", "push", packed, f"oci:{tmp_path}/ro/out"), 1, "ro/out cannot be written")


def test_commands_that_cannot_be_run(run: Run, tmp_path: Path, packed: str) -> None:
    refused(run("run", packed, "--", "no-such-command"), 5, "no-such-command is no command")
    (tmp_path / "script").write_text("no program")
    (tmp_path / "script").chmod(0o755)
    refused(run("run", packed, "--", tmp_path / "script"), 5, "cannot be run")


def test_devices_that_are_not_there(run: Run, packed: str) -> None:
    found = run("weights", "load", packed, "--device", "cuda")
    assert found[0] in (2, 5)
    refused(run("weights", "load", packed, "--only", "nothing*"), 1, "no tensor is named like nothing*")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("weights: {pack: to}", "must map commands to options under weights"),
        ("weights: {pakc: {}}", "unknown command 'weights pakc'"),
        ("weights: {pack: {two: x}}", "unknown option 'two' for weights pack"),
        ("weights: {pack: {jobs: many}}", "--jobs"),
        ("weights: []", "must map commands to options"),
    ],
)
def test_configuration(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path, text: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slimgpu.yaml").write_text(text)
    refused(run("weights", "pack", model, "--to", f"oci:{tmp_path}/x"), 2, said)
