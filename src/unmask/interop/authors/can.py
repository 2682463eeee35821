"""CAN as shlokk/mae-contrastive names and records it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unmask.interop.authors.case import (
    Authors,
    Json,
    Tensors,
    encoder_config,
    mean_and_std,
    optimizer_config,
    two_image_views,
)
from unmask.masking import MaskConfig
from unmask.methods.base import Method
from unmask.methods.can import CAN, CANConfig, NoisyViews
from unmask.models.decoder import DecoderConfig

NAMES = (
    ("noise_pe_mlp.*", "level_embed.*"),
    ("projection_head.*", "projector.layers.*"),
    ("decoder_pos_embed", "decoder.position"),
    ("decoder_embed.*", "decoder.embed.*"),
    ("decoder_blocks.*", "decoder.blocks.*"),
    ("decoder_norm.*", "decoder.norm.*"),
    ("decoder_pred.*", "decoder.head.*"),
    ("mask_token", "decoder.mask_token"),
    ("*", "encoder.vit.*"),
)


def build(case: Json) -> CAN:
    """The method of a case, with all its hyper-parameters."""
    mean, std = mean_and_std(case)
    return CAN(
        CANConfig(
            encoder=encoder_config(case, position="sincos", init="xavier"),
            mask=MaskConfig(kind="random", ratio=case["mask_ratio"]),
            decoder=DecoderConfig(width=case["decoder_dim"], depth=case["decoder_depth"], heads=case["decoder_heads"]),
            norm_pixels=case["norm_pix_loss"],
            clean_target=case["clean_target"],
            noise=case["noise_std_max"],
            level_width=case["noise_pe_dims"],
            projected=case["projection_out"],
            temperature=case["temperature"],
            contrast_weight=case["weight_contrastive"],
            mae_weight=case["weight_mae"],
            noise_weight=case["weight_noise"],
            mean=mean,
            std=std,
            optimizer=optimizer_config(case),
        )
    )


def views(case: Json, tensors: Tensors, step: int) -> NoisyViews:
    """Recorded inputs of a step."""
    both = two_image_views(case, tensors, step)
    return NoisyViews(
        online=both.online,
        target=both.target,
        mask_BN=tensors["masks_1"][step].bool(),
        target_mask_BN=tensors["masks_2"][step].bool(),
        level_T=tensors["noise_level"][step].double(),
        unit_TCHW=tensors["noise_unit"][step].double(),
    )


def weighted(name: str, weight: Callable[[Json], float]) -> Callable[[Json, Tensors, int], float]:
    """Their loss, recorded without its weight, as ours has it."""
    return lambda case, tensors, step: weight(case) * float(tensors[name][step])


def predict(method: Method, views: NoisyViews) -> Tensor:
    """The decoder's output for all patches of both views."""
    assert isinstance(method, CAN)
    found: list[Tensor] = []
    method.decoder.head.register_forward_hook(lambda _, __, prediction_TNK: found.append(prediction_TNK))
    with torch.no_grad():
        method.losses(views)
    return found[0]


AUTHORS = Authors(
    names=NAMES,
    target_names=(),
    build=build,
    views=views,
    losses={
        "reconstruction": weighted(
            "losses_reconstruction", lambda case: case["weight_mae"] * (1 - case["weight_noise"])
        ),
        "noise": weighted("losses_noise", lambda case: case["weight_mae"] * case["weight_noise"]),
        "contrast": weighted("losses_contrastive", lambda case: case["weight_contrastive"]),
    },
    predictions={"pred_first": predict},
)
