"""BootMAE as LightDXY/BootMAE names and records it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from unmask.interop.authors.case import (
    Authors,
    Json,
    Tensors,
    encoder_config,
    image_views,
    mean_and_std,
    optimizer_config,
    per_step,
)
from unmask.masking import MaskConfig
from unmask.methods.base import Method, check_mask
from unmask.methods.bootmae import BootMAE, BootMAEConfig
from unmask.models.cross_decoder import CrossDecoderConfig
from unmask.objectives.reconstruction import unpatchify
from unmask.views import Views

_DECODERS = (("", "pixel_decoder"), ("_1", "feature_decoder"))

NAMES = (
    # The target's decoders and final norm are averaged, too, but nothing reads them.
    *((f"ema.{unused}*", None) for unused in ("decode_", "down", "mask_token", "lm_head", "norm.", "de_pos_embed")),
    ("ema.*", "target_encoder.vit.*"),
    *(
        pair
        for ending, ours in _DECODERS
        for pair in (
            (f"decode_blocks{ending}.*.c_attn.q.weight", f"{ours}.blocks.*.cross.q.weight"),
            (f"decode_blocks{ending}.*.c_attn.q_bias", f"{ours}.blocks.*.cross.q.bias"),
            (f"decode_blocks{ending}.*.c_attn.*", f"{ours}.blocks.*.cross.*"),
            (f"decode_blocks{ending}.*.norm1.*", f"{ours}.blocks.*.norm_self.*"),
            (f"decode_blocks{ending}.*.norm2.*", f"{ours}.blocks.*.norm_mlp.*"),
            (f"decode_blocks{ending}.*.norm3.*", f"{ours}.blocks.*.norm_query.*"),
            (f"decode_blocks{ending}.*.norm4.*", f"{ours}.blocks.*.norm_memory.*"),
            (f"decode_blocks{ending}.*", f"{ours}.blocks.*"),
            (f"decode_norm{ending}.*", f"{ours}.norm.*"),
            (f"down{ending}.*", f"{ours}.embed.*"),
            (f"mask_token{ending}", f"{ours}.mask_token"),
        )
    ),
    ("de_pos_embed", "pixel_position"),
    ("lm_head.proj.weight", "pixel_head.weight"),
    ("lm_head.proj.bias", "pixel_bias"),
    ("lm_head_1.*", "feature_head.*"),
    ("*", "encoder.vit.*"),
)


def build(case: Json) -> BootMAE:
    """The method of a case, with all its hyper-parameters."""
    layers = case["feature_layers"]
    if case["feature_decoder_dim"] != case["embed_dim"] or layers["feature_decoder_reads_block"] != case["depth"] - 1:
        raise ValueError("only a feature decoder as wide as the encoder, which reads its last block, is known here")
    mean, std = mean_and_std(case)
    # BEiT's attention, whose keys have no bias, under fixed positions.
    encoder = encoder_config(case, position="sincos", init="xavier", layer_scale=0.0)
    return BootMAE(
        BootMAEConfig(
            encoder=replace(encoder, name="beit_base_patch16_224"),
            # The masks themselves are recorded; only their kind is configured.
            mask=MaskConfig(kind="blockwise", ratio=0.75, exact=True),
            decoder=CrossDecoderConfig(
                width=case["pixel_decoder_dim"],
                depth=case["decoder_depth"],
                heads=case["decoder_heads"],
                mlp_ratio=case["mlp_ratio"],
            ),
            shallow_block=layers["pixel_decoder_reads_block"],
            weighted=case["weight_mask"],
            mean=mean,
            std=std,
            optimizer=optimizer_config(case),
        )
    )


def convert(case: Json, theirs: str, value: Tensor) -> Tensor:
    """Their transposed convolution puts a patch out as (channel, row, column); our linear layer as (row, column,
    channel)."""
    return value.permute(2, 3, 1, 0).flatten(0, 2) if theirs == "lm_head.proj.weight" else value


def weighted_features(case: Json, tensors: Tensors, step: int) -> float:
    """Their feature loss is recorded without its weight."""
    weights = per_step(case, tensors, "feature_weight", int(case["steps"]))
    assert weights is not None
    return weights[step] * float(tensors["losses_feature"][step])


def predict_pixels(method: Method, views: Views) -> Tensor:
    """The painted image, in normalised pixels."""
    assert isinstance(method, BootMAE)
    return unpatchify(_everywhere(method, views)[0], method.encoder.patch, method.encoder.grid)


def predict_features(method: Method, views: Views) -> Tensor:
    """Predicted features of all patches."""
    assert isinstance(method, BootMAE)
    return _everywhere(method, views)[1]


def _everywhere(method: BootMAE, views: Views) -> tuple[Tensor, Tensor]:
    mask_BN = check_mask(views.mask_BN)
    pixel_MK, feature_MW = method.predict(views.online, mask_BN, torch.ones_like(mask_BN))
    return pixel_MK.unflatten(0, mask_BN.shape), feature_MW.unflatten(0, mask_BN.shape)


def target_features(method: Method, views: Views) -> Tensor:
    """The target's features of all patches."""
    assert isinstance(method, BootMAE)
    everywhere_BN = torch.ones_like(check_mask(views.mask_BN))
    return method.target(views.online, everywhere_BN).unflatten(0, everywhere_BN.shape)


AUTHORS = Authors(
    names=NAMES,
    target_names=(),
    build=build,
    views=image_views,
    losses={"pixels": "losses_pixel", "features": weighted_features},
    convert=convert,
    predictions={
        "pred_pixel_first": predict_pixels,
        "pred_feature_first": predict_features,
        "target_feature_first": target_features,
    },
    schedules={"momentum": "ema_momentum", "feature_weight": "feature_weight"},
)
