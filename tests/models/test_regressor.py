"""CAE's regressor and decoder: arithmetic in slow NumPy, what they see, how they start, what they refuse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unmask.models.regressor import LatentRegressor, RegressorBlock, RegressorConfig

Array = NDArray[np.float64]
SMALL = RegressorConfig(regressor_depth=2, decoder_depth=1)


def _regressor(config: RegressorConfig = SMALL, **sizes: Any) -> LatentRegressor:
    torch.manual_seed(0)
    usual: dict[str, Any] = {"width": 8, "heads": 2, "drop_path": 0.0, "out_width": 5, "grid": (2, 3)}
    return LatentRegressor(config, **usual | sizes)


def _masks(hidden: int) -> Tensor:
    return torch.rand(4, 6, generator=torch.Generator().manual_seed(0)).argsort(dim=1) < hidden


def _linear(layer: nn.Linear, x: Array) -> Array:
    bias = 0.0 if layer.bias is None else layer.bias.detach().numpy()
    return np.asarray(x @ layer.weight.detach().numpy().T + bias)


def _norm(layer: nn.LayerNorm, x: Array) -> Array:
    unit = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return np.asarray(unit * layer.weight.detach().numpy() + layer.bias.detach().numpy())


def test_a_block_is_the_authors_arithmetic() -> None:
    torch.manual_seed(0)
    block = RegressorBlock(8, 2, mlp_ratio=2.0, layer_scale=0.3, drop_path=0.0).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x, kv, pos_x, pos_kv = (torch.randn(1, length, 8, dtype=torch.float64) for length in (3, 5, 3, 5))
    queries, memory = x[0].numpy(), kv[0].numpy()
    q = _linear(block.q, _norm(block.norm_q, queries + pos_x[0].numpy()))
    k = _linear(block.k, _norm(block.norm_k, memory + pos_kv[0].numpy()))
    v = _linear(block.v, _norm(block.norm_v, memory))
    read = np.zeros((3, 8))
    for head in (slice(0, 4), slice(4, 8)):
        for row in range(3):
            weights = np.exp(k[:, head] @ q[row, head] / 2)
            read[row, head] = weights / weights.sum() @ v[:, head]
    tokens = _norm(block.norm, queries + block.gamma_1.detach().numpy() * _linear(block.proj, read))
    hidden = _linear(block.mlp.fc1, tokens)  # type: ignore[arg-type]
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    expected = tokens + block.gamma_2.detach().numpy() * _linear(block.mlp.fc2, hidden)  # type: ignore[arg-type]
    np.testing.assert_allclose(block(x, kv, pos_x, pos_kv)[0].detach().numpy(), expected, rtol=1e-10)


@torch.no_grad()
def test_hidden_latents_stand_at_their_places_whatever_else_is_in_the_batch() -> None:
    regressor, mask_BN = _regressor(), _masks(2)
    for parameter in regressor.parameters():
        parameter.add_(0.5 * torch.randn_like(parameter))
    visible_BVD = torch.randn(4, 4, 8)
    together = regressor(visible_BVD, mask_BN)
    decoded = regressor.decode(together, mask_BN)
    assert (together.shape, decoded.shape) == ((4, 2, 8), (4, 2, 5))
    for sample in range(4):
        part = slice(sample, sample + 1)
        alone = regressor(visible_BVD[part], mask_BN[part])
        torch.testing.assert_close(alone, together[part])
        torch.testing.assert_close(regressor.decode(alone, mask_BN[part]), decoded[part])
    # The mask token is the same everywhere: positions alone tell hidden patches apart.
    assert not torch.allclose(together[:, 0], together[:, 1])
    regressor.position.zero_()
    blind = regressor(visible_BVD, mask_BN)
    torch.testing.assert_close(blind[:, 0], blind[:, 1])


def test_outputs_start_smaller_the_deeper_their_block_is() -> None:
    regressor = _regressor(RegressorConfig(regressor_depth=3, decoder_depth=3), width=64)
    for blocks in (regressor.blocks, regressor.decoder):
        for name, weight in blocks.named_parameters():
            if name.endswith(("proj.weight", "fc2.weight")):
                largest = 0.02 / math.sqrt(2 * (int(name[0]) + 1))
                assert 0.9 * largest < weight.abs().max() <= largest * (1 + 1e-6)
            elif name.endswith((".q.weight", "fc1.weight")):
                assert 0.018 < weight.abs().max() <= 0.02 * (1 + 1e-6)


def test_without_layer_scale_its_factors_are_one_and_fixed() -> None:
    regressor = _regressor(RegressorConfig(regressor_depth=1, decoder_depth=1, layer_scale=0.0))
    block = regressor.blocks[0]
    assert isinstance(block, RegressorBlock)
    assert not block.gamma_1.requires_grad
    assert torch.equal(block.gamma_2, torch.ones(8))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 0}, "regressor width must be at least 1, got 0"),
        ({"decoder_depth": 0}, "regressor decoder depth must be at least 1, got 0"),
        ({"width": 9, "regressor_heads": 2}, "regressor width 9 is not divisible by its 2 heads"),
        ({"layer_scale": -0.1}, "layer scale must be 0 or more, got -0.1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        RegressorConfig(**changes)


def test_heads_of_the_encoder_that_do_not_fit_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^the regressor's width 16 is not divisible by its 3 heads$"):
        _regressor(RegressorConfig(width=16), heads=3)
