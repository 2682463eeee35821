"""What is special to ConvMAE: its encoder, here and in other methods, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from unmask.data.batch import Batch
from unmask.methods.cmae import CMAE
from unmask.methods.conmim import ConMIM
from unmask.methods.convmae import ConvMAE, ConvMAEConfig
from unmask.methods.mae import MAE, MAEConfig
from unmask.methods.mocov3 import MoCoV3
from unmask.models.encoder_config import EncoderConfig
from unmask.models.hybrid import HybridEncoder

Tiny = Callable[..., Any]
BatchFor = Callable[..., Batch]


def test_all_but_the_encoder_is_mae() -> None:
    config = ConvMAEConfig()
    assert vars(config) == vars(MAEConfig()) | {"encoder": config.encoder}
    assert config.encoder == EncoderConfig(name="convmae_small_patch16")


@torch.no_grad()
def test_pictures_and_loss_see_nothing_of_hidden_patches(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(ConvMAE).eval()
    views = method.make_views(batch_for(method))
    assert isinstance(method.encoder, HybridEncoder)
    hidden_BHW = views.mask_BN.view(-1, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2)
    other = replace(views, online=torch.where(hidden_BHW[:, None], views.online.flip(0), views.online))
    tokens, same = (method.encoder(view.online, drop_BN=view.mask_BN) for view in (views, other))
    assert torch.equal(tokens, same)
    assert tokens.shape == (4, 4, 48)
    assert method.losses(other)["reconstruction"] != method.losses(views)["reconstruction"]


@pytest.mark.parametrize("cls", [MAE, CMAE, MoCoV3])
def test_its_encoder_trains_in_other_methods(tiny: Tiny, batch_for: BatchFor, cls: type[Any]) -> None:
    usual = tiny(cls).config.encoder
    method = tiny(
        cls, changes={"encoder": replace(usual, name="convmae_base_patch16", position="sincos", init="xavier")}
    )
    assert isinstance(method.encoder, HybridEncoder)
    losses = method(batch_for(method, 8))
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()
    # The first layer of all, seen by every loss.
    first = method.get_parameter("encoder.hybrid.stages.0.embed.proj.weight").grad
    assert first is not None
    assert first.norm() > 0
    if cls is CMAE:
        assert isinstance(method.target_encoder.hybrid.norm, torch.nn.Identity)


def test_a_method_with_mask_tokens_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^'convmae_small_patch16' leaves hidden patches out and knows no mask token; "
    ):
        ConMIM(replace(ConMIM.Config(), encoder=EncoderConfig(name="convmae_small_patch16")))  # type: ignore[arg-type]


def test_a_vit_is_refused_with_a_hint() -> None:
    sentence = r"^ConvMAE is MAE with an encoder of its own \(convmae_.*\), not 'vit_small_patch16_224'; use method mae"
    with pytest.raises(ValueError, match=sentence):
        ConvMAEConfig(encoder=EncoderConfig())
