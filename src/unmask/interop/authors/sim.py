"""SIM as OpenGVLab/Siamese-Image-Modeling names and records it."""

from __future__ import annotations

from typing import Literal

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
from unmask.methods.sim import SIM, PlacedViews, SIMConfig
from unmask.models.decoder import DecoderConfig
from unmask.models.relative_decoder import relative_embedding

NAMES = (
    # The target's mask token follows the online one and enters nothing.
    ("mm_mask_token", None),
    ("mm_decoder_embed.*", "target_projector.embed.*"),
    ("mm_projector_decoder_blocks.*", "target_projector.blocks.*"),
    ("mm_*", "target_encoder.vit.*"),
    ("mask_token", "predictor.mask_token"),
    ("student_norm.*", "online_norm.*"),
    ("decoder_embed.*", "projector.embed.*"),
    ("projector_decoder_blocks.*", "projector.blocks.*"),
    ("predictor_decoder_blocks.*", "predictor.blocks.*"),
    ("decoder_pos_embed", "predictor.position"),
    ("decoder_pos_mlp.*", "predictor.relative.*"),
    ("decoder_pred.*", "predictor.head.*"),
    ("*", "encoder.vit.*"),
)
_NORMS: dict[str, Literal["batch", "layer"]] = {"bn": "batch", "ln": "layer"}


def build(case: Json) -> SIM:
    """The method of a case, with all its hyper-parameters."""
    mean, std = mean_and_std(case)
    patches = (case["image"] // case["patch"]) ** 2
    return SIM(
        SIMConfig(
            encoder=encoder_config(
                case, position="sincos", init="xavier", final_norm=False, layer_scale=case["layer_scale"]
            ),
            mask=MaskConfig(kind="blockwise", ratio=case["masked_patches"] / patches, exact=True),
            train_patches=case["train_patch_embed"],
            decoder=DecoderConfig(
                width=case["decoder_dim"],
                depth=case["predictor_depth"],
                heads=case["decoder_heads"],
                mlp_ratio=case["mlp_ratio"],
            ),
            projector_depth=case["projector_depth"],
            projector_norm=_NORMS[case["projector_norm"]],
            predictor_norm=_NORMS[case["predictor_norm"]],
            online_norm=case["online_ln"],
            negative_weight=case["neg_weight"],
            mean=mean,
            std=std,
            optimizer=optimizer_config(case),
        )
    )


def views(case: Json, tensors: Tensors, step: int) -> PlacedViews:
    """Recorded inputs of a step."""
    both = two_image_views(case, tensors, step)
    return PlacedViews(
        online=both.online,
        target=both.target,
        mask_BN=tensors["masks"][step].bool(),
        relative_B6=tensors["relative_position"][step].double(),
    )


def embed(method: Method, views: PlacedViews) -> Tensor:
    """The code of the relative positions, before the linear layer."""
    assert isinstance(method, SIM)
    return relative_embedding(views.relative_B6, method.encoder.grid, method.config.decoder.width)


def predict(method: Method, views: PlacedViews) -> Tensor:
    """The prediction for all patches of the second view."""
    assert isinstance(method, SIM)
    return method.predict(views)


@torch.no_grad()
def target(method: Method, views: PlacedViews) -> Tensor:
    """The target's features of all patches of the second view."""
    assert isinstance(method, SIM)
    assert views.target is not None
    return method.target_features(views.target)


AUTHORS = Authors(
    names=NAMES,
    target_names=(),
    build=build,
    views=views,
    losses={"positive": "losses_positive", "negative": "losses_negative_weighted"},
    predictions={"relative_embedding_first": embed, "pred_first": predict, "target_first": target},
)
