"""GPU architectures: which one a product has, and which code runs on it.

Sources: CUDA C++ Programming Guide, "Compute Capabilities" and "Binary Compatibility"; CUDA compiler driver nvcc, "GPU
Feature List" and "Family-Specific Architecture Features"; https://developer.nvidia.com/cuda-gpus.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from slimgpu.errors import UsageError


class Variant(StrEnum):
    """How far code may be from the architecture that it was compiled for."""

    PLAIN = ""
    SPECIFIC = "a"
    """Runs on exactly that architecture."""
    FAMILY = "f"
    """Runs in that architecture's family: the same major version, and no smaller minor version."""


@dataclass(frozen=True, slots=True, order=True)
class Sm:
    """An architecture by its number: major version times ten plus minor version, so 90 is compute capability 9.0."""

    number: int
    variant: Variant = Variant.PLAIN

    @property
    def major(self) -> int:
        """Of the compute capability."""
        return self.number // 10

    @property
    def embedded(self) -> bool:
        """Whether it is a Tegra's: NVIDIA promises no binary compatibility between these and other GPUs."""
        return self.number in _EMBEDDED

    def __str__(self) -> str:
        return f"sm_{self.number}{self.variant}"


_EMBEDDED: Final = frozenset({32, 53, 62, 72, 87, 101, 110})

_PRODUCTS: Final = {
    "p100": 60,
    "p4": 61,
    "p40": 61,
    "v100": 70,
    "titanv": 70,
    "t4": 75,
    "rtx2080": 75,
    "rtx2080ti": 75,
    "a30": 80,
    "a100": 80,
    "a800": 80,
    "a2": 86,
    "a10": 86,
    "a10g": 86,
    "a16": 86,
    "a40": 86,
    "rtxa4000": 86,
    "rtxa5000": 86,
    "rtxa6000": 86,
    "rtx3060": 86,
    "rtx3070": 86,
    "rtx3080": 86,
    "rtx3080ti": 86,
    "rtx3090": 86,
    "rtx3090ti": 86,
    "orin": 87,
    "l4": 89,
    "l20": 89,
    "l40": 89,
    "l40s": 89,
    "rtx4000ada": 89,
    "rtx6000ada": 89,
    "rtx4060": 89,
    "rtx4070": 89,
    "rtx4070ti": 89,
    "rtx4080": 89,
    "rtx4090": 89,
    "h20": 90,
    "h100": 90,
    "h200": 90,
    "h800": 90,
    "gh200": 90,
    "b100": 100,
    "b200": 100,
    "gb200": 100,
    "b300": 103,
    "gb300": 103,
    "thor": 110,
    "rtx5060": 120,
    "rtx5070": 120,
    "rtx5070ti": 120,
    "rtx5080": 120,
    "rtx5090": 120,
    "rtxpro6000": 120,
    "gb10": 121,
}
_MAKERS: Final = frozenset({"nvidia", "geforce", "tesla", "jetson"})
_EXAMPLES: Final = "t4, a10, a100, l4, l40s, h100, h200, b200, rtx4090, rtx5090"
_KNOWN: Final = frozenset({50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 88, 89, 90, 100, 101, 103, 110, 120, 121})
_NUMBER: Final = re.compile(r"(?:sm_?)?(\d{2,3})[af]?|(\d{1,2})\.(\d)", re.ASCII)


def parse_target(text: str) -> Sm:
    """The architecture of a GPU by its product (also as nvidia-smi prints it), or from ``sm_90``, ``9.0`` or ``90``.

    A GPU runs its architecture's plain, specific and family code alike, so a suffix means nothing here.
    Raises `UsageError` for a name that is not known.
    """
    number = _number(text) or _product(text)
    if number not in _KNOWN:
        raise UsageError(
            f"{text!r} is no GPU that slimgpu knows; name a product ({_EXAMPLES}) or sm_90, sm_100, ..., and "
            "repeat --gpu for more than one"
        )
    return Sm(number)


def _number(text: str) -> int:
    match = _NUMBER.fullmatch(text.strip().lower())
    if match is None:
        return 0
    return int(match[1]) if match[1] else int(match[2]) * 10 + int(match[3])


def _product(text: str) -> int:
    """The number for the longest known name that the words begin with; 0 for none."""
    words = [word for word in re.split(r"[\s_-]+", text.lower()) if word not in _MAKERS]
    names = ("".join(words[:count]) for count in range(len(words), 0, -1))
    return next((_PRODUCTS[name] for name in names if name in _PRODUCTS), 0)
