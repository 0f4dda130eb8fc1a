from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.analysis.claims import claim
from slimgpu.errors import ImageError, UsageError
from slimgpu.layers.compress import Format
from slimgpu.oci.config import ImageConfig
from slimgpu.oci.digest import digest_bytes
from slimgpu.oci.reference import parse_reference
from slimgpu.progress import SILENT
from slimgpu.rootfs.entry import Kind
from slimgpu.rootfs.tarread import TarReader
from slimgpu.rootfs.tree import merge
from slimgpu.slim.apply import apply
from slimgpu.slim.build import Built, build
from slimgpu.slim.plan import Action, Do, Plan, Wishes, load_plan, make_plan
from slimgpu.slim.result import WeightsResult, result_of
from slimgpu.slim.split import Split, split
from slimgpu.slim.weights import Weights, check_artifact
from slimgpu.store.context import Context
from slimgpu.store.transport import open_artifact_sink
from slimgpu.weights.artifact import open_weights
from slimgpu.weights.copy import write_tree
from slimgpu.weights.index import parse_index
from slimgpu.weights.pack import pack
from slimgpu.weights.pointer import POINTER_FILE, Pointer, parse_pointer, pointer_of
from slimgpu.weights.sources import collect
from tests.support.trees import SITE, File, Hardlink, Symlink, distribution, facts_of
from tests.support.weight_files import entry, onnx, onnx_external, safetensors

if TYPE_CHECKING:
    from pathlib import Path

    from slimgpu.analysis.facts import Facts
    from slimgpu.oci.image import Image
    from tests.support.trees import Layer, What

