from __future__ import annotations

import pytest
import torch

from training import precision
from training.precision import Precision, arithmetic, multiplies_bfloat16

CPU = torch.device("cpu")


def product_type(chosen: Precision) -> torch.dtype:
    with arithmetic(chosen, CPU):
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.mark.parametrize(("in_hardware", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bfloat16_where_the_device_multiplies_it_and_nowhere_else(
    in_hardware: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: in_hardware)
    assert product_type("auto") == expected


@pytest.mark.parametrize("in_hardware", [True, False])
def test_a_precision_that_is_named_is_the_one_that_runs(in_hardware: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: in_hardware)
    assert product_type("bfloat16") == torch.bfloat16
    assert product_type("float32") == torch.float32


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({"avx2": True, "amx_bf16": False}, False), ({"amx_bf16": True}, True), ({"bf16": True}, True), ({}, False)],
    ids=str,
)
def test_the_processor_is_asked(flags: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert multiplies_bfloat16.__wrapped__(CPU) == expected
