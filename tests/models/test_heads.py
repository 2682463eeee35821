"""Multi-layer heads: what batch norm sees, and which layers there are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import nn

from unmask.models.batch_norm import RankBatchNorm
from unmask.models.heads import MLPHead, MLPHeadConfig

SMALL = MLPHeadConfig(hidden=12, out=5, layers=3, last_norm=True)


def test_the_layers_of_three() -> None:
    layers = MLPHead(8, SMALL).layers
    kinds = [type(layer) for layer in layers]
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*block, *block, nn.Linear, nn.BatchNorm1d]
    shapes = [tuple(layer.weight.shape) for layer in layers if isinstance(layer, nn.Linear)]
    assert shapes == [(12, 8), (12, 12), (5, 12)]
    assert list(dict(MLPHead(8, SMALL).named_parameters())) == [
        "layers.0.weight",
        "layers.1.weight",
        "layers.1.bias",
        "layers.3.weight",
        "layers.4.weight",
        "layers.4.bias",
        "layers.6.weight",
    ]


def test_one_layer_is_one_linear_map() -> None:
    head = MLPHead(8, replace(SMALL, layers=1, last_norm=False))
    (linear,) = head.layers
    assert isinstance(linear, nn.Linear)
    features = torch.randn(4, 8)
    torch.testing.assert_close(head(features), features @ linear.weight.T)


def test_biases_epsilon_and_synchronised_norms_are_configured() -> None:
    layers = MLPHead(8, replace(SMALL, hidden_bias=True, norm_eps=1e-3, synchronised=True)).layers
    assert isinstance(layers[1], RankBatchNorm)
    assert layers[1].eps == layers[-1].eps == 1e-3
    assert isinstance(layers[-1], RankBatchNorm)
    assert not layers[-1].affine
    assert [layer.bias is not None for layer in layers if isinstance(layer, nn.Linear)] == [True, True, False]


@pytest.mark.parametrize("shape", [(24, 8), (3, 8, 8), (2, 3, 4, 8)])
def test_batch_norm_sees_all_leading_positions_as_one_batch(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    head = MLPHead(8, SMALL).double()
    features = torch.randn(shape, dtype=torch.float64)
    flat = features.reshape(-1, 8)
    for layer in head.layers:
        if isinstance(layer, nn.BatchNorm1d):
            flat = (flat - flat.mean(dim=0)) / (flat.var(dim=0, correction=0) + 1e-5).sqrt()
        else:
            flat = layer(flat)
    torch.testing.assert_close(head(features), flat.reshape(*shape[:-1], 5))


def test_last_norm_centres_every_output() -> None:
    out = MLPHead(8, SMALL)(torch.randn(50, 8))
    torch.testing.assert_close(out.mean(dim=0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(dim=0, correction=0), torch.ones(5), atol=1e-2, rtol=0)


def test_in_eval_mode_a_position_is_independent_of_the_others() -> None:
    head = MLPHead(8, SMALL).eval()
    features = torch.randn(6, 8)
    torch.testing.assert_close(head(features)[:2], head(features[:2]))


@pytest.mark.parametrize("field", ["hidden", "out", "layers"])
def test_sizes_below_one_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=rf"^head {field} must be at least 1, got 0$"):
        replace(SMALL, **cast(Any, {field: 0}))
