"""Prototype heads: unit features, directions with lengths, cosines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unmask.models.prototypes import CosinePrototypes, PrototypeHead, PrototypeHeadConfig, Prototypes

SMALL = PrototypeHeadConfig(hidden=12, bottleneck=6, out=9)


def test_the_parameters_of_the_head() -> None:
    shapes = {name: tuple(value.shape) for name, value in PrototypeHead(8, SMALL).named_parameters()}
    assert shapes == {
        "mlp.layers.0.weight": (12, 8),
        "mlp.layers.0.bias": (12,),
        "mlp.layers.2.weight": (12, 12),
        "mlp.layers.2.bias": (12,),
        "mlp.layers.4.weight": (6, 12),
        "mlp.layers.4.bias": (6,),
        "last.weight_g": (9, 1),
        "last.weight_v": (9, 6),
    }


def test_logits_are_lengths_times_cosines() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(8, SMALL)
    nn.init.uniform_(head.last.weight_g, 0.5, 2)
    tokens = torch.randn(4, 3, 8)
    plain = head.mlp(tokens)
    logits = head(tokens)
    for b in range(4):
        for t in range(3):
            cosines = F.cosine_similarity(plain[b, t], head.last.weight_v, dim=-1)
            torch.testing.assert_close(logits[b, t], head.last.weight_g[:, 0] * cosines)
    torch.testing.assert_close(head.features(tokens).norm(dim=-1), torch.ones(4, 3))


def test_logits_are_those_of_torchs_weight_norm() -> None:
    torch.manual_seed(0)
    ours = Prototypes(6, 9, fixed_length=False)
    nn.init.uniform_(ours.weight_g, 0.5, 2)
    theirs = nn.utils.parametrizations.weight_norm(nn.Linear(6, 9, bias=False))
    theirs.parametrizations.weight.original0.data.copy_(ours.weight_g.data)
    theirs.parametrizations.weight.original1.data.copy_(ours.weight_v.data)
    features = torch.randn(5, 6)
    torch.testing.assert_close(ours(features), theirs(features))
    ours(features).square().sum().backward()
    theirs(features).square().sum().backward()
    torch.testing.assert_close(ours.weight_g.grad, theirs.parametrizations.weight.original0.grad)
    torch.testing.assert_close(ours.weight_v.grad, theirs.parametrizations.weight.original1.grad)


@pytest.mark.parametrize("fixed", [True, False])
def test_lengths_start_at_one_and_are_fixed_on_request(fixed: bool) -> None:
    last = PrototypeHead(8, replace(SMALL, fixed_length=fixed)).last
    assert torch.equal(last.weight_g, torch.ones(9, 1))
    assert last.weight_g.requires_grad is not fixed
    assert last.weight_v.requires_grad


def test_the_start_is_the_authors() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(256, PrototypeHeadConfig(hidden=512, bottleneck=64, out=1024))
    for layer in head.mlp.layers:
        if isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert not layer.bias.any()
    assert head.last.weight_v.abs().max().item() == pytest.approx(1 / 8, rel=0.01)
    prototypes = CosinePrototypes(64, 1024).weight
    assert prototypes.abs().max().item() == pytest.approx(1 / 8, rel=0.01)
    assert prototypes.mean().item() == pytest.approx(0, abs=0.01)


def test_cosines_ignore_both_lengths() -> None:
    torch.manual_seed(0)
    prototypes = CosinePrototypes(6, 9)
    features = torch.randn(4, 6)
    expected = torch.stack([F.cosine_similarity(feature, prototypes.weight, dim=-1) for feature in features])
    torch.testing.assert_close(prototypes(features), expected)
    with torch.no_grad():
        prototypes.weight.mul_(3)
    torch.testing.assert_close(prototypes(5 * features), expected)


def test_cosines_stay_precise_under_autocast() -> None:
    torch.manual_seed(0)
    prototypes = CosinePrototypes(64, 9)
    features = torch.randn(4, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = prototypes(features)
    torch.testing.assert_close(found, prototypes(features.float()))


@pytest.mark.parametrize("field", ["bottleneck", "out"])
def test_sizes_below_one_are_refused(field: str) -> None:
    change: dict[str, Any] = {field: 0}
    with pytest.raises(ValueError, match=rf"^prototype head {field} must be at least 1, got 0$"):
        replace(SMALL, **change)


def test_no_prototype_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^there must be at least 1 prototype, got 0$"):
        CosinePrototypes(6, 0)
