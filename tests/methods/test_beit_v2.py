"""BEiT v2: what passes the bottleneck, and both losses in slow steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.data.batch import Batch
from unmask.methods.beit_v2 import BEiTv2, BEiTv2Config
from unmask.models.encoder_config import EncoderConfig

Tiny = Callable[..., BEiTv2]
BatchFor = Callable[..., Batch]


def _deep(tiny: Tiny, depth: int = 4, **changes: Any) -> BEiTv2:
    encoder = EncoderConfig(
        position="relative",
        layer_scale=0.5,
        patch_size=8,
        image_height=32,
        image_width=32,
        width=48,
        depth=depth,
        heads=3,
    )
    method = tiny(BEiTv2, changes={"encoder": encoder, **changes})
    # Tables of positions start at zero, and layer scale hides what a block does.
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
                parameter.add_(0.1 * noise)
    return method


@torch.no_grad()
def test_losses_are_those_of_the_formula(tiny: Tiny, batch_for: BatchFor) -> None:
    method = _deep(tiny, early_blocks=1)
    views = method.make_views(batch_for(method))
    assert views.mask_BN is not None
    vit = method.encoder.vit
    patches_BND = vit.patch_embed.proj(views.online).flatten(2).transpose(1, 2)
    assert method.encoder.mask_token is not None
    patches_BND = torch.where(views.mask_BN[..., None], method.encoder.mask_token, patches_BND)
    tokens = torch.cat([vit.cls_token.expand(4, -1, -1), patches_BND], dim=1)
    bias = vit.rel_pos_bias()
    early = vit.blocks[0](tokens, shared_rel_pos_bias=bias)
    last = early
    for block in vit.blocks[1:]:
        last = block(last, shared_rel_pos_bias=bias)
    shallow = torch.cat([last[:, :1], early[:, 1:]], dim=1)
    for block in method.shallow:
        shallow = block(shallow, shared_rel_pos_bias=bias)

    def loss(tokens_BLD: Tensor) -> Tensor:
        logits_BNV = method.head(vit.norm(tokens_BLD))[:, 1:]
        return F.cross_entropy(logits_BNV[views.mask_BN], views.token_ids_BN[views.mask_BN])

    torch.testing.assert_close(method.losses(views), {"tokens": loss(last), "bottleneck": loss(shallow)})


@torch.no_grad()
def test_of_late_blocks_the_class_token_alone_passes_the_bottleneck(tiny: Tiny, batch_for: BatchFor) -> None:
    method = _deep(tiny, early_blocks=2)
    views = method.make_views(batch_for(method))
    before = method.losses(views)

    def spoil(tokens: slice) -> dict[str, Tensor]:
        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            spoilt = output.clone()
            spoilt[:, tokens] += 1.0 + torch.arange(48) % 3
            return spoilt

        handle = method.encoder.vit.blocks[-1].register_forward_hook(hook)
        losses = method.losses(views)
        handle.remove()
        return losses

    patches, class_token = spoil(slice(1, None)), spoil(slice(0, 1))
    assert torch.equal(patches["bottleneck"], before["bottleneck"])
    assert not torch.equal(patches["tokens"], before["tokens"])
    assert not torch.equal(class_token["bottleneck"], before["bottleneck"])
    assert torch.equal(class_token["tokens"], before["tokens"])


@pytest.mark.parametrize(("depth", "early"), [(1, 1), (2, 1), (4, 3), (12, 9)])
def test_three_quarters_of_the_blocks_are_early(tiny: Tiny, depth: int, early: int) -> None:
    assert _deep(tiny, depth).early == early
    assert _deep(tiny, depth, early_blocks=1).early == 1


def test_shallow_blocks_start_as_blocks_of_their_place_and_are_not_the_encoders(tiny: Tiny) -> None:
    """The authors divide what block l puts out by sqrt(2 l), and count shallow blocks on from the early ones; their
    stochastic depth grows on, too."""
    encoder = EncoderConfig(
        position="relative",
        layer_scale=0.1,
        drop_path=0.3,
        patch_size=8,
        image_height=32,
        image_width=32,
        width=48,
        depth=4,
    )
    method = tiny(BEiTv2, changes={"encoder": encoder, "early_blocks": 3})
    assert len(method.shallow) == 2
    for index, block in enumerate(method.shallow):
        deviation = 0.02 / (2 * (3 + index + 1)) ** 0.5
        assert block.attn.proj.weight.std().item() == pytest.approx(deviation, rel=0.1)
        assert block.drop_path1.drop_prob == pytest.approx(0.3 * (3 + index) / 4)
    assert not torch.equal(method.shallow[0].mlp.fc1.weight, method.encoder.vit.blocks[3].mlp.fc1.weight)


def test_settings_that_cannot_be_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=r"^shallow_blocks must be at least 1, got 0$"):
        BEiTv2Config(shallow_blocks=0)
    with pytest.raises(ValueError, match=r"^early_blocks must lie between 1 and the encoder's 4 blocks, got 5$"):
        _deep(tiny, early_blocks=5)
    without = EncoderConfig(name="vit_base_patch16_gap_224", width=48, depth=2, heads=3)
    with pytest.raises(
        ValueError, match=r"^BEiT v2 needs an encoder with a class token, which 'vit_base_\w+' has not$"
    ):
        tiny(BEiTv2, changes={"encoder": without})
