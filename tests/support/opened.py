"""Opens a library as programs do and prints what is seen: ``python -m tests.support.opened RUNTIME LIBRARY``."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import sys


def look(runtime: str, library: str) -> dict[str, object]:
    """Results of its functions, and the containers that the CUDA runtime is handed."""
    handed = ctypes.CDLL(runtime, mode=os.RTLD_NOW | os.RTLD_GLOBAL)
    lib = ctypes.CDLL(library, mode=os.RTLD_NOW)
    lib.named.restype = ctypes.c_char_p
    handed.seen_container.restype = ctypes.c_void_p
    containers = [_container(handed.seen_container(number)) for number in range(handed.seen_containers())]
    table = (ctypes.c_char * 4096).in_dll(lib, "table")
    return {
        "exported": [lib.exported(number) for number in range(5)],
        "caught": [lib.caught(number) for number in range(5)],
        "iterated": lib.iterated(),
        "named": lib.named().decode(),
        "table": hashlib.sha256(bytes(table)).hexdigest(),
        "containers": [data.hex() for data in containers],
        "launched": [getattr(lib, f"launch{n}", lambda _: None)(None) is not None for n in range(1, 9)]
        if hasattr(lib, "launch1")
        else [],
    }


def _container(address: int) -> bytes:
    size = int.from_bytes(ctypes.string_at(address + 8, 8), "little")
    return ctypes.string_at(address, 16 + size)


if __name__ == "__main__":
    json.dump(look(*sys.argv[1:3]), sys.stdout)
