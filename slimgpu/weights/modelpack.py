"""The same files as an artifact in the CNCF ModelPack layout, for tools that know nothing of our chunks.

Every file is a layer of its own, neither archived nor compressed.

Source: https://github.com/modelpack/model-spec/blob/main/docs/spec.md, config.md and annotations.md
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from math import prod
from typing import TYPE_CHECKING, Any, Final

from slimgpu.errors import DigestError
from slimgpu.oci.manifest import Descriptor
from slimgpu.oci.mutate import CheckedBlob, compose_artifact, open_file
from slimgpu.store.transport import open_artifact_sink
from slimgpu.weights.copy import write_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slimgpu.oci.reference import Reference
    from slimgpu.store.context import Context
    from slimgpu.weights.artifact import Weights
    from slimgpu.weights.index import File, Index

ARTIFACT_TYPE: Final = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.cncf.model.config.v1+json"
WEIGHT_TYPE: Final = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG_TYPE: Final = "application/vnd.cncf.model.weight.config.v1.raw"
DOC_TYPE: Final = "application/vnd.cncf.model.doc.v1.raw"
CODE_TYPE: Final = "application/vnd.cncf.model.code.v1.raw"
FILEPATH: Final = "org.cncf.model.filepath"
_METADATA: Final = "org.cncf.model.file.metadata+json"
_EPOCH: Final = "1970-01-01T00:00:00Z"
_REGULAR: Final = ord("0")

_FORMATS: Final = {
    ".safetensors": "safetensors",
    ".gguf": "gguf",
    ".onnx": "onnx",
    ".bin": "pt",
    ".pt": "pt",
    ".pth": "pt",
}
_PRECISIONS: Final = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
    "BOOL": "bool",
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}
_SCALES: Final = ((10**15, "Q"), (10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))


def export_modelpack(weights: Weights, destination: Reference, context: Context) -> str:
    """Store the files at ``destination`` as a ModelPack artifact; gives its digest.

    The same weights give the same artifact. Raises what writing files and artifacts raise.
    """
    index = weights.index
    with open_artifact_sink(destination, context.cache) as sink:
        written, staged = sink.workspace / "files", sink.workspace / "blobs" / "sha256"
        write_tree(weights, written, context)
        staged.mkdir(parents=True, exist_ok=True)
        for file in index.files:
            _stage(written / file.path, file, staged)
        layers = [
            CheckedBlob(_descriptor(path, file, index), open_file(staged / file.digest.partition(":")[2]))
            for path, file in _names(index)
        ]
        config = json.dumps(_config(index, [layer.descriptor.digest for layer in layers]), indent=1).encode()
        artifact = compose_artifact(weights.artifact.name, ARTIFACT_TYPE, (CONFIG_TYPE, config), layers)
        with context.progress.task("storing the artifact", sum(layer.descriptor.size for layer in layers)) as task:
            return sink.write(artifact, task)


def _stage(path: Path, file: File, staged: Path) -> None:
    """Move a file to where a layout looks for the blob, which nobody hashes again."""
    with path.open("rb") as content:
        found = f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"
    if found != file.digest:
        raise DigestError(f"{file.path} has the digest {found}, not {file.digest}; pack the weights again")
    path.replace(staged / found.partition(":")[2])


def _names(index: Index) -> Iterator[tuple[str, File]]:
    """All paths of files, those through links, too: there are no links between layers."""
    files = {file.path: file for file in index.files}
    found = dict(files)
    for link in index.links:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(link.path), link.target))
        for name, file in files.items():
            if name == target or name.startswith(f"{target}/"):
                found[link.path + name.removeprefix(target)] = file
    yield from sorted(found.items())


def _descriptor(path: str, file: File, index: Index) -> Descriptor:
    metadata = {
        "name": path,
        "mode": 0o755 if file.executable else 0o644,
        "uid": 0,
        "gid": 0,
        "size": file.size,
        "mtime": _EPOCH,
        "typeflag": _REGULAR,
    }
    annotations = {FILEPATH: path, _METADATA: json.dumps(metadata, separators=(",", ":"))}
    return Descriptor(_type(path, file, index), file.digest, file.size, annotations=annotations)


def _type(path: str, file: File, index: Index) -> str:
    if any(index.files[tensor.file] is file for tensor in index.tensors):
        return WEIGHT_TYPE
    name = posixpath.basename(path).upper()
    if name.endswith((".MD", ".PDF")) or name.startswith(("LICENSE", "README", "NOTICE")):
        return DOC_TYPE
    return CODE_TYPE if name.endswith((".PY", ".SH", ".IPYNB")) else WEIGHT_CONFIG_TYPE


def _config(index: Index, diff_ids: list[str]) -> dict[str, Any]:
    holding = {index.files[tensor.file].path for tensor in index.tensors}
    formats = {_FORMATS.get(posixpath.splitext(path)[1].lower(), "") for path in holding} - {""}
    precisions = {_PRECISIONS[tensor.dtype] for tensor in index.tensors if tensor.dtype in _PRECISIONS}
    technical: dict[str, str] = {}
    if len(formats) == 1:
        technical["format"] = formats.pop()
    parameters = sum(prod(shape) for shape in {tensor.name: tensor.shape for tensor in index.tensors}.values())
    if parameters:
        technical["paramSize"] = _scaled(parameters)
    if precisions:
        technical["precision"] = ",".join(sorted(precisions))
    return {"descriptor": {}, "config": technical, "modelfs": {"type": "layers", "diffIds": diff_ids}}


def _scaled(count: int) -> str:
    """``6_700_000_000`` as ``6.7B``; what is less than a thousand is a part of one."""
    size, letter = next(((size, letter) for size, letter in _SCALES if count >= size), _SCALES[-1])
    return f"{count / size:.1f}".removesuffix(".0") + letter
