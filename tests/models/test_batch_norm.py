"""Batch norm over ranks is batch norm over all their positions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from forked_ranks import as_ranks
from unmask.models.batch_norm import RankBatchNorm

WIDTH = 5
COUNTS = (4, 7)


def positions() -> Tensor:
    """Of both ranks: far from zero, where a sum of squares would lose its digits."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(sum(COUNTS), WIDTH, dtype=torch.float64, generator=generator) * 3 + 1000


def weights() -> Tensor:
    return torch.randn(sum(COUNTS), WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def step(norm: nn.BatchNorm1d, x_TD: Tensor, weights_TD: Tensor) -> dict[str, Tensor]:
    x_TD = x_TD.clone().requires_grad_()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(1, 2, WIDTH))
    out_TD = norm(x_TD)
    (out_TD.pow(2) * weights_TD).sum().backward()
    assert x_TD.grad is not None
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    gradients = {"x": x_TD.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    return {"out": out_TD.detach()} | gradients | dict(norm.named_buffers())


def work(number: int, folder: Path) -> None:
    mine = slice(0, COUNTS[0]) if number == 0 else slice(COUNTS[0], None)
    left = step(RankBatchNorm(WIDTH).double(), positions()[mine], weights()[mine])
    half = RankBatchNorm(WIDTH)
    assert half(positions()[mine].float().to(torch.bfloat16)).dtype == torch.bfloat16
    save_file(left, folder / f"{number}.safetensors")


def test_two_ranks_are_one(tmp_path: Path) -> None:
    as_ranks(2, work, tmp_path)
    found = [load_file(tmp_path / f"{number}.safetensors") for number in range(2)]
    expected = step(nn.BatchNorm1d(WIDTH).double(), positions(), weights())
    for key in ("out", "x"):
        torch.testing.assert_close(torch.cat([rank[key] for rank in found]), expected[key], rtol=1e-9, atol=1e-11)
    for key in ("weight", "bias"):
        torch.testing.assert_close(found[0][key] + found[1][key], expected[key], rtol=1e-9, atol=1e-11)
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        for rank in found:
            torch.testing.assert_close(rank[key], expected[key], rtol=1e-12, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_alone_it_is_torchs(training: bool) -> None:
    ours, theirs = RankBatchNorm(WIDTH).double().train(training), nn.BatchNorm1d(WIDTH).double().train(training)
    found = step(ours, positions(), weights())
    for key, value in step(theirs, positions(), weights()).items():
        assert torch.equal(found[key], value), key
    assert ours.state_dict().keys() == theirs.state_dict().keys()
