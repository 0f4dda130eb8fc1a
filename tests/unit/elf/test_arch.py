from __future__ import annotations

import pytest

from slimgpu.elf.arch import Sm, Variant, parse_target
from slimgpu.errors import UsageError


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("t4", 75), ("T4", 75), ("a100", 80), ("A10G", 86), ("l4", 89), ("L40S", 89), ("h100", 90), ("NVIDIA H100", 90),
        ("b200", 100), ("gb300", 103), ("rtx4090", 89), ("GeForce RTX 4090", 89), ("NVIDIA GeForce RTX-5090", 120),
        ("rtx_6000_ada", 89), ("RTX PRO 6000", 120), ("NVIDIA H100 80GB HBM3", 90), ("NVIDIA A100-SXM4-80GB", 80),
        ("Tesla T4", 75), ("NVIDIA RTX 6000 Ada Generation", 89), ("rtx 4080 super", 89), ("p100", 60), ("gb10", 121),
        ("orin", 87), ("thor", 110),
        ("90", 90), ("9.0", 90), ("12.0", 120), ("10.3", 103), ("sm_90", 90), ("sm90", 90), ("SM_90a", 90),
    ],
)  # fmt: skip
def test_a_gpu_by_its_names(text: str, number: int) -> None:
    assert parse_target(text) == Sm(number)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h1000",
        "sm_91",
        "9",
        "9.00",
        "90b",
        "sm_",
        "compute",
        "-90",
        "90 80",
        "rtx6000",
        "h100,a100",
        "compute_90",
        "٩٠",
        "1e2",
    ],
)
def test_an_unknown_name_is_named_with_the_way_out(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_target(text)
    assert repr(text) in str(caught.value)
    assert "h100" in str(caught.value)
    assert "sm_90" in str(caught.value)


def test_text_and_order() -> None:
    assert [str(Sm(90)), str(Sm(90, Variant.SPECIFIC)), str(Sm(100, Variant.FAMILY))] == ["sm_90", "sm_90a", "sm_100f"]
    assert sorted([Sm(100), Sm(90, Variant.SPECIFIC), Sm(90)]) == [Sm(90), Sm(90, Variant.SPECIFIC), Sm(100)]
    assert (Sm(103).major, Sm(75).major) == (10, 7)
