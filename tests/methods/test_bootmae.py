"""BootMAE's two losses against plain numpy, its weights of patches, and its schedules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.data.batch import Batch
from unmask.masking import masked_count
from unmask.methods.bootmae import BootMAE, BootMAEConfig, hidden_neighbours
from unmask.objectives.reconstruction import patchify
from unmask.schedule import Schedule

Tiny = Callable[..., Any]
BatchFor = Callable[..., Batch]


def test_the_authors_hide_147_of_196_patches() -> None:
    assert masked_count(BootMAEConfig().mask, (14, 14)) == 147


@given(rows=st.integers(1, 5), columns=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_hidden_neighbours_are_counted_with_oneself_and_without_what_lies_outside(
    rows: int, columns: int, seed: int
) -> None:
    mask_BN = torch.rand(2, rows * columns, generator=torch.Generator().manual_seed(seed)) < 0.5
    grid = mask_BN.view(2, rows, columns).numpy()
    found = hidden_neighbours(mask_BN, (rows, columns)).view(2, rows, columns)
    for sample, row, column in np.ndindex(2, rows, columns):
        around = grid[sample, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        assert found[sample, row, column] == around.sum()


@torch.no_grad()
@pytest.mark.parametrize("weighted", [True, False])
def test_both_losses_are_the_formulas(tiny: Tiny, batch_for: BatchFor, weighted: bool) -> None:
    changes = {"weighted": weighted, "feature_weight": Schedule(start=0.3)}
    method = tiny(BootMAE, changes=changes).double()
    views = method.make_views(batch_for(method))
    views = replace(views, online=views.online.double())
    everywhere_BN = torch.ones_like(views.mask_BN)
    painted, features = (part.numpy() for part in method.predict(views.online, views.mask_BN, everywhere_BN))
    painted, features = painted.reshape(4, 16, 64, 3), features.reshape(4, 16, -1)
    targets = method.target(views.online, everywhere_BN).numpy().reshape(4, 16, -1)
    pixels = patchify(views.online, (8, 8)).numpy().reshape(4, 16, 64, 3)
    hidden = hidden_neighbours(views.mask_BN, (4, 4)).double().numpy()

    def normalised(values: np.ndarray) -> np.ndarray:
        return (values - values.mean()) / np.sqrt(values.var() + 1e-6)

    sums = np.zeros(2)
    for sample, patch in zip(*np.nonzero(views.mask_BN.numpy()), strict=True):
        weight = 1 + hidden[sample, patch] / 9 if weighted else 1
        values = pixels[sample, patch]
        values = (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-5)
        sums[0] += weight * ((painted[sample, patch] - values) ** 2).mean()
        wanted, given_ = normalised(targets[sample, patch]), normalised(features[sample, patch])
        sums[1] += weight * ((given_ - wanted) ** 2).mean()
    expected = sums / views.mask_BN.sum().item()
    losses = method.losses(views)
    assert losses["pixels"].item() == pytest.approx(expected[0], rel=1e-9)
    assert losses["features"].item() == pytest.approx(0.3 * expected[1], rel=1e-9)


@torch.no_grad()
def test_the_target_is_the_last_block_before_the_norm_on_the_whole_image(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(BootMAE)
    views = method.make_views(batch_for(method))
    (expected_BLW,) = method.encoder.block_outputs(views.online, (1,))
    assert torch.equal(method.target(views.online, views.mask_BN), expected_BLW[:, 1:][views.mask_BN])


def test_each_decoder_looks_up_its_own_depth(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(BootMAE)
    views = method.make_views(batch_for(method))
    first, last = method.encoder.block_outputs(views.online, (0, 1), drop_BN=views.mask_BN)
    seen: dict[str, torch.Tensor] = {}
    for name in ("pixel_decoder", "feature_decoder"):
        method.get_submodule(name).register_forward_hook(
            lambda _, given_, __, name=name: seen.update({name: torch.stack(given_[:2]).detach()})
        )
    method.losses(views)
    torch.testing.assert_close(seen["pixel_decoder"], torch.stack([method.encoder.norm(last), first]))
    torch.testing.assert_close(seen["feature_decoder"], torch.stack([method.encoder.norm(last), last]))


def test_heads_see_hidden_patches_alone(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(BootMAE)
    shapes: list[int] = []
    for head in (method.pixel_head, method.feature_head):
        head.register_forward_hook(lambda _, given_, __: shapes.append(len(given_[0])))
    method(batch_for(method))
    assert shapes == [4 * 12, 4 * 12]


@torch.no_grad()
def test_a_head_of_zeros_paints_each_channels_mean(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(BootMAE).eval()
    torch.nn.init.zeros_(method.pixel_head.weight)
    views = method.make_views(batch_for(method))
    painted = method.inspect(views).reconstruction_BCHW
    assert painted is not None
    means = patchify(views.online, (8, 8)).unflatten(-1, (64, 3)).mean(dim=2, keepdim=True)
    torch.testing.assert_close(patchify(painted, (8, 8)).unflatten(-1, (64, 3)), means.expand(-1, -1, 64, -1))


def test_the_feature_weight_and_the_momentum_move_as_the_authors() -> None:
    """Theirs are by epochs of 800: 4 (epoch + 1) / 800 up to 1; .999 to .9999 at epoch 100, .99999 at epoch 400."""
    config = BootMAEConfig()
    assert config.feature_weight.at(0) == pytest.approx(4 / 800)
    assert config.feature_weight.at(100 / 800) == pytest.approx(0.5, abs=0.01)
    assert config.feature_weight.at(200 / 800) == config.feature_weight.at(1) == 1
    for epoch, momentum in {0: 0.999, 50: 0.99945, 100: 0.9999, 250: 0.999945, 400: 0.99999, 800: 0.99999}.items():
        assert config.momentum_at(epoch / 800) == pytest.approx(momentum, abs=1e-12)
    constant = replace(config, momentum=Schedule(start=0.9))
    assert {constant.momentum_at(progress) for progress in (0, 0.3, 0.6, 1.0)} == {0.9}


def test_encoders_that_will_not_do_are_refused(tiny: Tiny) -> None:
    encoder = tiny(BootMAE).config.encoder
    with pytest.raises(ValueError, match=r"^BootMAE needs an encoder with a vector for each position; choose position"):
        tiny(BootMAE, changes={"encoder": replace(encoder, position="relative", init="timm")})
    with pytest.raises(ValueError, match=r"^shallow_block is 2, but the encoder has 2 blocks$"):
        tiny(BootMAE, changes={"shallow_block": 2})
