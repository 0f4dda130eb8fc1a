"""Load the model, print the first token that it says as JSON, and end; with ``--serve``, answer requests.

With SLIMGPU_WEIGHTS set, weights come from memory that the node fills while this starts; else from files.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import torch
from transformers import AutoConfig, LlamaForCausalLM

MODEL = Path(__file__).resolve().parent / "model"
PROMPT = [1, 450, 7483, 310, 3444, 338]


def loaded(device: str) -> LlamaForCausalLM:
    """The model on ``device``."""
    weights = os.environ.get("SLIMGPU_WEIGHTS")
    if not weights:
        return LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16).to(device)
    import slimgpu.weights  # noqa: PLC0415 - only where it is wanted

    tensors = slimgpu.weights.load(weights, device=device)
    config = AutoConfig.from_pretrained(MODEL)
    return LlamaForCausalLM.from_pretrained(None, config=config, state_dict=tensors, dtype=torch.bfloat16)


def first_token(model: LlamaForCausalLM, prompt: list[int]) -> dict[str, object]:
    """The most likely next token and its score."""
    with torch.inference_mode():
        scores = model(torch.tensor([prompt], device=model.device)).logits[0, -1].float()
    token = int(scores.argmax())
    return {"token": token, "score": round(float(scores[token]), 3), "device": model.device.type}


class Server(HTTPServer):
    """Answers with the first token after ``{"prompt": [...]}``."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__(("127.0.0.1", 8000), Handler)
        self.model = model


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server

    def do_POST(self) -> None:
        """Read a prompt and answer it."""
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
        data = json.dumps(first_token(self.server.model, prompt)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def main() -> None:
    """Answer once, or serve."""
    model = loaded("cuda" if torch.cuda.is_available() else "cpu")
    print(json.dumps(first_token(model, PROMPT)), flush=True)
    if "--serve" in sys.argv:
        Server(model).serve_forever()


if __name__ == "__main__":
    main()