_MB = 1024 * 1024
_REF = "docker://registry/models/m:1"
_SPLIT = Weights("split", _REF)
_A = safetensors({"model.layers.0.a": entry("BF16", [512, 1024], 0, _MB)}, bytes(range(256)) * 4096)
_B = safetensors({"model.layers.1.b": entry("BF16", [512, 1024], 0, _MB)}, bytes(range(255, -1, -1)) * 4096)
_LARGE = safetensors({"c": entry("U8", [70 * _MB], 0, 70 * _MB)}, b"c" * 70 * _MB)
_HUB = "root/.cache/huggingface/hub/models--o--n"
_MODEL: Layer = {
    "models/m/config.json": "{}",
    "models/m/1.safetensors": File(_A, mode=0o755, uid=7),
    "models/m/2.safetensors": _B,
    "models/m/hard": Hardlink("models/m/2.safetensors"),
    "models/copy/again.safetensors": _A,
    "models/link": Symlink("m/1.safetensors"),
    f"{_HUB}/blobs/aa": _B,
    f"{_HUB}/snapshots/1/model.safetensors": Symlink("../../blobs/aa"),
    "models/g/model.onnx": onnx(onnx_external("w", 1, [_MB // 4], location="w.data")),
    "models/g/w.data": bytes(_MB),
}
_GONE = {
    "models/m/1.safetensors",
    "models/m/2.safetensors",
    "models/m/hard",
    "models/copy/again.safetensors",
    f"{_HUB}/blobs/aa",
    "models/g/w.data",
}
_POINTERS = {
    f"{place}/{POINTER_FILE}"
    for place in ("models", "models/m", "models/copy", "models/g", f"{_HUB}/blobs", f"{_HUB}/snapshots/1")
}


def planned(image: Image, facts: Facts, weights: Weights, **wishes: tuple[str, ...]) -> Plan:
    return make_plan(image, facts, claim(facts), Wishes(weights=weights, **wishes))


def actions(tmp_path: Path, layer: Layer, weights: Weights = _SPLIT, **more: tuple[str, ...]) -> dict[str, Action]:
    with facts_of(tmp_path, layer) as (image, facts, _):
        return {action.path: action for action in planned(image, facts, weights, **more).actions}


def contents(image: Image) -> dict[str, bytes | str | None]:
    """Files, links and directories (None) of an image."""
    tars = []
    for layer in image.layers:
        with layer.open() as chunks:
            tars.append(zstandard.ZstdDecompressor().decompressobj().decompress(b"".join(chunks)))
    tree = merge([list(TarReader(tar, "it")) for tar in tars], ["it"] * len(tars))
    found: dict[str, bytes | str | None] = {}
    for path, node in tree.walk():
        one = node.inode.entry
        data = tars[node.inode.layer][one.offset : one.offset + one.size]
        found[path] = data if one.kind is Kind.FILE else one.link if one.kind is Kind.SYMLINK else None
    return found


def run(tmp_path: Path, *layers: Layer, weights: Weights = _SPLIT) -> tuple[Built, Split | None, Plan]:
    with facts_of(tmp_path, *layers) as (image, facts, context):
        plan = planned(image, facts, weights)
        packed = split(plan, facts.files, tmp_path / "packed", context)
        pointer = None if packed is None else packed.pointer
        built = build(image, facts, plan, Format.ZSTD, tmp_path / "blobs", context, pointer=pointer)
        outcome = result_of(image, facts, plan, built, "sha256:x")
    gone = [action for action in plan.actions if action.rule == f"weights.{weights.mode}"]
    expected = WeightsResult(len(gone), sum(action.bytes for action in gone)) if gone else None
    assert outcome.weights == expected
    return built, packed, plan


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def written_back(tmp_path: Path, packed: Split, subject: Image | None = None) -> dict[str, bytes]:
    """The files that the artifact holds, after a way through a layout."""
    reference = parse_reference(f"oci:{tmp_path / 'artifact'}:w")
    context = Context()
    with open_artifact_sink(reference, context.cache) as sink, SILENT.task("", None) as task:
        sink.write(packed.artifact(subject), task)
    with open_weights(reference, context) as weights:
        write_tree(weights, tmp_path / "pulled", context)
    return files_of(tmp_path / "pulled")


def test_weights_leave_and_nothing_else(tmp_path: Path) -> None:
    found = actions(tmp_path, _MODEL)
    assert {path for path, action in found.items() if action.do is Do.DROP} == _GONE
    assert {path for path, action in found.items() if action.do is Do.ADD} == _POINTERS
    assert {action.rule for action in found.values()} == {"weights.split", "weights.pointer"}
    assert found["models/m/2.safetensors"].reason == "safetensors, 1 tensor, 524288 parameters (BF16)"
    assert (found["models/m/2.safetensors"].bytes, found["models/m/hard"].bytes) == (len(_B), 0)


def test_the_artifact_gives_the_identical_tree_back(tmp_path: Path) -> None:
    built, packed, _ = run(tmp_path, _MODEL)
    assert packed is not None
    kept = contents(built.image)
    pulled = written_back(tmp_path, packed)
    assert kept.keys() & pulled.keys() == set()
    with facts_of(tmp_path, _MODEL) as (_, facts, _context):
        read = facts.files.read
        original = {path: read(path, 2**30) for path, _ in facts.files.files()}
        paths = set(facts.files.nodes)
    assert {path: data for path, data in (kept | pulled).items() if path in original} == original
    assert set(kept | pulled) - paths == _POINTERS
    assert kept[f"{_HUB}/snapshots/1/model.safetensors"] == "../../blobs/aa"
    assert (tmp_path / "pulled/models/m/1.safetensors").stat().st_mode & 0o777 == 0o755


def test_what_left_is_what_packing_the_files_gives_and_each_content_is_packed_once(tmp_path: Path) -> None:
    _, packed, _ = run(tmp_path, _MODEL)
    assert packed is not None
    written_back(tmp_path, packed)
    sources, links = collect([tmp_path / "pulled"])
    again = pack(sources, links, tmp_path / "again", Context())
    assert again.index.dump() == packed.config
    index = parse_index(*packed.config, "it")
    assert {file.path for file in index.files} == _GONE
    assert len(index.tensors) == 5
    assert len(index.chunks) == len({chunk.raw for chunk in index.chunks})


def test_the_image_points_to_its_weights(tmp_path: Path) -> None:
    built, packed, _ = run(tmp_path, _MODEL)
    assert packed is not None
    pointer = Pointer(_REF, digest_bytes(packed.config[1]))
    kept = contents(built.image)
    for path in _POINTERS:
        content = kept[path]
        assert isinstance(content, bytes)
        assert parse_pointer(content) == pointer
        assert json.loads(content) == {
            "schema": "slimgpu.pointer.v1",
            "ref": _REF,
            "index": pointer.index,
            "root": "/",
        }
    assert pointer_of(built.image.config) == pointer
    annotations = built.image.manifest.annotations or {}
    assert annotations == {"slimgpu.weights.ref": _REF, "slimgpu.weights.index": pointer.index}
    entries = {one.path: one for layer in built.layers for one in layer.entries}
    added = entries[f"models/m/{POINTER_FILE}"]
    assert (added.mode, added.uid, added.gid, added.mtime) == (0o644, 0, 0, 0)


def test_the_artifact_is_attached_to_the_image(tmp_path: Path) -> None:
    built, packed, _ = run(tmp_path, _MODEL)
    assert packed is not None
    attached, alone = packed.artifact(built.image), packed.artifact(None)
    subject = attached.manifest.subject
    assert subject is not None
    assert (subject.digest, subject.size) == (digest_bytes(built.image.raw_manifest), len(built.image.raw_manifest))
    assert alone.manifest.subject is None
    assert attached.manifest.config == alone.manifest.config
    assert attached.manifest.config.digest == packed.pointer.index


def test_the_same_image_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    one, packed, plan = run(tmp_path / "1", _MODEL)
    other, again, _ = run(tmp_path / "2", _MODEL)
    assert packed is not None
    assert again is not None
    assert one.image.config.diff_ids == other.image.config.diff_ids
    assert packed.artifact(None).raw_manifest == again.artifact(None).raw_manifest
    assert load_plan(plan.dump(), "it") == plan


def test_dropped_weights_leave_no_trace(tmp_path: Path) -> None:
    built, packed, plan = run(tmp_path, _MODEL, weights=Weights("drop"))
    assert packed is None
    assert {action.path for action in plan.actions} == _GONE
    assert {action.rule for action in plan.actions} == {"weights.drop"}
    kept = contents(built.image)
    assert kept.keys() & (_GONE | _POINTERS) == set()
    assert {"models/copy", "models/link", f"{_HUB}/snapshots/1/model.safetensors"} <= kept.keys()
    assert pointer_of(built.image.config) is None


def test_kept_weights_stay(tmp_path: Path) -> None:
    built, packed, plan = run(tmp_path, _MODEL, weights=Weights())
    assert (packed, plan.actions) == (None, ())
    assert contents(built.image).keys() >= _GONE


def test_an_image_without_weights_is_built_as_it_is(tmp_path: Path) -> None:
    built, packed, plan = run(tmp_path, {"app/main.py": "pass"})
    assert (packed, plan.actions) == (None, ())
    assert built.image.manifest.annotations is None


def test_what_the_user_names_wins(tmp_path: Path) -> None:
    found = actions(tmp_path, _MODEL, keep=("hard", "models/g"), drop=("models/copy/*",))
    assert {path for path, action in found.items() if action.rule == "weights.split"} == {
        "models/m/1.safetensors",
        f"{_HUB}/blobs/aa",
    }
    assert found["models/copy/again.safetensors"].rule == "user.drop"


def test_small_weights_of_a_package_stay_and_large_ones_stay_recorded(tmp_path: Path) -> None:
    layer = distribution("p", "1.0", {"p/small.safetensors": _A, "p/large.safetensors": _LARGE, "p/__init__.py": ""})
    record = f"{SITE}/p-1.0.dist-info/RECORD"
    assert set(actions(tmp_path, layer)) == {f"{SITE}/p/large.safetensors", f"{SITE}/p/{POINTER_FILE}"}
    assert set(actions(tmp_path, layer, Weights("drop"))) == {f"{SITE}/p/large.safetensors", record}
    recorded = layer[record]
    assert isinstance(recorded, str)
    document = {record: f"{recorded}../../../../share/doc/p/x,,\n", "usr/share/doc/p/x": "document"}
    changed = {**layer, **document}
    built, packed, plan = run(tmp_path, changed)
    assert packed is not None
    assert {action.path for action in plan.actions if action.do is Do.EDIT} == {record}
    kept = contents(built.image)[record]
    assert isinstance(kept, bytes)
    assert b"p/large.safetensors,," in kept
    assert b"share/doc" not in kept


def test_duplicates_leave_and_are_not_linked(tmp_path: Path) -> None:
    whole: dict[str, What] = {
        **distribution("p", "1.0", {"p/l.safetensors": _LARGE}),
        **distribution("q", "1.0", {"q/l.safetensors": _LARGE}),
    }
    found = actions(tmp_path, whole)
    assert {path for path, action in found.items() if action.rule == "weights.split"} == {
        f"{SITE}/p/l.safetensors",
        f"{SITE}/q/l.safetensors",
    }
    assert not [path for path, action in found.items() if action.do is Do.LINK]


@pytest.mark.parametrize("labels", [{}, {"Labels": {"slimgpu.weights.ref": _REF, "slimgpu.weights.index": "?"}}])
def test_an_image_is_not_split_twice(tmp_path: Path, labels: dict[str, object]) -> None:
    if labels:
        labels = {"Labels": Pointer(_REF, f"sha256:{'0' * 64}").labels}
    layer: Layer = {"m/a.safetensors": _A, **({} if labels else {f"m/{POINTER_FILE}": "{}"})}
    with facts_of(tmp_path, layer, runtime=labels) as (image, facts, _):
        with pytest.raises(UsageError, match="already"):
            planned(image, facts, _SPLIT)
        assert len(planned(image, facts, Weights("drop")).actions) == 1


def test_a_slim_image_keeps_its_pointer_when_it_is_built_again(tmp_path: Path) -> None:
    pointer = Pointer(_REF, f"sha256:{'0' * 64}")
    with facts_of(tmp_path, {f"m/{POINTER_FILE}": pointer.dump()}, runtime={"Labels": pointer.labels}) as opened:
        image, facts, context = opened
        plan = planned(image, facts, _SPLIT)
        built = build(image, facts, plan, Format.ZSTD, tmp_path / "blobs", context)
    assert pointer_of(built.image.config) == pointer


def wrong(plan: Plan, *more: Action, **changes: object) -> Plan:
    return replace(plan, actions=(*plan.actions, *more), **changes)  # type: ignore[arg-type]


def test_plans_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with facts_of(tmp_path, {"m/a.safetensors": _A, "m/d/x": "x", "l": Symlink("m")}) as (image, facts, context):
        plan = planned(image, facts, _SPLIT)
        folder = tmp_path / "packed"
        for path in ("none", "m/d", "l"):
            with pytest.raises(UsageError, match="no ordinary file"):
                split(wrong(plan, Action(path, Do.DROP, "weights.split", "", 0)), facts.files, folder, context)
        for path in ("m/new", f"none/{POINTER_FILE}", f"l/{POINTER_FILE}", f"m/d/x/{POINTER_FILE}"):
            with pytest.raises(UsageError, match="cannot be"):
                apply(wrong(plan, Action(path, Do.ADD, "weights.pointer", "", 0)), facts.files, {})
        with pytest.raises(UsageError, match="that it drops"):
            apply(wrong(plan, Action("m", Do.DROP, "user.drop", "", 0)), facts.files, {})
        with pytest.raises(UsageError, match="do not belong together"):
            build(image, facts, plan, Format.ZSTD, tmp_path / "blobs", context)
        alone = replace(plan, actions=())
        with pytest.raises(UsageError, match="do not belong together"):
            build(image, facts, alone, Format.ZSTD, tmp_path / "blobs", context, pointer=Pointer(_REF, ""))


def test_a_cache_that_changed_is_noticed(tmp_path: Path) -> None:
    with facts_of(tmp_path, {"m/a.safetensors": _A}) as (image, facts, context):
        plan = planned(image, facts, _SPLIT)
        tar = facts.files.tars[0]
        data = bytearray(tar.read_bytes())
        data[facts.files.nodes["m/a.safetensors"].inode.entry.offset + 1000] ^= 1
        tar.chmod(0o600)
        tar.write_bytes(data)
        with pytest.raises(ImageError, match="has changed"):
            split(plan, facts.files, tmp_path / "packed", context)
        tar.write_bytes(data[:5000])
        with pytest.raises(ImageError, match="ends early"):
            split(plan, facts.files, tmp_path / "packed", context)


@pytest.mark.parametrize(
    ("weights", "image", "why"),
    [
        ("docker-archive:w.tar", None, "images only"),
        ("docker-daemon:w", None, "images only"),
        (f"docker://r/w@sha256:{'0' * 64}", None, "by a tag"),
        ("docker://r/w:1", "docker://r/w:1", "of their own"),
        ("oci:d:t", "oci:./d:t", "of their own"),
        ("oci:d", "oci:d", "of their own"),
        ("oci-archive:f:a", "oci-archive:f:b", "of their own"),
    ],
)
def test_places_that_cannot_hold_weights(weights: str, image: str | None, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        check_artifact(parse_reference(weights), None if image is None else parse_reference(image))


@pytest.mark.parametrize(
    ("weights", "image"),
    [
        ("docker://r/w:1", "docker://r/w:2"),
        ("docker://r/w:1", "docker-daemon:r/w:1"),
        ("oci:d:w", "oci:d:t"),
        ("oci:d:w", "docker://r/w:1"),
        ("oci-archive:f", "docker-archive:g"),
        ("docker://r/w:1", None),
    ],
)
def test_places_that_can(weights: str, image: str | None) -> None:
    check_artifact(parse_reference(weights), None if image is None else parse_reference(image))


_INDEX = f"sha256:{hashlib.sha256(b'').hexdigest()}"


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ([], "no pointer"),
        ({"schema": "slimgpu.pointer.v2"}, "no pointer"),
        ({"ref": 1}, "names no weights"),
        ({"ref": "weird://x"}, "names no weights"),
        ({"ref": "oci:\ud800"}, "names no weights"),
        ({"root": "/\ud800"}, "no absolute path"),
        ({"index": "sha256:1"}, "no valid digest"),
        ({"index": None}, "no valid digest"),
        ({"root": "models"}, "no absolute path"),
        ({"root": "/a/../b"}, "no absolute path"),
        ({"root": None}, "no absolute path"),
    ],
)
def test_malformed_pointers(document: object, why: str) -> None:
    whole = {"schema": "slimgpu.pointer.v1", "ref": _REF, "index": _INDEX, "root": "/"}
    data = (
        document
        if isinstance(document, str)
        else json.dumps({**whole, **document} if isinstance(document, dict) else document)
    )
    with pytest.raises(ImageError, match=why):
        parse_pointer(data.encode())


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from([_REF, _INDEX]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["schema", "ref", "index", "root"]), _JSON), st.binary(max_size=20))
def test_any_pointer_is_one_or_an_images_error(document: dict[str, object], noise: bytes) -> None:
    whole = {"schema": "slimgpu.pointer.v1", "ref": _REF, "index": _INDEX, "root": "/"}
    for data in (json.dumps({**whole, **document}).encode(), noise):
        try:
            pointer = parse_pointer(data)
        except ImageError:
            continue
        assert parse_pointer(pointer.dump()) == pointer


def test_labels_without_a_pointer() -> None:
    assert pointer_of(ImageConfig({})) is None
    assert pointer_of(ImageConfig({"config": {"Labels": {"a": "b"}}})) is None
    with pytest.raises(ImageError, match=r"the label slimgpu\.weights\.ref"):
        pointer_of(ImageConfig({"config": {"Labels": {"slimgpu.weights.ref": "docker://"}}}))
