from __future__ import annotations

import subprocess
import sys

_HEAVY = ("requests", "docker", "urllib3")
_PROGRAM = """
import sys
from slimgpu.store import transport
from slimgpu.oci.manifest import Platform
from slimgpu.oci.reference import parse_reference
from slimgpu.store.cache import Cache
from slimgpu.progress import SILENT
try:
    transport.open_image(parse_reference("oci:/nowhere"), Platform("amd64", "linux"), Cache(), SILENT).__enter__()
except Exception as error:
    print(type(error).__name__)
print(*sorted(name for name in {heavy} if name in sys.modules))
"""


def test_only_what_a_reference_needs_is_imported() -> None:
    command = [sys.executable, "-c", _PROGRAM.format(heavy=_HEAVY)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.split("\n") == ["NotFoundError", "", ""]
