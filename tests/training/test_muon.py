"""Muon against PyTorch's own, which takes matrices alone, and against singular values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training import muon
from training.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6), (1, 7)], ids=str)
def test_all_singular_values_become_about_one_and_their_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalised(matrix)
    assert found.shape == matrix.shape
    assert found.dtype == matrix.dtype
    assert found.is_contiguous()
    within = left.T @ found @ right.T
    assert within.diagonal().min() > 0.5
    assert within.diagonal().max() < 1.3
    assert (within - within.diagonal().diag()).abs().max() < 0.01


def test_a_matrix_of_zeros_stays_one() -> None:
    assert not orthogonalised(torch.zeros(3, 4)).any()


def plain(matrix: torch.Tensor) -> torch.Tensor:
    """The iteration as Jordan et al. write it."""
    wide: torch.Tensor = matrix / matrix.norm()
    for _ in range(5):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), wide, beta=3.4445)
    return wide


@pytest.mark.parametrize("shape", [(8, 8), (6, 54), (32, 288)], ids=str)
def test_the_iteration_is_that_of_jordan(shape: tuple[int, int]) -> None:
    """Also where singular values lie three powers of ten apart."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    matrix = matrix * torch.logspace(0, -3, len(matrix))[:, None]
    torch.testing.assert_close(orthogonalised(matrix).double(), plain(matrix.double()), rtol=0, atol=1e-3)


def test_matrices_move_as_with_pytorchs_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrices are rounded as PyTorch's are, which multiplies in bfloat16."""
    monkeypatch.setattr(muon, "orthogonalised", lambda matrix: plain(matrix.bfloat16()).float())
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(6, 10, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimisers = (
        Muon([{"params": [ours], "lr": 0.02, "weight_decay": 0.1, "orthogonal": True}]),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(5):
        gradient = torch.randn(6, 10, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimiser in optimisers:
            optimiser.step()
    assert (ours - start).abs().max() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_a_filter_moves_like_the_matrix_that_multiplies_a_patch() -> None:
    generator = torch.Generator().manual_seed(2)
    filters = torch.randn(4, 3, 3, 3, generator=generator)
    matrix = nn.Parameter(filters.flatten(1).clone())
    laid_out = nn.Parameter(filters.clone(memory_format=torch.channels_last))
    gradient = torch.randn(4, 3, 3, 3, generator=generator)
    matrix.grad, laid_out.grad = gradient.flatten(1), gradient.clone(memory_format=torch.channels_last)
    Muon([{"params": [matrix, laid_out], "lr": 0.1, "weight_decay": 0.0, "orthogonal": True}]).step()
    torch.testing.assert_close(laid_out.detach().flatten(1), matrix.detach())


def test_the_other_groups_move_as_with_adamw() -> None:
    ours, theirs = (nn.Parameter(torch.ones(5)) for _ in range(2))
    optimisers = (
        Muon([{"params": [ours], "lr": 0.1, "weight_decay": 0.2, "orthogonal": False}]),
        torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.2),
    )
    for step in range(3):
        ours.grad = theirs.grad = torch.arange(5.0) - step
        for optimiser in optimisers:
            optimiser.step()
    assert torch.equal(ours, theirs)


def test_what_has_no_gradient_stays() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    Muon([{"params": [weight], "lr": 0.1, "weight_decay": 0.5, "orthogonal": True}]).step()
    assert torch.equal(weight, torch.ones(2, 2))
