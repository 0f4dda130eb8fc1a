"""``slimgpu weights`` on layouts and archives: what goes in comes out, and every document fits its schema."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from slimgpu.cli.main import main
from slimgpu.report.document import read_schema
from slimgpu.weights import load
from tests.support.models import tree_of, write_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_KEY = ["--image", f"sha256:{'1' * 64}", "--gpu", "h100", "--configuration", "tp=1"]


@pytest.fixture(autouse=True)
def _memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMGPU_MEMORY_DIR", str(tmp_path / "memory"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", width=64)


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command that succeeds prints."""

    def called(*arguments: object) -> str:
        assert main(list(map(str, arguments))) == 0, capfd.readouterr().err
        return capfd.readouterr().out

    return called


def document(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    jsonschema.validate(found, read_schema(found["schema"]))
    return found


@pytest.fixture
def packed(tmp_path: Path, model: Path, say: Callable[..., str]) -> str:
    say("-q", "weights", "pack", model, "--to", f"oci:{tmp_path}/packed:v1")
    return f"oci:{tmp_path}/packed:v1"


def test_every_document_fits_its_schema(tmp_path: Path, model: Path, say: Callable[..., str], packed: str) -> None:
    packing = document(say("weights", "pack", model, "--to", f"oci:{tmp_path}/other:v1", "--json"))
    listing = document(say("weights", "list", packed, "--json"))
    verified = document(say("weights", "verify", packed, "--json"))
    loaded = document(say("weights", "load", packed, "--check", "--json"))
    assert packing["digest"] == listing["digest"] == verified["digest"]
    assert packing["values"] == listing["values"] == verified["values"] == loaded["values"]
    assert len(listing["tensors"]) == packing["tensors"] == verified["tensors"] == loaded["tensors"] == 10
    assert sum(d["parameters"] for d in packing["dtypes"]) == 64 * (1000 + 3 * (64 + 4 * 64 + 1))
    assert packing["dtypes"][0]["stored"] < 0.7 * packing["dtypes"][0]["bytes"]
    assert sum(file["bytes"] for file in listing["files"]) == packing["bytes"]
    assert listing["links"] == [{"path": "tools/tokenizer.json", "target": "../tokenizer.json"}]


def test_pull_and_push_as_documents(tmp_path: Path, model: Path, say: Callable[..., str], packed: str) -> None:
    listing = document(say("weights", "list", packed, "--json"))
    copied = document(say("weights", "push", packed, f"oci:{tmp_path}/copy:v2", "--json"))
    assert (copied["source"], copied["destination"]) == (packed, f"oci:{tmp_path}/copy:v2")
    assert (copied["digest"], copied["bytes"]) == (listing["digest"], sum(blob["bytes"] for blob in listing["blobs"]))
    first, second = (document(say("weights", "pull", packed, tmp_path / "back", "--json")) for _ in range(2))
    assert (first["reference"], first["digest"]) == (packed, listing["digest"])
    assert first["directory"] == str(tmp_path / "back")
    assert (first["files"], first["bytes"]) == (len(listing["files"]), listing["bytes"])
    assert (first["fetched"], second["fetched"]) == (listing["stored"], 0)
    assert second["bytes"] == first["bytes"]
    assert tree_of(tmp_path / "back") == tree_of(model)


@pytest.mark.parametrize(
    "form", ["oci:{}/copy", "oci:{}/copy:v2", "oci-archive:{}/copy.tar", "oci-archive:{}/c.tar:v2"]
)
def test_there_and_back(tmp_path: Path, model: Path, say: Callable[..., str], packed: str, form: str) -> None:
    copy = form.format(tmp_path)
    digest = say("weights", "push", packed, copy).strip()
    assert digest == document(say("weights", "list", packed, "--json"))["digest"]
    say("weights", "pull", copy, tmp_path / "back")
    assert tree_of(tmp_path / "back") == tree_of(model)
    say("weights", "verify", copy, tmp_path / "back")
    say("weights", "export", copy, tmp_path / "exported")
    assert tree_of(tmp_path / "exported") == tree_of(model)
    say("weights", "pull", copy, tmp_path / "back")


def test_pack_says_its_summary_on_stderr_and_the_digest_on_stdout(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["weights", "pack", str(model), "--to", f"oci:{tmp_path}/x:v1"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("sha256:")
    assert len(out) == 72
    for part in ("BF16", "float2", "7 files with 10 tensors"):
        assert part in err


def test_what_the_destination_has_is_not_stored_again(tmp_path: Path, model: Path, say: Callable[..., str]) -> None:
    to = ["--to", f"oci:{tmp_path}/x:v1", "--json"]
    first = document(say("weights", "pack", model, *to))
    second = document(say("weights", "pack", model, *to))
    assert (first["new"], second["new"]) == (first["stored"], 0)
    (model / "config.json").write_text('{"model_type": "other"}')
    third = document(say("weights", "pack", model, *to))
    assert 0 < third["new"] < 100
    other = document(say("weights", "pack", model, "--to", f"oci:{tmp_path}/y:v1", "--base", to[1], "--json"))
    assert other["new"] == 0
    say("weights", "verify", f"oci:{tmp_path}/y:v1")


def test_a_subject(tmp_path: Path, model: Path, say: Callable[..., str]) -> None:
    from tests.support.trees import tar_of, write_layout  # noqa: PLC0415

    image = write_layout(tmp_path / "image", [tar_of({"etc/x": b"x"})])
    index = json.loads((tmp_path / "image/index.json").read_text())
    say("-q", "weights", "pack", model, "--to", f"oci:{tmp_path}/x:v1", "--subject", image)
    entry = json.loads((tmp_path / "x/index.json").read_text())["manifests"][0]
    manifest = json.loads((tmp_path / "x/blobs/sha256" / entry["digest"][7:]).read_text())
    assert manifest["subject"]["digest"] == index["manifests"][0]["digest"]
    assert manifest["artifactType"] == "application/vnd.slimgpu.weights.v1"


def test_modelpack(tmp_path: Path, model: Path, say: Callable[..., str], packed: str) -> None:
    say("weights", "export", packed, f"oci:{tmp_path}/mp:v1", "--as", "modelpack")
    blobs = tmp_path / "mp/blobs/sha256"
    entry = json.loads((tmp_path / "mp/index.json").read_text())["manifests"][0]
    manifest = json.loads((blobs / entry["digest"][7:]).read_text())
    config = json.loads((blobs / manifest["config"]["digest"][7:]).read_text())
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]
    assert config["config"] == {"format": "safetensors", "paramSize": "125.6K", "precision": "bfloat16"}
    found = {layer["annotations"]["org.cncf.model.filepath"]: layer for layer in manifest["layers"]}
    kinds = {path: layer["mediaType"].removeprefix("application/vnd.cncf.model.") for path, layer in found.items()}
    assert kinds == {
        "README.md": "doc.v1.raw",
        "config.json": "weight.config.v1.raw",
        "model-00001-of-00002.safetensors": "weight.v1.raw",
        "model-00002-of-00002.safetensors": "weight.v1.raw",
        "model.safetensors.index.json": "weight.config.v1.raw",
        "tokenizer.json": "weight.config.v1.raw",
        "tools/convert.py": "code.v1.raw",
        "tools/tokenizer.json": "weight.config.v1.raw",
    }
    for path, layer in found.items():
        assert (blobs / layer["digest"][7:]).read_bytes() == (model / path).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "mp", "packed"]


def test_a_cache_is_found_by_its_key(
    tmp_path: Path, model: Path, say: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    reference = f"oci:{tmp_path}/caches"
    result = document(say("weights", "pack", "--cache", *_KEY, model, "--to", reference, "--json"))
    assert result["reference"].startswith(f"{reference}:cache-")
    assert main(["weights", "pack", "--cache", *_KEY, str(model), "--to", reference]) == 0
    assert capfd.readouterr().err.splitlines()[-1] == result["reference"]
    assert result["artifact_type"] == "application/vnd.slimgpu.cache.v1"
    assert result["annotations"]["vnd.slimgpu.cache.gpu"] == "sm_90"
    say("weights", "pull", reference, tmp_path / "back", *_KEY)
    assert tree_of(tmp_path / "back") == tree_of(model)
    say("weights", "verify", result["reference"])
    assert "vnd.slimgpu.cache.configuration: tp=1" in say("weights", "list", result["reference"])


def test_a_list_fits_one_screen(say: Callable[..., str], packed: str) -> None:
    short = say("weights", "list", packed)
    assert len(short.splitlines()) < 50
    assert "model.layers.*.mlp.up_proj.weight" in short
    full = say("weights", "list", packed, "--all")
    assert "model.layers.2.mlp.up_proj.weight" in full
    assert max(map(len, (short + full).splitlines())) <= 100


def test_names_and_digests_are_whole_on_any_screen(
    tmp_path: Path, model: Path, say: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    reference = f"oci:{tmp_path}/{'long' * 30}:v1"
    digest = say("-q", "weights", "pack", model, "--to", reference).strip()
    assert say("weights", "list", reference).splitlines()[:2] == [reference, digest]


def test_what_prefetch_kept_is_dropped(packed: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["prefetch", packed]) == 0
    assert " in memory, " in capfd.readouterr().err
    (region,) = (path.parent for path in (tmp_path / "memory").glob("*/keep"))
    with (region / "state").open("rb") as state:
        fcntl.flock(state, fcntl.LOCK_SH)
        assert main(["prefetch", packed, "--drop"]) == 0
        assert " no longer kept, but in use; " in capfd.readouterr().err
    assert region.exists()
    assert not (region / "keep").exists()
    assert main(["prefetch", packed, "--drop"]) == 0
    assert re.fullmatch(r"[\d.]+ kB freed\n", capfd.readouterr().err)
    assert not region.exists()
    assert main(["prefetch", packed, "--drop"]) == 0
    assert capfd.readouterr() == ("", f"nothing of {packed} was kept\n")


def test_prefetch_then_load(say: Callable[..., str], packed: str, model: Path, tmp_path: Path) -> None:
    folder = say("prefetch", packed).strip()
    assert folder.startswith(str(tmp_path / "memory"))
    tensors = load(packed)
    assert len(tensors) == 10
    assert (model / "model-00001-of-00002.safetensors").read_bytes() in (tmp_path / folder / "data.0").read_bytes()


def test_prefetch_as_documents(
    say: Callable[..., str], packed: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    listing = document(say("weights", "list", packed, "--json"))
    first, second = (document(say("prefetch", packed, "--json")) for _ in range(2))
    (region,) = (tmp_path / "memory").glob("*/")
    assert (first["reference"], first["folder"], first["on_disk"]) == (packed, str(region), False)
    blob = tmp_path / "packed/blobs" / first["index"].replace(":", "/")
    assert (region / "index").read_bytes().endswith(blob.read_bytes())
    assert (first["bytes"], first["fetched"]) == (listing["bytes"], listing["stored"])
    assert (second["bytes"], second["fetched"]) == (listing["bytes"], 0)
    dropped, nothing = (document(say("prefetch", packed, "--drop", "--json")) for _ in range(2))
    assert dropped["bytes"] > 0
    assert nothing == {**dropped, "bytes": 0}
    assert (nothing["reference"], nothing["used"]) == (packed, False)
    assert capfd.readouterr().err == ""


def test_prefetch_that_stays_prints_its_document_when_all_is_there(
    packed: str, slimgpu: list[str], tmp_path: Path
) -> None:
    called = [*slimgpu, "prefetch", packed, "--json", "--no-keep"]
    with subprocess.Popen(called, stdout=subprocess.PIPE, text=True) as staying:
        try:
            assert staying.stdout is not None
            lines = list(iter(staying.stdout.readline, "}\n"))
            found = document("".join([*lines, "}"]))
            assert staying.poll() is None
            assert list((tmp_path / "memory" / found["index"][7:]).glob("data.*"))
        finally:
            staying.terminate()
    assert not list((tmp_path / "memory").glob("*/data.*")), "the memory is given back"


def test_options_of_a_group_come_from_variables_and_the_file(
    tmp_path: Path, model: Path, say: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLIMGPU_WEIGHTS_PACK_TO", f"oci:{tmp_path}/variable:v1")
    say("-q", "weights", "pack", model)
    assert (tmp_path / "variable/index.json").exists()
    monkeypatch.delenv("SLIMGPU_WEIGHTS_PACK_TO")
    (tmp_path / "slimgpu.yaml").write_text(f"weights:\n  pack: {{to: 'oci:{tmp_path}/file:v1', json: true}}\n")
    assert document(say("weights", "pack", model))["reference"] == f"oci:{tmp_path}/file:v1"


@pytest.mark.parametrize(
    "arguments", [["weights", "--help"], ["weights", "frobnicate"], ["--help"], ["prefetch", "--help"]]
)
def test_helps_import_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom slimgpu.cli.main import main\nmain(sys.argv[1:])\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    modules = set(run.stderr.splitlines()[-1].split())
    assert not modules & {"pydantic", "rich", "requests", "docker", "torch", "yaml", "elftools", "numpy"}


def test_prefetch_imports_neither_torch_nor_anything_else_that_it_can_do_without(packed: str) -> None:
    program = (
        "import sys\nfrom slimgpu.cli.main import main\nassert main(sys.argv[1:]) == 0\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    called = [sys.executable, "-c", program, "-q", "prefetch", packed]
    modules = set(subprocess.run(called, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split())
    assert "numpy" in modules
    assert not modules & {"torch", "rich", "requests", "docker", "elftools"}


def test_run_gives_the_commands_exit_code_and_output(packed: str, slimgpu: list[str], tmp_path: Path) -> None:
    shell = 'echo "$SLIMGPU_WEIGHTS"; cat; exit 7'
    run = subprocess.run(
        [*slimgpu, "run", packed, "--", "sh", "-c", shell], input="said", capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (7, f"{packed}\nsaid", "")
    assert not list((tmp_path / "memory").glob("*/data.*")), "the memory is given back"


def test_a_command_that_loads_finds_what_is_fetched(packed: str, slimgpu: list[str], tmp_path: Path) -> None:
    program = "import os, slimgpu.weights as w; print(len(w.load(os.environ['SLIMGPU_WEIGHTS'])))"
    run = subprocess.run(
        [*slimgpu, "run", "--keep", packed, "--", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ},
    )
    assert (run.returncode, run.stdout) == (0, "10\n"), run.stderr
    assert list((tmp_path / "memory").glob("*/data.*"))


def test_a_command_killed_by_a_signal(packed: str, slimgpu: list[str]) -> None:
    run = subprocess.run([*slimgpu, "run", packed, "--", "sh", "-c", "kill -TERM $$"], check=False)
    assert run.returncode == 143


@pytest.mark.parametrize(
    ("destination", "said"),
    [
        ("oci:copy", "nothing was left half-written"),
        ("oci-archive:copy.tar", "nothing was left half-written"),
        ("host.example/x:v1", "what has been copied stays, and the next start goes on from there"),
    ],
)
def test_only_registries_keep_what_an_interrupted_push_has_copied(
    packed: str, destination: str, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("slimgpu.cli.weights.push.copy_artifact", interrupted)
    assert main(["weights", "push", packed, destination]) == 130
    assert capfd.readouterr().err.strip() == f"slimgpu: interrupted; {said}"
