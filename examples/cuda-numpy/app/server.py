"""A small sentence-embedding server: the mean of a real model's token embeddings, on a GPU if there is one.

POST {"inputs": ["a text", ...]} to / and get embeddings and cosine similarities. `--once` prints one answer and ends.
"""

import argparse
import ctypes
import hashlib
import json
import os
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from setproctitle import setproctitle

Array = np.ndarray[Any, Any]
HERE = Path(__file__).resolve().parent
MODEL = Path(os.environ.get("MODEL", HERE / "model"))
EXAMPLE = ["The cat sits on the mat.", "A kitten is on a carpet.", "GPU images are far too large."]


class Numpy:
    """Pooling on the CPU."""

    name = "cpu"

    def __init__(self, table: Array) -> None:
        self.table = table

    def embed(self, texts: list[Array]) -> tuple[Array, Array]:
        """Each text's mean embedding, and the products of every pair of them."""
        means = np.stack([self.table[ids].mean(axis=0) for ids in texts])
        return means, means @ means.T


class Cuda:
    """Pooling on the GPU, by a library that was compiled when the image was built."""

    name = "cuda"

    def __init__(self, table: Array, library: ctypes.CDLL) -> None:
        self.width = table.shape[1]
        self.library = library
        library.upload.restype = ctypes.c_void_p
        library.upload.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self.table = ctypes.c_void_p(library.upload(table.ctypes.data, table.size))

    def embed(self, texts: list[Array]) -> tuple[Array, Array]:
        """Each text's mean embedding, and the products of every pair of them."""
        ids = np.concatenate(texts).astype(np.int32)
        starts = np.cumsum([0, *map(len, texts)]).astype(np.int32)
        means = np.empty((len(texts), self.width), np.float32)
        products = np.empty((len(texts), len(texts)), np.float32)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (ids, starts, means, products)]
        status = self.library.embed(self.table, self.width, *pointers[:2], len(texts), *pointers[2:])
        if status:
            raise RuntimeError(f"CUDA error {status}")
        return means, products


def backend(table: Array, device: str) -> Numpy | Cuda:
    """The pooling for a device, `auto` meaning the GPU if there is one."""
    if device != "cpu":
        library = ctypes.CDLL(str(HERE / "libpool.so"))
        if library.gpu_count():
            return Cuda(table, library)
        if device == "cuda":
            raise SystemExit("no GPU found")
    return Numpy(table)


class Embedder:
    """The model's vocabulary and token embeddings."""

    def __init__(self, device: str) -> None:
        words = (MODEL / "vocab.txt").read_text(encoding="utf-8").splitlines()
        self.ids = {word: number for number, word in enumerate(words)}
        with safe_open(MODEL / "model.safetensors", framework="numpy") as weights:
            self.backend = backend(weights.get_tensor("embeddings.word_embeddings.weight"), device)

    def tokens(self, text: str) -> Array:
        """Token ids of the text's whole words and punctuation."""
        words = re.findall(r"\w+|[^\w\s]", text.lower())
        return np.array([self.ids.get(word, self.ids["[UNK]"]) for word in ["[CLS]", *words, "[SEP]"]])

    def answer(self, inputs: list[str]) -> dict[str, Any]:
        """Embeddings of length 1 and their cosine similarities, rounded so that they compare."""
        means, products = self.backend.embed([self.tokens(text) for text in inputs])
        means, products = means.astype(float), products.astype(float)
        lengths = np.sqrt(np.diag(products))
        return {
            "device": self.backend.name,
            "embeddings": np.round(means / lengths[:, None], 5).tolist(),
            "similarity": np.round(products / np.outer(lengths, lengths), 4).tolist(),
        }


def once(embedder: Embedder) -> dict[str, Any]:
    """One answer in short: the first numbers of each embedding and a hash of all."""
    answer = embedder.answer(EXAMPLE)
    digest = hashlib.sha256(json.dumps(answer["embeddings"]).encode()).hexdigest()
    return {**answer, "embeddings": [vector[:4] for vector in answer["embeddings"]], "sha256": digest}


def serve(embedder: Embedder, port: int) -> None:
    """Answer requests until interrupted."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, {"status": "ok", "device": embedder.backend.name})

        def do_POST(self) -> None:
            try:
                inputs = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
                self.reply(200, embedder.answer(inputs))
            except (ValueError, KeyError, TypeError) as error:
                self.reply(400, {"error": str(error)})

        def reply(self, status: int, value: dict[str, Any]) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    print(f"listening on port {port}", flush=True)
    ThreadingHTTPServer(("", port), Handler).serve_forever()


def main() -> None:
    """Serve, or answer once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--once", action="store_true", help="print one answer as JSON and end")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    options = parser.parse_args()
    setproctitle("embeddings")
    embedder = Embedder(options.device)
    if options.once:
        print(json.dumps(once(embedder)))
    else:
        serve(embedder, options.port)


if __name__ == "__main__":
    main()
