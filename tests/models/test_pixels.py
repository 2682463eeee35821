"""iGPT's encoder: arithmetic in slow NumPy, the order of pixels, sizes, files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unmask.models.build import build_encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.pixels import PIXEL_SIZES, PixelEncoder
from unmask.models.pretrained import encoder_file, read_encoder
from unmask.training.checkpoint import write_atomically

TINY = EncoderConfig(
    name="igpt_tiny", image_height=8, image_width=12, patch_size=4, width=16, depth=2, heads=2, colours=9
)


def _encoder(**changes: Any) -> PixelEncoder:
    torch.manual_seed(0)
    encoder = build_encoder(replace(TINY, **changes), mask_token=False)
    assert isinstance(encoder, PixelEncoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return encoder.eval()


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_a_network_of_one_block_is_the_papers_arithmetic(causal: bool) -> None:
    encoder = _encoder(depth=1, causal=causal).double()
    ids = torch.tensor([[3, 1, 4, 1, 5, 8]])
    hide = torch.tensor([[False, False, True, False, False, False]])
    state = {name: value.numpy() for name, value in encoder.pixels.state_dict().items()}
    x = state["embed.weight"][ids[0]] * ~hide[0].numpy()[:, None]
    if causal:
        x = np.concatenate([state["start"][0], x[:-1]])
    x = x + state["pos_embed"][0]

    def norm(values: Any, name: str) -> Any:
        return values / np.sqrt((values**2).mean(-1, keepdims=True) + 1e-5) * state[f"{name}.weight"]

    q, k, v = np.split(norm(x, "blocks.0.norm1") @ state["blocks.0.attn.qkv.weight"].T, 3, axis=1)
    read = np.zeros_like(x)
    for head in (slice(0, 8), slice(8, 16)):
        for row in range(6):
            seen = slice(0, row + 1) if causal else slice(None)
            weights = np.exp(k[seen, head] @ q[row, head] / 8**0.5)
            read[row, head] = weights / weights.sum() @ v[seen, head]
    x = x + read @ state["blocks.0.attn.proj.weight"].T
    hidden = norm(x, "blocks.0.norm2") @ state["blocks.0.mlp.fc1.weight"].T
    x = x + hidden / (1 + np.exp(-1.702 * hidden)) @ state["blocks.0.mlp.fc2.weight"].T
    found = encoder.last_tokens(ids, hide)
    np.testing.assert_allclose(found[0].numpy(), norm(x, "norm"), rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_a_pixel_knows_those_before_it_and_no_other() -> None:
    ids = torch.randint(9, (1, 6), generator=torch.Generator().manual_seed(0))
    for causal in (True, False):
        encoder = _encoder(causal=causal)
        before = encoder.last_tokens(ids)
        for position in range(6):
            changed = ids.clone()
            changed[0, position] = (ids[0, position] + 1) % 9
            moved = (encoder.last_tokens(changed) - before).abs().amax(dim=2)[0] > 1e-7
            assert moved.tolist() == [other > position if causal else True for other in range(6)]


@torch.no_grad()
def test_pixels_are_means_of_patches_named_by_the_nearest_colour() -> None:
    encoder = _encoder()
    encoder.set_normalisation((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    images = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    colours = encoder.picture(images)
    corner = images[1, :, 4:, 8:].mean(dim=(1, 2)) * torch.tensor([0.1, 0.2, 0.3]) + torch.tensor([0.4, 0.5, 0.6])
    torch.testing.assert_close(colours[1, 5], corner)
    nearest = (colours[:, :, None] - encoder.pixels.palette_VC).square().sum(dim=-1).argmin(dim=-1)
    assert torch.equal(encoder.ids(images), nearest)


@torch.no_grad()
@pytest.mark.parametrize(("depth", "middle"), [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_features_are_what_enters_attention_behind_the_middle(depth: int, middle: int) -> None:
    encoder = _encoder(depth=depth)
    images = torch.rand(2, 3, 8, 12)
    seen: list[torch.Tensor] = []
    norm = encoder.pixels.norm if middle == depth else encoder.pixels.blocks[middle].norm1
    norm.register_forward_hook(lambda _, __, output: seen.append(output))  # type: ignore[union-attr]
    encoder.last_tokens(encoder.ids(images))
    torch.testing.assert_close(encoder(images), seen[0])
    assert encoder.middle == middle


@torch.no_grad()
def test_attention_looks_at_what_may_be_seen() -> None:
    for causal in (True, False):
        attention = _encoder(causal=causal).attention(torch.rand(2, 3, 8, 12))
        assert attention.shape == (2, 2, 6)
        torch.testing.assert_close(attention.sum(dim=2), torch.ones(2, 2))
        # Of six pixels one sees the last, which is itself.
        assert bool((attention[..., -1] < 1 / 6).all()) or not causal


@torch.no_grad()
def test_an_encoder_file_holds_palette_order_and_normalisation(tmp_path: Path) -> None:
    encoder = _encoder(causal=False)
    encoder.set_normalisation((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    encoder.pixels.palette_VC.mul_(0.5)
    file = tmp_path / "encoder.safetensors"
    write_atomically(file, *encoder_file(encoder, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3), facts={}))
    read = read_encoder(file).encoder
    images = torch.rand(2, 3, 8, 12)
    torch.testing.assert_close(read(images), encoder(images), rtol=0, atol=0)


@torch.no_grad()
def test_images_of_another_size_are_taken() -> None:
    encoder = _encoder()
    large = torch.rand(1, 3, 16, 12)
    other = encoder(large)
    assert other.shape == (1, 12, 16)
    encoder.set_image_size(16, 12)
    assert encoder.grid == (4, 3)
    torch.testing.assert_close(encoder(large), other)
    with pytest.raises(ValueError, match=r"^image width 10 is not divisible by the patch size 4$"):
        encoder.set_image_size(8, 10)


def test_the_sizes_are_the_papers() -> None:
    """76, 455 and 1362 million parameters, said to be of iGPT-S, M and L: 12 width^2 a block, and tables."""
    for name, millions in (("igpt_small", 76), ("igpt_medium", 455), ("igpt_large", 1362)):
        sizes = PIXEL_SIZES[name]
        tables = (1024 + 2 * 512) * sizes.width
        assert 12 * sizes.depth * sizes.width**2 + tables == pytest.approx(millions * 1e6, rel=0.01)
    encoder = _encoder(mlp_ratio=4.0)
    blocks = sum(value.numel() for name, value in encoder.named_parameters() if "blocks" in name and value.ndim == 2)
    assert blocks == 12 * 2 * 16**2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"name": "igpt_huge"},
            "there is no encoder named 'igpt_huge'; iGPT's are igpt_tiny, igpt_small, igpt_medium, igpt_large",
        ),
        ({"position": "relative"}, r"'igpt_tiny' has no position 'relative' \(its own are learned\)"),
        ({"class_token": True}, "'igpt_tiny' has no class token"),
        ({"layer_scale": 0.1}, "'igpt_tiny' has no layer scale"),
        ({"stage_widths": (8, 8)}, "'igpt_tiny' has no stages of convolutions"),
        ({"heads": 3}, "encoder width 16 is not divisible by its 3 heads"),
        ({"image_height": 10}, "image height 10 is not divisible by the patch size 4"),
        ({"colours": 0}, "encoder number of colours must be at least 1, got 0"),
        (
            {"name": "vit_tiny_patch16_224"},
            "'vit_tiny_patch16_224' has no palette and no order of pixels to set; those belong to igpt_.* encoders",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        build_encoder(replace(TINY, **changes), mask_token=False)


def test_pixels_cannot_be_left_out_and_images_must_fit() -> None:
    encoder = _encoder()
    with pytest.raises(ValueError, match=r"^'igpt_tiny' reads pixels in their order; none can be left out$"):
        encoder(torch.rand(1, 3, 8, 12), drop_BN=torch.zeros(1, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^the encoder takes 3 channels, got images of 1$"):
        encoder(torch.rand(1, 1, 8, 12))
    with pytest.raises(ValueError, match=r"^image size 9x12 is not divisible by the patch size 4x4$"):
        encoder(torch.rand(1, 3, 9, 12))
