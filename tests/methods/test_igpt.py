"""iGPT: both objectives against slow sums, the palette, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unmask.data.batch import Batch
from unmask.methods.igpt import IGPT, IGPTConfig
from unmask.models.encoder_config import EncoderConfig

Tiny = Callable[..., IGPT]
BatchFor = Callable[..., Batch]


def _noisy(method: IGPT) -> IGPT:
    """With an output table that is not zero, as it is at the start."""
    torch.nn.init.normal_(method.head.weight, generator=torch.Generator().manual_seed(0))
    return method


@torch.no_grad()
@pytest.mark.parametrize("objective", ["next", "hidden"])
def test_the_loss_is_the_mean_surprise_at_pixels(tiny: Tiny, batch_for: BatchFor, objective: str) -> None:
    method = _noisy(tiny(IGPT, changes={"objective": objective}))
    views = method.make_views(batch_for(method))
    assert (views.mask_BN is None) == (objective == "next")
    loss = method.losses(views)["pixels"]
    ids_BN = method.encoder.ids(views.online)
    probability = method.head(method.encoder.last_tokens(ids_BN, views.mask_BN)).double().softmax(dim=-1).numpy()
    surprise = [
        -math.log(probability[image, pixel, ids_BN[image, pixel]])
        for image in range(4)
        for pixel in range(16)
        if views.mask_BN is None or views.mask_BN[image, pixel]
    ]
    assert len(surprise) == (64 if objective == "next" else 4 * 3)
    assert loss.item() == pytest.approx(np.mean(surprise), rel=1e-5)


def test_training_starts_at_chance(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(IGPT)
    assert method(batch_for(method))["pixels"].item() == pytest.approx(math.log(512), rel=1e-6)


@torch.no_grad()
def test_a_hidden_pixels_colour_is_not_seen(tiny: Tiny, batch_for: BatchFor) -> None:
    method = _noisy(tiny(IGPT, changes={"objective": "hidden"})).eval()
    views = method.make_views(batch_for(method))
    assert views.mask_BN is not None
    hidden_B1HW = views.mask_BN.view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = replace(views, online=torch.where(hidden_B1HW, 9.0, views.online))
    before, after = method.inspect(views).reconstruction_BCHW, method.inspect(changed).reconstruction_BCHW
    assert before is not None
    assert after is not None
    assert torch.equal(before, after)
    assert not torch.equal(method.losses(views)["pixels"], method.losses(changed)["pixels"])


def test_the_palette_is_placed_by_the_first_training_batch_and_never_again(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(
        IGPT,
        changes={
            "encoder": EncoderConfig(
                name="igpt_tiny", image_height=32, image_width=32, patch_size=8, width=48, depth=2, heads=3, colours=5
            )
        },
    )
    start = method.encoder.pixels.palette_VC.clone()
    first = method.make_views(batch_for(method, 16))
    method.eval().losses(first)
    assert torch.equal(method.encoder.pixels.palette_VC, start)
    method.train().losses(first)
    placed = method.encoder.pixels.palette_VC.clone()
    assert not torch.equal(placed, start)
    colours, ids = method.encoder.picture(first.online).flatten(0, 1), method.encoder.ids(first.online).flatten()
    for colour in ids.unique().tolist():
        torch.testing.assert_close(placed[colour], colours[ids == colour].mean(dim=0), rtol=0.02, atol=0.02)
    method.losses(method.make_views(batch_for(method, 8)))
    assert torch.equal(method.encoder.pixels.palette_VC, placed)


def test_a_given_palette_stays(tiny: Tiny, batch_for: BatchFor, tmp_path: Path) -> None:
    centres = np.random.default_rng(0).uniform(-1, 1, (7, 3))
    np.save(tmp_path / "centres.npy", centres)
    method = tiny(IGPT, changes={"palette": str(tmp_path / "centres.npy")})
    method.train()(batch_for(method))
    torch.testing.assert_close(method.encoder.pixels.palette_VC, torch.from_numpy(centres).float() / 2 + 0.5)
    assert method.head.weight.shape == (7, 48)
    encoder = replace(method.config.encoder, colours=6)
    with pytest.raises(ValueError, match=r"^\S+centres.npy holds 7 colours of 3 channels, but 6 of 3 are needed$"):
        IGPT(replace(method.config, encoder=encoder))


@torch.no_grad()
def test_pictures_are_painted_in_the_palettes_colours(tiny: Tiny, batch_for: BatchFor) -> None:
    method = _noisy(tiny(IGPT)).eval()
    views = method.make_views(batch_for(method))
    reconstruction = method.inspect(views).reconstruction_BCHW
    assert reconstruction is not None
    painted = method.encoder.picture(reconstruction).flatten(0, 1)
    distance = torch.cdist(painted, method.encoder.pixels.palette_VC).amin(dim=1)
    assert distance.max() < 1e-3


def test_another_encoder_is_refused() -> None:
    sentence = r"^iGPT reads colours of pixels: its encoder is one of igpt_tiny, igpt_small, igpt_medium, igpt_large$"
    with pytest.raises(ValueError, match=sentence):
        IGPT(IGPTConfig(encoder=EncoderConfig()))


def test_defaults_are_the_papers() -> None:
    config: Any = IGPTConfig()
    assert (config.encoder.image_height, config.encoder.image_width, config.encoder.patch_size) == (32, 32, 1)
    assert config.mask.ratio == 0.15
    assert (config.optimizer.betas, config.optimizer.weight_decay) == ((0.9, 0.95), 0.0)
