"""Runs inside an image's root, with the image's Python: loads libraries, or computes on the CPU.

``load``: reads a JSON list of [path, is a program] and prints what came of each, a fresh process for each.
``compute``: prints a hash of results as JSON.
"""

import ctypes
import hashlib
import importlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys

SECONDS = 120
LOADER = "/lib64/ld-linux-x86-64.so.2"


def load_all() -> None:
    """Load each file that is asked for."""
    answers = {}
    for path, is_program in json.load(sys.stdin):
        answers[path] = list_needed(path) if is_program else load(path)
    json.dump(answers, sys.stdout)


def load(path: str) -> str:
    """What dlopen says in a process of its own that has loaded nothing else."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, answer(path).encode()[:4000])
        os._exit(0)
    os.close(writing)
    if not select.select([reading], [], [], SECONDS)[0]:
        os.kill(child, signal.SIGKILL)
    said = os.read(reading, 4096).decode()
    os.close(reading)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return said if status == 0 else f"ended with {status}"


def answer(path: str) -> str:
    """``loads``, if need be once torch is there, or what is wrong."""
    try:
        ctypes.CDLL(path, mode=os.RTLD_NOW)
    except OSError as error:
        said = str(error)
    else:
        return "loads"
    if "undefined symbol" not in said:
        return said
    try:
        importlib.import_module("torch")
        ctypes.CDLL(path, mode=os.RTLD_NOW)
    except (ImportError, OSError) as error:
        return str(error)
    return "loads after torch"


def list_needed(path: str) -> str:
    """What the dynamic loader maps for a program, without the addresses."""
    done = subprocess.run([LOADER, "--list", path], capture_output=True, text=True, check=False)
    return re.sub(r"0x[0-9a-f]+", "", f"{done.returncode} {done.stdout}{done.stderr}")


def compute() -> None:
    """Import what is installed, compute, and hash all results."""
    results = {"torch": torch_results()}
    for name in ("numpy", "torchvision", "torchaudio", "triton", "vllm"):
        try:
            results[name] = importlib.import_module(name).__version__
        except ImportError as error:
            results[name] = str(error)
    if results["torchvision"][0].isdigit():
        results["torchvision"] = vision_results()
    if os.path.exists("/app/check.py"):  # noqa: PTH110  # this runs on whatever Python the image has
        done = subprocess.run([sys.executable, "/app/check.py"], capture_output=True, text=True, check=False)
        results["check"] = [done.returncode, done.stdout.splitlines()[-1:]]
    json.dump(results, sys.stdout)


def digest(tensors: list) -> str:
    """SHA-256 of the bytes of tensors."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().contiguous().numpy().tobytes())
    return total.hexdigest()


def torch_results() -> dict:
    """Hashes by kind of work."""
    import torch  # noqa: PLC0415  # only this mode needs it

    torch.manual_seed(7)
    torch.set_num_threads(2)
    functional = torch.nn.functional
    square = torch.randn(300, 300)
    positive = square @ square.T + torch.eye(300) * 300
    picture, weights = torch.randn(2, 8, 64, 64), torch.randn(16, 8, 3, 3)
    heads = torch.randn(3, 2, 4, 50, 32)
    hashes = {
        "matmul": digest(
            [square @ square, square.double() @ square.double(), square.bfloat16().matmul(square.bfloat16()).float()]
        ),
        "convolution": digest(
            [functional.conv2d(picture, weights), functional.conv_transpose2d(picture, weights.transpose(0, 1))]
        ),
        "fft": digest([torch.view_as_real(torch.fft.fft2(square)), torch.fft.irfft(torch.fft.rfft(square))]),
        "linalg": digest(
            [
                *torch.linalg.svd(square),
                torch.linalg.cholesky(positive),
                torch.linalg.solve(positive, square),
                *torch.linalg.eigh(positive),
            ]
        ),
        "attention": digest([functional.scaled_dot_product_attention(*heads)]),
        "training": digest(train(torch)),
        "built for": str(torch._C._cuda_getArchFlags()),  # noqa: SLF001  # what the CUDA library itself says
    }
    if shutil.which("g++") or shutil.which("gcc"):
        compiled = torch.compile(lambda x: torch.sin(x) @ torch.cos(x).T + x.sum(0))
        hashes["compiled"] = digest([compiled(square)])
    return hashes


def train(torch: object) -> list:
    """A few steps of a small network."""
    network = torch.nn.Sequential(
        torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.LayerNorm(64), torch.nn.Linear(64, 1)
    )
    optimizer = torch.optim.AdamW(network.parameters())
    for _ in range(5):
        loss = network(torch.randn(16, 32)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return list(network.parameters())


def vision_results() -> dict:
    """Hashes of torchvision's own compiled code."""
    import torch  # noqa: PLC0415
    import torchvision  # noqa: PLC0415

    torch.manual_seed(8)
    corners = torch.rand(200, 2) * 100
    boxes = torch.cat([corners, corners + torch.rand(200, 2) * 50 + 1], 1)
    picture = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    encoded = torchvision.io.encode_jpeg(picture)
    return {
        "version": torchvision.__version__,
        "nms": digest([torchvision.ops.nms(boxes, torch.rand(200), 0.5)]),
        "align": digest([torchvision.ops.roi_align(torch.randn(1, 4, 128, 128), [boxes[:20]], 7)]),
        "pictures": digest([encoded, torchvision.io.decode_jpeg(encoded), torchvision.io.encode_png(picture)]),
    }


if __name__ == "__main__":
    {"load": load_all, "compute": compute}[sys.argv[1]]()
