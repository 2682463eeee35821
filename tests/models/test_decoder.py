"""The transformer decoder: where tokens stand, what it sees, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from unmask.models.decoder import DecoderConfig, TransformerDecoder
from unmask.models.positions import sincos_positions

SMALL = DecoderConfig(width=16, depth=1, heads=2)


def _decoder(*, prefix: int = 1, depth: int = 1) -> TransformerDecoder:
    torch.manual_seed(0)
    config = DecoderConfig(width=16, depth=depth, heads=2)
    decoder = TransformerDecoder(config, encoder_width=24, out_width=7, grid=(3, 4), prefix=prefix)
    torch.nn.init.normal_(decoder.mask_token)
    return decoder.eval()


def _masks(hidden: int) -> Tensor:
    return torch.rand(3, 12, generator=torch.Generator().manual_seed(hidden)).argsort(dim=1) < hidden


@torch.no_grad()
@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("hidden", [0, 5, 11])
def test_visible_tokens_stand_at_their_places_and_mask_tokens_at_the_others(prefix: int, hidden: int) -> None:
    decoder = _decoder(prefix=prefix)
    mask_BN = _masks(hidden)
    visible_BLW = torch.randn(3, prefix + 12 - hidden, 24)
    embedded = decoder.embed(visible_BLW)
    rows = []
    for sample in range(3):
        patches = iter(embedded[sample, prefix:])
        row = [decoder.mask_token[0, 0] if hides else next(patches) for hides in mask_BN[sample]]
        rows.append(torch.stack([*embedded[sample, :prefix], *row]))
    tokens = torch.stack(rows) + sincos_positions((3, 4), 16, prefix=prefix)
    expected = decoder.norm(decoder.blocks(tokens))[:, prefix:]
    torch.testing.assert_close(decoder(visible_BLW, mask_BN), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_order_of_hidden_patches_follows_the_mask_not_the_tokens() -> None:
    """With nothing mixing places, a visible token shows only at its own place."""
    decoder = _decoder(depth=0)
    mask_BN = _masks(5)
    visible_BLW = torch.randn(3, 8, 24)
    changed = visible_BLW.clone()
    changed[:, 1 + 2] += torch.randn(24)
    moved_BN = (decoder(visible_BLW, mask_BN) - decoder(changed, mask_BN)).abs().amax(dim=-1) > 1e-4
    third_B = torch.tensor([int((~row).nonzero()[2]) for row in mask_BN])
    assert torch.equal(moved_BN, torch.nn.functional.one_hot(third_B, 12).bool())


def test_predict_is_the_last_linear_layer_on_any_selection() -> None:
    decoder = _decoder()
    features_BND = decoder(torch.randn(3, 8, 24), _masks(5))
    whole = decoder.predict(features_BND)
    assert whole.shape == (3, 12, 7)
    torch.testing.assert_close(decoder.predict(features_BND[_masks(5)]), whole[_masks(5)])
    torch.testing.assert_close(decoder.predict(features_BND[0, 0]), whole[0, 0])


def test_positions_are_fixed_and_saved() -> None:
    decoder = _decoder()
    assert "position" in decoder.state_dict()
    assert "position" not in dict(decoder.named_parameters())
    torch.testing.assert_close(decoder.position, sincos_positions((3, 4), 16))


def test_every_parameter_takes_a_gradient() -> None:
    decoder = _decoder()
    decoder.predict(decoder(torch.randn(3, 8, 24), _masks(5))).pow(2).sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_initial_values_are_those_of_maes_authors() -> None:
    torch.manual_seed(0)
    decoder = TransformerDecoder(SMALL, encoder_width=24, out_width=700, grid=(3, 4), prefix=1)
    bound = (6 / (16 + 700)) ** 0.5
    assert 0.95 * bound < decoder.head.weight.abs().max().item() <= bound
    assert not decoder.head.bias.any()
    assert 0 < decoder.mask_token.std().item() < 0.04


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^decoder width 16 is not divisible by its 3 heads$"):
        DecoderConfig(width=16, heads=3)
    with pytest.raises(ValueError, match=r"^sine-cosine positions need a width divisible by 4, got 18$"):
        TransformerDecoder(DecoderConfig(width=18, heads=2), encoder_width=8, out_width=8, grid=(2, 2), prefix=1)


@pytest.mark.parametrize("field", ["width", "heads"])
def test_sizes_below_one_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=rf"^decoder {field} must be at least 1, got 0$"):
        replace(SMALL, **cast(Any, {field: 0}))


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_hidden_features_are_those_of_the_whole(depth: int, prefix: int) -> None:
    torch.manual_seed(0)
    decoder = TransformerDecoder(
        DecoderConfig(width=16, depth=depth, heads=2), encoder_width=12, out_width=5, grid=(2, 3), prefix=prefix
    ).double()
    mask_BN = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 1, 0, 1, 1]], dtype=torch.bool)
    visible = torch.randn(2, prefix + 2, 12, dtype=torch.float64)
    whole = decoder(visible, mask_BN)[mask_BN]
    alone = decoder.hidden(visible, mask_BN).flatten(0, 1)
    torch.testing.assert_close(alone, whole)
    weights = torch.randn_like(whole)
    parameters = [parameter for name, parameter in decoder.named_parameters() if not name.startswith("head")]
    both = [torch.autograd.grad((found * weights).sum(), parameters, allow_unused=True) for found in (alone, whole)]
    torch.testing.assert_close(*both)


@pytest.mark.parametrize("depth", [1, 2])
def test_sharing_mask_tokens_changes_no_number(depth: int) -> None:
    torch.manual_seed(0)
    decoder = TransformerDecoder(
        DecoderConfig(width=16, depth=depth, heads=2), encoder_width=12, out_width=5, grid=(2, 3), prefix=1
    ).double()
    mask_BN = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 1, 0, 1, 1]], dtype=torch.bool)
    visible = torch.randn(2, 3, 12, dtype=torch.float64)
    plain = decoder.norm(decoder.blocks(decoder.place(visible, mask_BN)))[:, 1:]
    torch.testing.assert_close(decoder(visible, mask_BN), plain)
